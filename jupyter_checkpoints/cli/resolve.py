"""What users write for a kernel or a checkpoint, and which one they mean."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from ..client import AgentClient
from ..errors import InvalidRequest, NotFound
from ..models import CheckpointModel, KernelModel
from ..notebook_files import NotebookFile

_NOTEBOOK = ".ipynb"

M = TypeVar("M", KernelModel, CheckpointModel)


async def kernel(agent: AgentClient, text: str) -> KernelModel:
    """The kernel of an id, a unique beginning of an id, a connection file, or a notebook.

    Raises
    ------
    NotFound
        If there is none.
    InvalidRequest
        If there are several, or the file is no connection file.
    """
    kernels = await agent.kernels()
    if text.endswith(_NOTEBOOK):
        return kernel_of_notebook(kernels, Path(text))
    if text.endswith(".json") or "/" in text:
        return kernel_of_file(kernels, Path(text))
    return one(kernels, text, "kernel", "jupyter checkpoints ps")


async def checkpoint(agent: AgentClient, text: str) -> CheckpointModel:
    """The checkpoint of an id or a unique beginning of one; of a notebook, its newest.

    Raises as :func:`kernel`.
    """
    if text.endswith(_NOTEBOOK):
        runtime = NotebookFile(Path(text)).required_runtime()
        found = await agent.checkpoints(runtime=runtime)
        if not found:
            raise NotFound(
                f"{text} has no runtime checkpoint.",
                hint=f"`jupyter checkpoints save {text}` makes one.",
            )
        return found[0]
    return one(await agent.checkpoints(), text, "checkpoint", "jupyter checkpoints list")


async def checkpoint_of(agent: AgentClient, notebook: str, text: str) -> CheckpointModel:
    """One checkpoint of a notebook. Raises as :func:`kernel`, and if it is not one of it."""
    if not notebook.endswith(_NOTEBOOK):
        raise InvalidRequest(
            f"{notebook!r} is no notebook.", hint="Name the checkpoint alone, or a notebook."
        )
    runtime = NotebookFile(Path(notebook)).required_runtime()
    models = await agent.checkpoints(runtime=runtime)
    return one(models, text, f"checkpoint of {notebook}", "jupyter checkpoints list")


def one(models: Iterable[M], text: str, noun: str, command: str) -> M:
    """The one of ``models`` whose id is ``text``, or begins with it. Raises as :func:`kernel`."""
    found = [model for model in models if text and model.id.startswith(text)]
    for model in found:
        if model.id == text:
            return model
    if not found:
        raise NotFound(f"There is no {noun} {text!r}.", hint=f"`{command}` shows those there are.")
    if len(found) > 1:
        raise InvalidRequest(
            f"{text!r} is the beginning of {len(found)} {noun}s.",
            reason=", ".join(model.id for model in found[:5]),
            hint="Write more of the id.",
        )
    return found[0]


def kernel_of_notebook(kernels: list[KernelModel], file: Path) -> KernelModel:
    """The kernel that runs for a notebook. Blocks. Raises as :func:`kernel`."""
    runtime = NotebookFile(file).required_runtime()
    found = [k for k in kernels if k.runtime == runtime and k.state != "exited"]
    if not found:
        raise NotFound(
            f"{file} has no kernel that runs in a container.",
            hint="`jupyter checkpoints ps` lists those there are.",
        )
    if len(found) > 1:
        raise InvalidRequest(
            f"{file} has {len(found)} kernels.",
            reason=", ".join(k.id for k in found),
            hint="Name one of them.",
        )
    return found[0]


def kernel_of_file(kernels: list[KernelModel], file: Path) -> KernelModel:
    """The kernel that a connection file leads to, whatever the file's name. Blocks."""
    try:
        info = json.loads(file.read_text())
        address = (info["ip"], info["shell_port"], info["key"])
    except FileNotFoundError as error:
        raise NotFound(f"There is no connection file {file}.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidRequest(f"{file} is no connection file.", reason=str(error)) from error
    for model in kernels:
        known = model.connection
        if known is not None and (known.ip, known.shell_port, known.key) == address:
            return model
    raise NotFound(
        f"The kernel of {file} does not run in a container that can be saved.",
        hint="Only kernels of kernelspecs with our provisioner can; "
        "`jupyter checkpoints kernelspec list` shows them.",
    )
