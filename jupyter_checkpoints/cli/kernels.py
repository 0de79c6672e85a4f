"""``ps``, ``kill`` and ``logs``: the kernels there are."""

from __future__ import annotations

import sys
from contextlib import aclosing
from pathlib import Path

from traitlets import Bool, Integer

from ..client import AgentClient
from ..models import KernelModel
from . import connections, resolve
from .base import AgentCommand, print_json


class PsApp(AgentCommand):
    name = "jupyter-checkpoints ps"
    description = """List the kernels that run in containers, or are stopped at a checkpoint.

    With --json: an array of kernels (see docs/cli.md)."""

    async def work(self, agent: AgentClient) -> None:
        kernels = await agent.kernels()

        def show() -> None:
            from .output import moment, print_table, short_ids

            kernel_ids = short_ids(kernel.id for kernel in kernels)
            checkpoint_ids = short_ids(kernel.checkpoint for kernel in kernels)
            print_table(
                ["KERNEL", "STATE", "KERNELSPEC", "IMAGE", "SINCE", "CHECKPOINT"],
                [
                    (
                        kernel_ids[kernel.id],
                        _state(kernel),
                        kernel.kernel_name,
                        kernel.image,
                        moment(kernel.created),
                        checkpoint_ids[kernel.checkpoint],
                    )
                    for kernel in kernels
                ],
                empty="No kernels.",
            )

        self.print_result(kernels, show)


class KillApp(AgentCommand):
    name = "jupyter-checkpoints kill"
    synopsis = "KERNEL..."
    arguments = (1, None)
    description = """End kernels at once and remove their containers and files.

    What was not saved is lost; runtime checkpoints are kept. A notebook server that runs such a
    kernel may start it afresh. KERNEL is an id, a unique beginning of one, or a connection file.

    With --json: {"killed": [id, ...]}."""
    examples = "jupyter checkpoints kill 3f0c"

    async def work(self, agent: AgentClient) -> None:
        kernels = [await resolve.kernel(agent, text) for text in self.extra_args]
        for kernel in kernels:
            await agent.delete_kernel(kernel.id)
            if kernel.detached:  # nobody but `resume` wrote its connection file
                connections.forget(Path(self.runtime_dir), kernel.id)
        self.print_result(
            {"killed": [kernel.id for kernel in kernels]},
            lambda: print("\n".join(kernel.id for kernel in kernels)),
        )


class LogsApp(AgentCommand):
    name = "jupyter-checkpoints logs"
    synopsis = "KERNEL"
    arguments = (1, 1)
    description = """Show what a kernel's processes wrote to their standard output and error.

    The output of cells goes to the notebook and is not in there. KERNEL is an id, a unique
    beginning of one, or a connection file.

    With --json: {"log": "..."}; not together with --follow."""
    examples = "jupyter checkpoints logs 3f0c --follow"

    tail = Integer(100, min=1, help="How many of the last lines.").tag(config=True)
    follow = Bool(False, help="Go on until the kernel ends.").tag(config=True)

    aliases = {**AgentCommand.aliases, "tail": "LogsApp.tail"}
    flags = {
        **AgentCommand.flags,
        ("f", "follow"): ({"LogsApp": {"follow": True}}, "Go on until the kernel ends."),
    }

    async def work(self, agent: AgentClient) -> None:
        kernel = await resolve.kernel(agent, self.extra_args[0])
        if self.json:
            print_json({"log": await agent.log_tail(kernel.id, self.tail)})
        elif self.follow:
            async with aclosing(agent.follow_log(kernel.id, self.tail)) as pieces:
                async for text in pieces:
                    sys.stdout.write(text)
                    sys.stdout.flush()
        else:
            sys.stdout.write(await agent.log_tail(kernel.id, self.tail))


def _state(kernel: KernelModel) -> str:
    if kernel.paused:
        return f"{kernel.state}, paused"
    return kernel.state if kernel.exit_code is None else f"{kernel.state} ({kernel.exit_code})"
