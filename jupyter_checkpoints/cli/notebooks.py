"""``enable``, ``disable`` and ``remix``: notebooks."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path

from .. import mounts
from ..client import AgentClient
from ..errors import Conflict
from ..metadata import write_settings
from ..models import CopyRequest, SaveRequest
from ..notebook_files import NotebookFile
from .base import AgentCommand, Command


class EnableApp(Command):
    name = "jupyter-checkpoints enable"
    synopsis = "NOTEBOOK..."
    arguments = (1, None)
    description = """Switch runtime checkpoints on for notebooks.

    From then on their kernels are saved before they are culled, and go on where they were. A page
    that has the notebook open has to be reloaded.

    With --json: {"changed": [path, ...]}."""
    examples = "jupyter checkpoints enable analysis.ipynb"
    enabled = True

    def run(self) -> None:
        changed = []
        for argument in self.extra_args:
            notebook = NotebookFile(Path(argument))
            if notebook.settings().enabled != self.enabled:
                notebook.change(enabled=self.enabled)
                changed.append(argument)
        self.print_result({"changed": changed}, lambda: print("\n".join(self.extra_args)))


class DisableApp(EnableApp):
    name = "jupyter-checkpoints disable"
    description = """Switch runtime checkpoints off for notebooks. What was saved stays.

    With --json: {"changed": [path, ...]}."""
    examples = "jupyter checkpoints disable analysis.ipynb"
    enabled = False


class RemixApp(AgentCommand):
    name = "jupyter-checkpoints remix"
    synopsis = "NOTEBOOK COPY"
    arguments = (2, 2)
    description = """Copy a notebook together with its newest runtime checkpoint.

    If its kernel is running, that is saved first. The copy goes on from there by itself; neither
    knows of the other. It keeps the secrets that were in the kernel's memory. If it is another
    user's notebook, who has shared its checkpoint with you, the copy's directory takes the place of
    his.

    With --json: the copy's first checkpoint (see docs/cli.md)."""
    examples = "jupyter checkpoints remix analysis.ipynb variant.ipynb"

    async def work(self, agent: AgentClient) -> None:
        source, target = (Path(argument) for argument in self.extra_args)
        notebook = NotebookFile(source)
        if target.exists():
            raise Conflict(f"There is a file {target} already.", hint="Choose another name.")
        runtime = notebook.required_runtime()
        await _save_running(agent, runtime)
        newest = await agent.checkpoints(runtime=runtime)
        request = CopyRequest(runtime=str(uuid.uuid4()))
        if not newest and (newest := await agent.checkpoints(runtime=runtime, shared=True)):
            request = CopyRequest(
                runtime=request.runtime, mounts=mounts.in_place_of(newest[0].mounts, target.parent)
            )
        if not newest:
            raise Conflict(
                f"{source} has no runtime checkpoint.",
                hint=f"Save it first: jupyter checkpoints save {source}",
            )
        made = await agent.copy_checkpoint(newest[0].id, request)
        try:
            remixed = NotebookFile(source)
            write_settings(remixed.metadata, runtime=made.runtime)
            remixed.write(target)
            remixed.path = target
            remixed.register(made.runtime, source=newest[0].runtime)
        except BaseException:
            await agent.delete_checkpoint(made.id)
            raise

        def show() -> None:
            print(target)
            print(f"It begins with runtime checkpoint {made.id}.", file=sys.stderr)

        self.print_result(made, show)


async def _save_running(agent: AgentClient, runtime: str) -> None:
    """A copy is to go on from what the original is now, not from when it was saved last."""
    for kernel in await agent.kernels():
        if kernel.runtime == runtime and kernel.state == "running":
            await agent.save(kernel.id, SaveRequest(trigger="remix"))
