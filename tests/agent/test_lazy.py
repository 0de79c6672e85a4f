"""Kernels that go on while their memory is still arriving, and what may happen meanwhile.

The processes that bring the memory are stopped as soon as the kernel is there, so that whatever a
test does happens before all is; each test ends with every byte compared.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import pytest

from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.errors import Conflict
from jupyter_checkpoints.models import CheckpointModel, KernelModel, SaveRequest, StartRequest

from .agents import Agent, wait_until
from .cells import PATIENCE, run
from .conftest import running_agent
from .kernels import client_of, connected, python_kernel
from .pagers import Pagers, caught

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]

DIGEST = "import hashlib; print(hashlib.blake2b(data).hexdigest(), *(ask() for ask in asks))"
#: Half a gibibyte in the kernel, and some in two processes of its own that answer questions.
MEMORY = """
import hashlib, os, sys
import numpy
data = numpy.random.default_rng(1).bytes(512 << 20)
def child(seed):
    ask_read, ask_write = os.pipe()
    tell_read, tell_write = os.pipe()
    if os.fork() == 0:
        mine = numpy.random.default_rng(seed).bytes(48 << 20)
        while os.read(ask_read, 1):
            os.write(tell_write, hashlib.blake2b(mine).hexdigest().encode())
    def ask():
        os.write(ask_write, b"?")
        return os.read(tell_read, 128).decode()
    return ask
asks = [child(2), child(3)]
"""


class Saved:
    """A checkpoint of a kernel with much memory, and what its digests are."""

    def __init__(self, checkpoint: CheckpointModel, digest: str) -> None:
        self.checkpoint = checkpoint
        self.digest = digest

    def request(self, kernel_id: str = "") -> StartRequest:
        return StartRequest(
            kernel_id=kernel_id or str(uuid4()), checkpoint=self.checkpoint.id, detached=True
        )


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


@pytest.fixture(scope="module")
async def saved(agent: Agent) -> AsyncIterator[Saved]:
    async with AgentClient(agent.socket) as client:
        kernel = await client.start_kernel(python_kernel(str(uuid4()), detached=True))
        async with connected(kernel) as channels:
            await run(channels, MEMORY)
            digest = await run(channels, DIGEST)
        checkpoint = await client.save(kernel.id)
        await client.delete_kernel(kernel.id)
        yield Saved(checkpoint, digest)
        await client.delete_checkpoint(checkpoint.id)


@pytest.fixture
async def arriving(
    agent: Agent, client: AgentClient, saved: Saved
) -> AsyncIterator[tuple[KernelModel, Pagers]]:
    """A kernel whose memory is arriving, and stands still."""
    kernel, pagers = await caught(agent, lambda: client.start_kernel(saved.request()))
    yield kernel, pagers
    pagers.go_on()


async def _digest(kernel: KernelModel) -> str:
    async with connected(kernel) as channels:
        return await run(channels, DIGEST)


async def test_memory_is_there_when_it_is_wanted(client: AgentClient, saved: Saved) -> None:
    kernel = await client.start_kernel(saved.request())
    assert await _digest(kernel) == saved.digest


async def test_a_save_waits_for_the_memory(
    client: AgentClient, arriving: tuple[KernelModel, Pagers], saved: Saved
) -> None:
    kernel, pagers = arriving
    saving = asyncio.create_task(client.save(kernel.id))
    async for model in client.attach(kernel.id):
        if model.state == "saving":
            break
    done, _ = await asyncio.wait([saving], timeout=1)
    assert not done
    pagers.go_on()
    checkpoint = await saving
    assert checkpoint.memory_size > 600 << 20
    await client.delete_kernel(kernel.id)
    again = await client.start_kernel(
        StartRequest(kernel_id=str(uuid4()), checkpoint=checkpoint.id)
    )
    assert await _digest(again) == saved.digest
    await client.delete_kernel(again.id)
    await client.delete_checkpoint(checkpoint.id)


async def test_a_stop_waits_for_the_memory(
    client: AgentClient, arriving: tuple[KernelModel, Pagers], saved: Saved
) -> None:
    kernel, pagers = arriving
    stopping = asyncio.create_task(client.save(kernel.id, SaveRequest(stop=True)))
    async for model in client.attach(kernel.id):
        if model.state == "saving":
            break
    pagers.go_on()
    checkpoint = await stopping
    kernel = await client.resume(kernel.id, checkpoint.id)
    assert await _digest(kernel) == saved.digest
    await client.delete_kernel(kernel.id)
    await client.delete_checkpoint(checkpoint.id)


@pytest.mark.parametrize("how", ["delete", "kill", "resume", "restart"])
async def test_a_kernel_ends_while_its_memory_arrives(
    agent: Agent,
    client: AgentClient,
    arriving: tuple[KernelModel, Pagers],
    saved: Saved,
    how: str,
) -> None:
    kernel, pagers = arriving
    before = pagers.pids()
    if how == "resume":
        kernel = await client.resume(kernel.id, saved.checkpoint.id)
        assert await _digest(kernel) == saved.digest
    elif how == "delete":
        await client.delete_kernel(kernel.id)
        assert not pagers.pids()
    else:
        await client.signal(kernel.id, signal.SIGKILL)
        async for model in client.attach(kernel.id):
            if model.state == "exited":
                break
        assert model.reason == ""
        if how == "restart":
            kernel = await client.start_kernel(saved.request(kernel.id))
            assert await _digest(kernel) == saved.digest
    wait_until(lambda: not set(pagers.pids()) & set(before))


async def test_the_checkpoint_stays_until_the_memory_is_there(
    agent: Agent, client: AgentClient, arriving: tuple[KernelModel, Pagers], saved: Saved
) -> None:
    """Also when another agent comes, which finds the kernel and its pagers."""
    kernel, pagers = arriving
    with pytest.raises(Conflict, match="is being resumed"):
        await client.delete_checkpoint(saved.checkpoint.id)
    agent.restart(signal.SIGKILL)
    assert len(pagers.pids()) == 2
    with pytest.raises(Conflict, match="is being resumed"):
        await client.delete_checkpoint(saved.checkpoint.id)
    pagers.go_on()
    kernel = await client.kernel(kernel.id)
    assert kernel.state == "running"
    assert await _digest(kernel) == saved.digest


async def test_the_memory_arrives_without_an_agent(
    agent: Agent, client: AgentClient, arriving: tuple[KernelModel, Pagers], saved: Saved
) -> None:
    kernel, pagers = arriving
    agent.end(signal.SIGKILL)
    pagers.go_on()
    assert await _digest(kernel) == saved.digest
    wait_until(lambda: not pagers.pids())
    agent.start()
    checkpoint = await client.save(kernel.id)
    await client.delete_kernel(kernel.id)
    await client.delete_checkpoint(checkpoint.id)


@pytest.mark.parametrize("turns", [["worker"], ["keeper"], ["worker", "keeper"] * 3])
async def test_a_pager_that_is_killed_is_replaced(
    client: AgentClient, arriving: tuple[KernelModel, Pagers], saved: Saved, turns: list[str]
) -> None:
    kernel, pagers = arriving
    for turn in turns:
        pagers.stop()
        if len(pagers.pids()) < 2:
            break  # all memory was there before the next could be killed
        pagers.kill(pagers.worker() if turn == "worker" else pagers.keeper())
    assert await _digest(kernel) == saved.digest
    wait_until(lambda: not pagers.pids())
    checkpoint = await client.save(kernel.id)
    assert checkpoint.memory_size > 600 << 20
    await client.delete_checkpoint(checkpoint.id)


@pytest.mark.parametrize("agents", ["there", "gone"])
async def test_no_zeros_when_both_pagers_are_killed(
    agent: Agent, client: AgentClient, arriving: tuple[KernelModel, Pagers], agents: str
) -> None:
    kernel, pagers = arriving
    if agents == "gone":
        agent.end(signal.SIGKILL)
    for pid in pagers.pids():
        os.kill(pid, signal.SIGKILL)
    if agents == "gone":
        agent.start()
    async with asyncio.timeout(PATIENCE):
        async for model in client.attach(kernel.id):
            if model.state == "exited":
                break
    assert "were killed" in model.reason


async def test_what_was_touched_first_comes_first_next_time(
    agent: Agent, client: AgentClient, saved: Saved
) -> None:
    kernel = await client.start_kernel(saved.request())
    assert await _digest(kernel) == saved.digest
    path = agent.layout.touched(saved.checkpoint.id)
    wait_until(path.exists)
    copy = await client.save(kernel.id)
    again = await client.start_kernel(
        StartRequest(kernel_id=str(uuid4()), checkpoint=copy.id, detached=True)
    )
    assert await _digest(again) == saved.digest
    mine = agent.layout.touched(copy.id)
    wait_until(mine.exists)
    await client.delete_kernel(again.id)
    await client.delete_checkpoint(copy.id)
    assert path.exists()
    assert not mine.exists()


async def test_clients_are_answered_before_the_memory_is_there(
    agent: Agent, client: AgentClient, saved: Saved
) -> None:
    """At least once in many tries: a machine may be busy, but not always just then."""
    for _ in range(10):
        kernel = await client.start_kernel(saved.request())
        channels = client_of(kernel)
        try:
            await run(channels, "print(1)")
        finally:
            channels.stop_channels()
        arrived = not Pagers(agent, kernel.id).pids()
        Pagers(agent, kernel.id).go_on()
        await client.delete_kernel(kernel.id)
        if not arrived:
            return
    raise AssertionError("all memory was there each time")


@pytest.fixture
def eager_agent(default_image: None) -> Iterator[Agent]:
    with running_agent("--AgentApp.lazy_resume=off") as agent:
        yield agent


async def test_all_memory_comes_at_once_if_that_is_wished(eager_agent: Agent) -> None:
    """Nobody notices, but for the time that it takes."""
    code = "import numpy; data = numpy.random.default_rng(1).bytes(32 << 20); asks = []"
    async with AgentClient(eager_agent.socket) as client:
        kernel = await client.start_kernel(python_kernel(str(uuid4()), detached=True))
        async with connected(kernel) as channels:
            await run(channels, code)
            digest = await run(channels, DIGEST)
        checkpoint = await client.save(kernel.id)
        again = await client.start_kernel(
            StartRequest(kernel_id=str(uuid4()), checkpoint=checkpoint.id, detached=True)
        )
        assert not (eager_agent.layout.kernel(again.id) / "0" / "pager.json").exists()
        assert not Pagers(eager_agent, again.id).pids()
        assert await _digest(again) == digest
        for model in (kernel, again):
            await client.delete_kernel(model.id)
        await client.delete_checkpoint(checkpoint.id)
