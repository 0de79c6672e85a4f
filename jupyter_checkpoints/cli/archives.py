"""``export`` and ``import``: checkpoints as files."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import anyio
from traitlets import Bool

from ..client import AgentClient
from ..errors import Conflict, InvalidRequest, NotAllowed
from ..metadata import write_settings
from ..models import CheckpointModel, Event
from ..notebook_files import NotebookFile
from . import resolve
from .base import AgentCommand

_CHUNK = 1 << 20


class ExportApp(AgentCommand):
    name = "jupyter-checkpoints export"
    synopsis = "CHECKPOINT|NOTEBOOK FILE"
    arguments = (2, 2)
    description = """Write a runtime checkpoint to a file: of a notebook, the newest one.

    All that was in the kernel's memory is in the file, passwords and keys too. An export that was
    broken off goes on where it stopped if the same command is given again. A notebook is written
    beside the file, as `FILE` with the ending `.ipynb`, if it is not there already: together they
    are what `import FILE DIR` wants.

    With --json: {"checkpoint": id, "file": path, "notebook": path or "", "size": bytes}."""
    examples = "jupyter checkpoints export analysis.ipynb analysis.tar"

    async def work(self, agent: AgentClient) -> None:
        model = await resolve.checkpoint(agent, self.extra_args[0])
        file = anyio.Path(self.extra_args[1])
        beside = _to_carry(Path(self.extra_args[0]), Path(file))
        for path in (file, beside):
            if path is not None and await anyio.Path(path).exists():
                raise Conflict(f"There is a file {path} already.", hint="Choose another name.")
        # Named by what it is a part of, so that no other export goes on with it.
        part = file.with_name(f".{file.name}.{model.id}.part")
        try:
            await part.touch(0o600)
            size = await self._download(agent, model.id, part)
            await part.rename(file)
            if beside is not None:
                notebook = NotebookFile(Path(self.extra_args[0]))
                write_settings(notebook.metadata, runtime=model.runtime)
                notebook.write(beside)
        except OSError as error:
            raise NotAllowed(f"{file} cannot be written.", reason=str(error)) from error

        def show() -> None:
            print(file)
            if beside is not None:
                print(beside)
            print(
                "It holds all that was in the kernel's memory: keep it as you keep a password.",
                file=sys.stderr,
            )

        data = {"checkpoint": model.id, "file": str(file), "size": size}
        self.print_result({**data, "notebook": str(beside or "")}, show)

    async def _download(self, agent: AgentClient, checkpoint: str, part: anyio.Path) -> int:
        there = (await part.stat()).st_size
        with self.progress("Exporting") as progress:
            async with await part.open("r+b") as out:
                # The last byte again: there is no range behind the end.
                async with aclosing(agent.export(checkpoint, max(0, there - 1))) as parts:
                    whole = await anext(parts)
                    done = await out.seek(whole.start)
                    async for piece in parts:
                        done += await out.write(piece.data)
                        progress(
                            Event(event="progress", stage="write", done=done, total=whole.size)
                        )
                await out.truncate(whole.size)
                await out.flush()
                await anyio.to_thread.run_sync(os.fsync, out.wrapped.fileno())
        return whole.size


def _to_carry(named: Path, file: Path) -> Path | None:
    """Where the notebook that is exported is written; ``None`` if it is none, or there already."""
    beside = notebook_beside(file)
    if named.suffix != ".ipynb" or named.resolve() == beside.resolve():
        return None
    return beside


def notebook_beside(file: Path) -> Path:
    """Where the notebook of an archive is. ``InvalidRequest`` if the archive is called like one."""
    if file.suffix == ".ipynb":
        raise InvalidRequest(
            f"{file} cannot be an archive.", hint="Give it another ending, for instance `.tar`."
        )
    return file.with_suffix(".ipynb")


class ImportApp(AgentCommand):
    name = "jupyter-checkpoints import"
    synopsis = "FILE [NOTEBOOK|DIR]"
    arguments = (1, 2)
    description = """Make a runtime checkpoint of a file that `export` has written.

    With NOTEBOOK it is that notebook's newest one: its kernel goes on from there when it starts
    next. With DIR the notebook that was exported beside the file is copied there, where no file of
    its name may be, and is the one.

    Resuming a file of somebody else runs whatever is in it, and what reads it runs as root: files
    from other hosts are refused, unless root says --trust.

    With --json: the checkpoint (see docs/cli.md)."""
    examples = """\
jupyter checkpoints import analysis.tar analysis.ipynb
jupyter checkpoints import /backup/analysis.tar projects"""

    trust = Bool(False, help="Import it although another host wrote it (root).").tag(config=True)

    flags = {
        **AgentCommand.flags,
        "trust": (
            {"ImportApp": {"trust": True}},
            "Import it although another host wrote it (root).",
        ),
    }

    async def work(self, agent: AgentClient) -> None:
        file = Path(self.extra_args[0])
        runtime, arriving = "", None
        if len(self.extra_args) == 2:
            arriving = self._arriving(file, Path(self.extra_args[1]))
            if arriving is None:
                runtime = NotebookFile(self._notebook(file, Path(self.extra_args[1]))).own_runtime()
            else:
                runtime = str(uuid.uuid4())
        made = await self._import(agent, anyio.Path(file), runtime)
        if arriving is not None:
            try:
                notebook, target = arriving
                write_settings(notebook.metadata, runtime=runtime)
                notebook.write(target)
                notebook.path = target
                notebook.register(runtime)
            except BaseException:
                await agent.delete_checkpoint(made.id)
                raise

        def show() -> None:
            print(made.id)
            if arriving is not None:
                print(f"{arriving[1]} goes on from it.", file=sys.stderr)

        self.print_result(made, show)

    def _notebook(self, file: Path, target: Path) -> Path:
        """The notebook that a target means: itself, or the archive's in that directory."""
        return target / notebook_beside(file).name if target.is_dir() else target

    def _arriving(self, file: Path, target: Path) -> tuple[NotebookFile, Path] | None:
        """The notebook that is to be copied, and where to; ``None`` if it is there already."""
        beside, path = notebook_beside(file), self._notebook(file, target)
        if not target.is_dir() or (path.exists() and path.samefile(beside)):
            return None
        if path.exists():
            raise Conflict(
                f"There is a file {path} already.", hint="Name a notebook, or another directory."
            )
        return NotebookFile(beside), path

    async def _import(self, agent: AgentClient, file: anyio.Path, runtime: str) -> CheckpointModel:
        try:
            size = (await file.stat()).st_size
            async with await file.open("rb") as source:
                with self.progress("Importing") as progress:

                    async def content() -> AsyncIterator[bytes]:
                        done = 0
                        while chunk := await source.read(_CHUNK):
                            done += len(chunk)
                            progress(Event(event="progress", stage="read", done=done, total=size))
                            yield chunk

                    return await agent.import_archive(
                        content(), size, runtime=runtime, trusted=self.trust
                    )
        except FileNotFoundError as error:
            raise InvalidRequest(f"There is no file {file}.") from error
        except OSError as error:
            raise NotAllowed(f"{file} cannot be read.", reason=str(error)) from error
