#!/bin/sh
# Build what runs in the browser, and let JupyterLab find it where it is built.
set -eu
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"

echo "building the JupyterLab part"
log=labextension/build.log
(cd labextension && jlpm install --immutable && jlpm build:prod) >"$log" 2>&1 || {
    tail -n 30 "$log" >&2
    echo "the JupyterLab part could not be built; all of it: $log" >&2
    exit 1
}
rm "$log"
jupyter-builder develop . --overwrite >/dev/null
