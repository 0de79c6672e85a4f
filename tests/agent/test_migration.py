"""Kernels and checkpoints from before users were served stay what they are: root's, and whole."""

from __future__ import annotations

import asyncio
import json
import uuid

import pytest

from jupyter_checkpoints.client import AgentClient

from .agents import Agent
from .kernels import python_kernel
from .launch import Launch

pytestmark = pytest.mark.anyio


def _as_before(agent: Agent, kernel_id: str) -> None:
    """Write a kernel's record as release 0.1 did."""
    path = agent.layout.kernel(kernel_id) / "record.json"
    record = json.loads(path.read_text())
    del record["identity"]
    path.write_text(json.dumps(record))


async def test_a_kernel_of_an_earlier_release_goes_on(private_agent: Agent) -> None:
    async with AgentClient(private_agent.socket) as client:
        launch = Launch(client)
        kernel = await launch.start(python_kernel(str(uuid.uuid4()), detached=True))
        # The root directory was root's alone in containers of that release, and is open here.
        await kernel.run("import os; os.chmod('/', 0o700); held = os.open('/', os.O_RDONLY); x = 1")
        before = await kernel.save()
        await asyncio.to_thread(private_agent.end)
        _as_before(private_agent, kernel.model.id)
        await asyncio.to_thread(private_agent.start)
    async with AgentClient(private_agent.socket) as client:
        kernel.agent = launch.agent = client
        (found,) = await client.kernels()
        assert (found.id, found.uid, found.state) == (kernel.model.id, 0, "running")
        assert await kernel.run("x += 1; print(x)") == "2"
        after = await kernel.save()
        for checkpoint, x in ((before, "1"), (after, "2")):
            assert checkpoint.uid == 0
            resumed = await launch.resume(checkpoint)
            assert await resumed.run("print(x, oct(os.stat('/').st_mode))") == f"{x} 0o40700"
        await client.resume(kernel.model.id, before.id)
        assert await kernel.run("print(x)") == "1"
        await launch.end()
