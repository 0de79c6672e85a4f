#!/bin/sh
# OCI runtime `jupyter-checkpoints`: runc, and for containers of the runtime checkpoints agent a
# `create` that gives them what Docker cannot: files that can be snapshot, a network that is there
# before them, and processes that are restored instead of started.
requests='@REQUESTS@'
for id; do :; done # the container's id is always last
if [ -e "$requests/$id" ] || [ -e "$requests/$id.restored" ]; then
    for word; do
        case $word in
        create)
            exec '@PYTHON@' -I -S '@CREATE@' "$requests" '@RUNC@' '@PATH@' "$@"
            ;;
        start)
            # It was restored at `create`, and runs.
            rm "$requests/$id.restored" 2>/dev/null && exit 0
            ;;
        esac
    done
fi
exec '@RUNC@' "$@"
