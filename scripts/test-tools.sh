#!/bin/sh
# What only the tests need: a file system to try every kind of pool on, and JupyterHub's proxy.
set -eu
cd "$(dirname "$0")/.."

if ! command -v mkfs.xfs >/dev/null; then
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends xfsprogs
fi
if [ ! -e .venv/bin/configurable-http-proxy ]; then
    PATH="$PWD/.venv/bin:$PATH" npm install --silent --no-audit --no-fund \
        --global --prefix "$PWD/.venv" configurable-http-proxy@5
fi
