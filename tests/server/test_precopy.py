"""A kernel that falls idle is copied ahead of its next save, if that is made by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from jupyter_checkpoints.agent import dirty
from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.models import Usage

from ..agent.agents import Agent
from .servers import PATIENCE, Jupyter, Server

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not dirty.available(), reason="this kernel cannot tell what is written"),
]
MIB = 2**20
_FILL = "import numpy; data = numpy.random.default_rng(1).integers(0, 255, 256 << 20, 'uint8')"
OPTIONS = ("--Runtimes.precopy_idle_timeout=0.5", "--Runtimes.watch_interval=0.5")


async def until(client: AgentClient, wanted: Callable[[Usage], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not wanted(await client.usage()):  # noqa: ASYNC110 - another process decides it
            await asyncio.sleep(0.05)


def held(agent: Agent) -> int:
    return sum(path.stat().st_blocks * 512 for path in agent.layout.packs.iterdir())


async def copied_ahead(server: Server, client: AgentClient, notebook: str) -> tuple[Jupyter, str]:
    """The kernel of a notebook, copied ahead, and the server that it runs on."""
    jupyter = await server.start(*OPTIONS)
    kernel_id = await jupyter.open(notebook)
    await jupyter.run(kernel_id, _FILL)
    await until(client, lambda usage: usage.precopies > 256 * MIB)
    return jupyter, kernel_id


async def test_a_save_has_little_left_to_write(
    server: Server, agent: Agent, client: AgentClient
) -> None:
    notebook = server.write("n.ipynb")
    jupyter, kernel_id = await copied_ahead(server, client, notebook)
    assert (await jupyter.ours("GET", "usage"))["precopies"] > 256 * MIB
    assert await jupyter.checkpoints(notebook) == []
    before = held(agent)
    await jupyter.save(kernel_id)
    assert held(agent) - before < 25 * MIB
    assert (await client.usage()).precopies == 0
    # Something else is run: it is copied again.
    await jupyter.run(kernel_id, "data += 1")
    await until(client, lambda usage: usage.precopies > 256 * MIB)


async def test_it_is_given_up_when_nothing_is_to_be_saved_any_more(
    server: Server, client: AgentClient
) -> None:
    notebook = server.write("n.ipynb")
    await copied_ahead(server, client, notebook)
    server.write("n.ipynb", settings={"enabled": True, "autosave": False})
    await until(client, lambda usage: usage.precopies == 0)


async def test_nothing_is_copied_of_what_is_not_saved_by_itself(
    server: Server, client: AgentClient
) -> None:
    files = {"enabled": True, "autosave": True, "mode": "filesystem"}
    others = [
        server.write("none.ipynb", settings=None),
        server.write("off.ipynb", settings={"enabled": False, "autosave": True}),
        server.write("by-hand.ipynb", settings={"enabled": True, "autosave": False}),
        server.write("files.ipynb", settings=files),
    ]
    last = server.write("saved.ipynb")
    jupyter = await server.start(*OPTIONS)
    # In the order in which they are looked at.
    for name in (*others, last):
        kernel_id = await jupyter.open(name)
        await jupyter.run(kernel_id, "import os; data = os.urandom(128 << 20)")
    await until(client, lambda usage: usage.precopies > 128 * MIB)
    # Of one kernel, and not of two.
    assert (await client.usage()).precopies < 2 * 128 * MIB
