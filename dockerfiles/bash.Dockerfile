# Bash:
#   docker build -t kernels/bash -f dockerfiles/bash.Dockerfile dockerfiles
ARG BASE=debian:trixie-slim
FROM ${BASE}
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates procps python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/kernel/bin:/usr/local/bin:/usr/bin:/bin LANG=C.UTF-8 HOME=/root SHELL=/bin/bash
RUN python3 -m venv /opt/kernel && /opt/kernel/bin/pip install --no-cache-dir bash_kernel
WORKDIR /root
