# R:
#   docker build -t kernels/r -f dockerfiles/r.Dockerfile dockerfiles
ARG BASE=debian:trixie-slim
FROM ${BASE}
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates procps r-cran-irkernel \
    && rm -rf /var/lib/apt/lists/*
ENV LANG=C.UTF-8 HOME=/root SHELL=/bin/bash
WORKDIR /root
