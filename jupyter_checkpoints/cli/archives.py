"""``export`` and ``import``: checkpoints as files."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import anyio
from traitlets import Bool

from ..client import AgentClient
from ..errors import Conflict, InvalidRequest, NotAllowed
from ..models import Event
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
    broken off goes on where it stopped if the same command is given again.

    With --json: {"checkpoint": id, "file": path, "size": bytes}."""
    examples = "jupyter checkpoints export analysis.ipynb analysis.tar"

    async def work(self, agent: AgentClient) -> None:
        model = await resolve.checkpoint(agent, self.extra_args[0])
        file = anyio.Path(self.extra_args[1])
        if await file.exists():
            raise Conflict(f"There is a file {file} already.", hint="Choose another name.")
        # Named by what it is a part of, so that no other export goes on with it.
        part = file.with_name(f".{file.name}.{model.id}.part")
        try:
            await part.touch(0o600)
            size = await self._download(agent, model.id, part)
            await part.rename(file)
        except OSError as error:
            raise NotAllowed(f"{file} cannot be written.", reason=str(error)) from error

        def show() -> None:
            print(file)
            print(
                "It holds all that was in the kernel's memory: keep it as you keep a password.",
                file=sys.stderr,
            )

        self.print_result({"checkpoint": model.id, "file": str(file), "size": size}, show)

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


class ImportApp(AgentCommand):
    name = "jupyter-checkpoints import"
    synopsis = "FILE [NOTEBOOK]"
    arguments = (1, 2)
    description = """Make a runtime checkpoint of a file that `export` has written.

    With NOTEBOOK it is that notebook's newest one: its kernel goes on from there when it starts
    next. Resuming a file of somebody else runs whatever is in it, and what reads it runs as root:
    files from other hosts are refused, unless root says --trust.

    With --json: the checkpoint (see docs/cli.md)."""
    examples = "jupyter checkpoints import analysis.tar analysis.ipynb"

    trust = Bool(False, help="Import it although another host wrote it (root).").tag(config=True)

    flags = {
        **AgentCommand.flags,
        "trust": (
            {"ImportApp": {"trust": True}},
            "Import it although another host wrote it (root).",
        ),
    }

    async def work(self, agent: AgentClient) -> None:
        file = anyio.Path(self.extra_args[0])
        runtime = ""
        if len(self.extra_args) == 2:
            runtime = NotebookFile(Path(self.extra_args[1])).own_runtime()
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

                    made = await agent.import_archive(
                        content(), size, runtime=runtime, trusted=self.trust
                    )
        except FileNotFoundError as error:
            raise InvalidRequest(f"There is no file {file}.") from error
        except OSError as error:
            raise NotAllowed(f"{file} cannot be read.", reason=str(error)) from error
        self.print_result(made, lambda: print(made.id))
