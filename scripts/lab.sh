#!/bin/sh
# Set this host up, prove that a kernel can be saved and resumed, start JupyterLab.
# With --check: stop after the proof; the exit status tells the outcome.
set -eu
cd "$(dirname "$0")/.."

.venv/bin/jupyter-checkpoints setup
.venv/bin/jupyter-checkpoints doctor
[ "${1:-}" != --check ] || exit 0

cd examples
set -- --MultiKernelManager.default_kernel_name=checkpoints-python3 \
    --LabApp.default_url=/lab/tree/runtime-checkpoints.ipynb "$@"
[ "$(id -u)" != 0 ] || set -- --allow-root "$@"
exec ../.venv/bin/jupyter lab "$@"
