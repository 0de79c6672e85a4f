"""The connection files of kernels that the command line starts: how other programs reach them."""

from __future__ import annotations

from pathlib import Path

import msgspec
from jupyter_core.paths import secure_write

from ..models import KernelModel


def path(runtime_dir: Path, kernel_id: str) -> Path:
    """Where Jupyter's own programs look for the connection file of a kernel."""
    return runtime_dir / f"kernel-{kernel_id}.json"


def write(runtime_dir: Path, kernel: KernelModel) -> Path:
    """Write a kernel's connection file, for its owner's eyes only; returns its path.

    A file that says the same already is left alone: another program may have written it.
    """
    file = path(runtime_dir, kernel.id)
    content = msgspec.json.format(msgspec.json.encode(kernel.connection), indent=1)
    try:
        unchanged = msgspec.json.decode(file.read_bytes()) == msgspec.json.decode(content)
    except (OSError, msgspec.MsgspecError):
        unchanged = False
    if not unchanged:
        with secure_write(str(file), binary=True) as stream:
            stream.write(content)
    return file


def forget(runtime_dir: Path, kernel_id: str) -> None:
    """Remove the connection file of a kernel that is no more."""
    path(runtime_dir, kernel_id).unlink(missing_ok=True)
