#!/bin/sh
# Make or bring up to date .venv: the package (editable), JupyterLab, and what tests and lint need.
set -eu
cd "$(dirname "$0")/.."
: "${PYTHON:=python3}"

if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "Python 3.11 or newer is needed; say which: make PYTHON=python3.12 ..." >&2
    exit 1
fi
if ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
    # Debian and Ubuntu keep it apart from Python itself.
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "Python's venv module is missing; on Debian and Ubuntu: apt-get install python3-venv" >&2
        exit 1
    fi
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends python3-venv
fi

echo "preparing .venv"
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
# What runs in the browser is built by scripts/labextension.sh, when its sources change.
export HATCH_JUPYTER_BUILDER_SKIP_NPM=1
# An earlier installation has written it through the link that JupyterLab finds the build by; a
# second file of that name is refused.
rm -f jupyter_checkpoints/labextension/install.json
# Dependency groups need pip 25.1.
.venv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
.venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --editable '.[lab]' --group test --group lint --group bench
