"""An agent takes over the checkpoints that were kept in the first store's format."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.models import StartRequest

from .agents import Agent
from .cells import run
from .conftest import running_agent
from .kernels import connected, python_kernel

pytestmark = pytest.mark.anyio


@pytest.fixture
def old_agent(default_image: None) -> Iterator[Agent]:
    with running_agent("--AgentApp.store_format=directories") as agent:
        yield agent


async def test_old_checkpoints_are_used_and_new_ones_are_packed(old_agent: Agent) -> None:
    kernel_id, clone = str(uuid.uuid4()), str(uuid.uuid4())
    async with AgentClient(old_agent.socket) as client:
        kernel = await client.start_kernel(python_kernel(kernel_id, detached=True))
        async with connected(kernel) as channels:
            await run(channels, "x = 1")
        old = await client.save(kernel_id)
    assert (old_agent.layout.store / old.id / "images").is_dir()
    old_agent.options.remove("--AgentApp.store_format=directories")
    old_agent.restart()
    async with AgentClient(old_agent.socket) as client:
        assert await client.checkpoints() == [old]
        assert (await client.verify(old.id)).ok
        new = await client.save(kernel_id)
        assert not (old_agent.layout.store / new.id / "images").exists()
        for checkpoint in (old, new):
            resumed = await client.start_kernel(
                StartRequest(kernel_id=clone, checkpoint=checkpoint.id, detached=True)
            )
            async with connected(resumed) as channels:
                assert await run(channels, "print(x)") == "1"
            await client.delete_kernel(clone)
        await client.delete_kernel(kernel_id)
        for checkpoint in (old, new):
            await client.delete_checkpoint(checkpoint.id)
        assert await client.checkpoints() == []
