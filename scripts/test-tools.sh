#!/bin/sh
# What only the tests need: a file system to try every kind of pool on, JupyterHub's proxy, and
# Docker Engine, the distribution's and the newest, which are not started here: tests start their own.
set -eu
cd "$(dirname "$0")/.."

missing=
command -v mkfs.xfs >/dev/null || missing=xfsprogs
command -v dockerd >/dev/null || missing="$missing docker.io"
if [ -n "$missing" ]; then
    apt-get -qq update
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        # The package would start the service.
        printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
        chmod 755 /usr/sbin/policy-rc.d
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends $missing
fi
if [ ! -e .venv/bin/configurable-http-proxy ]; then
    PATH="$PWD/.venv/bin:$PATH" npm install --silent --no-audit --no-fund \
        --global --prefix "$PWD/.venv" configurable-http-proxy@5
fi
.venv/bin/python -m tests.docker.newest || true
