"""Runtime checkpoints for Jupyter: save a running kernel, and continue from it later."""

from typing import Any

__version__ = "0.1.0"


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    """Where Jupyter Server finds the extension. Imported then only: others need no server."""
    from .extension import CheckpointsExtension

    return [{"module": "jupyter_checkpoints", "app": CheckpointsExtension}]


def _jupyter_labextension_paths() -> list[dict[str, str]]:
    """Where JupyterLab finds our part in the browser; read while that is being developed."""
    return [{"src": "labextension", "dest": "jupyter-runtime-checkpoints"}]
