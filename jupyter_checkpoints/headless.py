"""Run a notebook from the first cell to the last, without a page; go on where a run was broken off.

Used by ``jupyter checkpoints run``. The kernel is saved after chosen cells. A later run of the
same notebook resumes the last of these whose cells, up to it, are still the same, and runs the
rest. Needs nbclient.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import AsyncKernelManager
from msgspec import Struct

from .client import connect
from .errors import HostNotReady, InvalidRequest, ResumeFailed
from .kernelspecs import PROVISIONER
from .models import CheckpointModel
from .notebook_files import NotebookFile
from .notebooks import ON_RESUME_TAG
from .provisioner import ContainerProvisioner
from .renewal import on_resume_code

#: Cells with this tag are saved after.
TAG = "checkpoint"
_NAME = "after cell "


class Step(Struct, frozen=True, kw_only=True):
    """What a run tells of: a cell that was run, or the checkpoint that it goes on from."""

    cell: int
    """Of the notebook's code cells, from 1."""
    of: int
    resumed: bool = False
    checkpoint: str = ""


class Outcome(Struct, frozen=True, kw_only=True):
    """How a run went."""

    cells: int
    ran: int
    """How many of the code cells were run this time."""
    resumed_from: str
    checkpoints: list[str]


def chosen_cells(codes: Sequence[Any], wanted: str) -> set[int]:
    """The numbers of the code cells to save after, from 1.

    Parameters
    ----------
    wanted:
        ``all``, or numbers with commas; the cells with the tag :data:`TAG` come on top.

    Raises
    ------
    InvalidRequest
        If it is neither, or there is no such cell.
    """
    chosen = {n for n, cell in enumerate(codes, 1) if TAG in cell["metadata"].get("tags", [])}
    if wanted == "all":
        return set(range(1, len(codes) + 1))
    for number in filter(None, (part.strip() for part in wanted.split(","))):
        if not number.isdigit() or not 1 <= int(number) <= len(codes):
            raise InvalidRequest(
                f"There is no code cell {number!r}.",
                hint=f"Name code cells by number, 1 to {len(codes)}, or say `all`.",
            )
        chosen.add(int(number))
    return chosen


async def run_notebook(
    path: Path, *, wanted: str = "", fresh: bool = False, tell: Callable[[Step], None]
) -> Outcome:
    """Run a notebook and write its outputs into it, after each cell.

    Parameters
    ----------
    wanted:
        Which cells to save after, see :func:`chosen_cells`.
    fresh:
        Begin with the first cell, whatever was saved.

    Raises
    ------
    InvalidRequest
        If its kernelspec does not run kernels in containers.
    nbclient.exceptions.CellExecutionError
        If a cell raises. What was saved before is kept, and a later run goes on from it.
    """
    try:
        from nbclient import NotebookClient
    except ImportError as error:
        raise HostNotReady(
            "Running notebooks needs nbclient.", hint="pip install nbclient"
        ) from error
    runtime = NotebookFile(path).own_runtime()
    notebook: Any = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    kernel_name = notebook.metadata.get("kernelspec", {}).get("name", "")
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    chosen = chosen_cells(codes, wanted)
    manager = AsyncKernelManager(kernel_name=kernel_name)
    _require_container(manager, kernel_name)
    done, found = (0, None) if fresh else await _newest(runtime, codes, kernel_name)
    directory = str(_absolute(path).parent)
    start: dict[str, Any] = {"runtime": runtime, "cwd": directory}
    if found is not None:
        start["restore_from"] = found.id
        tell(Step(cell=done, of=len(codes), resumed=True, checkpoint=found.id))
    saved = []
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=None,
        resources={"metadata": {"path": directory}},
    )
    client.reset_execution_trackers()
    await manager.start_kernel(kernel_id=str(uuid.uuid4()), **start)
    try:
        await client.async_start_new_kernel_client()
        if found is not None:
            await _after_resume(client.kc, manager, codes)
        number = 0
        for index, cell in enumerate(notebook.cells):
            number += cell.cell_type == "code"
            if cell.cell_type != "code" or number <= done:
                continue
            try:
                await client.async_execute_cell(cell, index, execution_count=number)
            finally:
                nbformat.write(notebook, path)  # type: ignore[no-untyped-call]
            checkpoint = ""
            if number in chosen:
                provisioner = manager.provisioner
                assert isinstance(provisioner, ContainerProvisioner)
                made = await provisioner.save(name=_name(number, codes), trigger="cell")
                saved.append(checkpoint := made.id)
            tell(Step(cell=number, of=len(codes), checkpoint=checkpoint))
    finally:
        if client.kc is not None:
            client.kc.stop_channels()
        await manager.shutdown_kernel(now=True)
    return Outcome(
        cells=len(codes),
        ran=len(codes) - done,
        resumed_from=found.id if found else "",
        checkpoints=saved,
    )


async def _after_resume(client: Any, manager: AsyncKernelManager, codes: Sequence[Any]) -> None:
    """Run what is registered for that, and the cells with the tag."""
    spec = manager.kernel_spec
    work = [on_resume_code(spec.language.lower() if spec is not None else "")]
    work += [c["source"] for c in codes if ON_RESUME_TAG in c["metadata"].get("tags", [])]
    for code in filter(None, work):
        reply = await client.execute_interactive(
            code, silent=True, store_history=False, allow_stdin=False, output_hook=lambda _: None
        )
        content = reply["content"]
        if content["status"] != "ok":
            raise ResumeFailed(
                "What is to be run after a resume failed.",
                reason=f"{content.get('ename', content['status'])}: {content.get('evalue', '')}",
                hint="Mend the cell, or run the notebook with --fresh.",
            )


def _absolute(path: Path) -> Path:
    return path.absolute()


async def _newest(
    runtime: str, codes: Sequence[Any], kernel_name: str
) -> tuple[int, CheckpointModel | None]:
    """The checkpoint that most cells need not be run again after, and how many these are."""
    names = {_name(number, codes): number for number in range(1, len(codes) + 1)}
    async with connect() as agent:
        found = [
            c
            for c in await agent.checkpoints(runtime=runtime)
            if c.trigger == "cell" and c.name in names and c.kernel_name == kernel_name
        ]
    if not found:
        return 0, None
    best = max(found, key=lambda c: (names[c.name], c.created))
    return names[best.name], best


def _name(number: int, codes: Collection[Any]) -> str:
    """A name that tells what was run: of all code cells up to this one."""
    digest = hashlib.sha256()
    for cell in list(codes)[:number]:
        digest.update(hashlib.sha256(cell["source"].encode()).digest())
    return f"{_NAME}{number} ({digest.hexdigest()[:16]})"


def _require_container(manager: AsyncKernelManager, kernel_name: str) -> None:
    spec = manager.kernel_spec
    stanza = spec.metadata.get("kernel_provisioner", {}) if spec is not None else {}
    if stanza.get("provisioner_name") != PROVISIONER:
        raise InvalidRequest(
            f"The kernelspec {kernel_name!r} does not run kernels in containers.",
            hint="`jupyter checkpoints kernelspec list` shows those that do.",
        )
