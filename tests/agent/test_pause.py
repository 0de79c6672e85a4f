"""Saving while the kernel runs: the pause is short, and what is saved is of one moment, exactly."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import pytest

from jupyter_checkpoints.agent import dirty
from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.models import CheckpointModel, SaveRequest, StartRequest

from .agents import Agent
from .cells import run
from .conftest import running_agent
from .kernels import connected, python_kernel

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

watched = pytest.mark.skipif(
    os.geteuid() != 0 or not dirty.available(), reason="this kernel cannot tell what is written"
)
MIB = 2**20


@pytest.fixture(scope="module")
def agent(default_image: None) -> Iterator[Agent]:
    """One that these tests may kill."""
    with running_agent() as agent:
        yield agent


@pytest.fixture
async def client(agent: Agent) -> AsyncIterator[AgentClient]:
    async with AgentClient(agent.socket) as client:
        yield client
        for kernel in await client.kernels():
            await client.delete_kernel(kernel.id)


async def resumed(client: AgentClient, saved: CheckpointModel, code: str) -> str:
    """What a cell prints in a clone, which is removed then."""
    request = StartRequest(kernel_id=str(uuid4()), checkpoint=saved.id, detached=True)
    clone = await client.start_kernel(request)
    try:
        async with connected(clone) as channels:
            return await run(channels, code)
    finally:
        await client.delete_kernel(clone.id)


def held(agent: Agent) -> int:
    return sum(path.stat().st_blocks * 512 for path in agent.layout.packs.iterdir())


@watched
async def test_the_second_save_of_an_idle_kernel_takes_next_to_nothing(
    agent: Agent, client: AgentClient
) -> None:
    kernel = await client.start_kernel(python_kernel(str(uuid4()), detached=True))
    async with connected(kernel) as channels:
        code = "import numpy; data = numpy.random.default_rng(1).bytes(512 << 20)"
        await run(channels, code)
        first = await client.save(kernel.id, SaveRequest())
        before = held(agent)
        second = await client.save(kernel.id, SaveRequest())
        assert held(agent) - before < 2 * MIB
        code = "import hashlib; hashlib.sha256(data).hexdigest()"
        digest = await run(channels, code)
    for saved in (first, second):
        assert (await client.verify(saved.id)).ok
        assert await resumed(client, saved, code) == digest
