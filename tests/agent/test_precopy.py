"""What is copied ahead of a save need not be written by it, and what has changed since is."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from uuid import uuid4

import msgspec
import pytest

from jupyter_checkpoints.agent import dirty
from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.errors import (
    Cancelled,
    CheckpointsError,
    Conflict,
    InvalidRequest,
    QuotaExceeded,
)
from jupyter_checkpoints.models import Event, KernelModel, KernelPatch, SaveRequest, Usage

from .agents import Agent
from .callers import USER
from .cells import run
from .conftest import running_agent
from .kernels import connected, python_kernel
from .test_lazy import agent as agent
from .test_lazy import client as client
from .test_pause import held, resumed

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        os.geteuid() != 0 or not dirty.available(),
        reason="this kernel cannot tell what is written",
    ),
]
MIB = 2**20
FILL = "import numpy; data = numpy.random.default_rng(1).integers(0, 255, 256 << 20, 'uint8')"
DIGEST = "import hashlib; hashlib.sha256(data).hexdigest()"


async def started(client: AgentClient) -> KernelModel:
    return await client.start_kernel(python_kernel(str(uuid4()), detached=True))


async def test_a_first_save_writes_what_has_changed_since(
    agent: Agent, client: AgentClient
) -> None:
    kernel = await started(client)
    async with connected(kernel) as channels:
        await run(channels, FILL)
        empty = held(agent)
        assert (await client.usage()).precopies == 0
        model = await client.precopy(kernel.id)
        assert model.state == "running"
        ahead = held(agent)
        assert ahead - empty > 256 * MIB
        assert (await client.usage()).precopies > 256 * MIB
        assert await client.checkpoints(kernel=kernel.id) == []
        await run(channels, "data[: 1 << 20] += 1")
        saved = await client.save(kernel.id)
        assert held(agent) - ahead < 20 * MIB
        assert (await client.usage()).precopies == 0
        digest = await run(channels, DIGEST)
        await run(channels, "data[1 << 20 : 2 << 20] += 1")
        # On a checkpoint, and on one another.
        ahead = held(agent)
        await client.precopy(kernel.id)
        await run(channels, "data[2 << 20 : 3 << 20] += 1")
        await client.precopy(kernel.id)
        later = await client.save(kernel.id)
        assert held(agent) - ahead < 40 * MIB
        later_digest = await run(channels, DIGEST)
    for checkpoint, expected in ((saved, digest), (later, later_digest)):
        assert (await client.verify(checkpoint.id)).ok
        assert await resumed(client, checkpoint, DIGEST) == expected
    assert saved.parent == ""
    assert later.parent == saved.id


#: Writes one page after the other, and knows for each which number was written last.
WRITER = """
import hashlib, threading, numpy
pages = numpy.zeros((40_000, 512), numpy.int64)
turn, stopped = 0, threading.Event()
def work():
    global turn
    while not stopped.is_set():
        turn += 1
        pages[turn * 7919 % len(pages), 1] = turn
writer = threading.Thread(target=work, daemon=True)
writer.start()
"""
#: Which pages have not what was written last; the very last turn may not have been carried out.
INSPECT = """
stopped.set()
writer.join()
expected = numpy.zeros(len(pages), numpy.int64)
for number in range(max(1, turn - len(pages)), turn + 1):
    expected[number * 7919 % len(pages)] = number
print(numpy.flatnonzero(pages[:, 1] != expected).tolist())
"""


async def test_a_kernel_that_goes_on_writing(client: AgentClient) -> None:
    kernel = await started(client)
    async with connected(kernel) as channels:
        await run(channels, WRITER)
        for _ in range(3):
            await client.precopy(kernel.id)
            await client.precopy(kernel.id)
            saved = await client.save(kernel.id)
            assert await resumed(client, saved, INSPECT) == "[]"


async def under_way(client: AgentClient, kernel_id: str) -> asyncio.Task[KernelModel]:
    """A pre-copy that has begun."""
    begun = asyncio.Event()

    def progress(event: Event) -> None:
        begun.set()

    task = asyncio.create_task(client.precopy(kernel_id, progress))
    waiting = asyncio.create_task(begun.wait())
    await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    return task


async def test_a_save_waits_and_builds_on_it(agent: Agent, client: AgentClient) -> None:
    kernel = await started(client)
    async with connected(kernel) as channels:
        await run(channels, FILL)
        before = held(agent)
        task = await under_way(client, kernel.id)
        with pytest.raises(Conflict):
            await client.precopy(kernel.id)
        saved = await client.save(kernel.id)
        await task
        assert held(agent) - before < 320 * MIB
        assert (await client.usage()).precopies == 0
        digest = await run(channels, DIGEST)
    assert await resumed(client, saved, DIGEST) == digest


async def until(client: AgentClient, condition: Callable[[Usage], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition(await client.usage()):  # noqa: ASYNC110 - another process decides it
            await asyncio.sleep(0.05)


async def removed(client: AgentClient, kernel: KernelModel) -> None:
    await client.delete_kernel(kernel.id)


async def changed(client: AgentClient, kernel: KernelModel) -> None:
    await client.change_kernel(kernel.id, KernelPatch(runtime="another"))


async def forgotten(client: AgentClient, kernel: KernelModel) -> None:
    await client.forget_precopy(kernel.id)


@pytest.mark.parametrize("act", [removed, changed, forgotten])
async def test_whatever_else_comes_ends_it(
    agent: Agent, client: AgentClient, act: Callable[[AgentClient, KernelModel], Awaitable[None]]
) -> None:
    kernel = await started(client)
    async with connected(kernel) as channels:
        await run(channels, FILL)
        task = await under_way(client, kernel.id)
        await act(client, kernel)
        with pytest.raises(Cancelled):
            await task
        assert (await client.usage()).precopies == 0
        if act is not removed:
            # What was watched from then on is not since a checkpoint.
            await run(channels, "data[0] += 1")
            await client.precopy(kernel.id)
            saved = await client.save(kernel.id)
            digest = await run(channels, DIGEST)
            assert await resumed(client, saved, DIGEST) == digest
    assert not agent.staging()


@pytest.mark.parametrize("end", ["exited", "deleted", "restored", "forgotten"])
async def test_it_ends_with_what_was_copied(client: AgentClient, end: str) -> None:
    kernel = await started(client)
    async with connected(kernel) as channels:
        base = await client.save(kernel.id)
        await run(channels, FILL)
        await client.precopy(kernel.id)
        assert (await client.usage()).precopies > 256 * MIB
        if end == "forgotten":
            await client.forget_precopy(kernel.id)
    if end == "exited":
        await client.signal(kernel.id, signal.SIGKILL)
        async for model in client.attach(kernel.id):
            if model.state == "exited":
                break
    elif end == "deleted":
        await client.delete_kernel(kernel.id)
    elif end == "restored":
        await client.resume(kernel.id, base.id)
        async with connected(kernel) as channels:
            await run(channels, FILL.replace("rng(1)", "rng(2)"))
            saved = await client.save(kernel.id)
            digest = await run(channels, DIGEST)
        assert await resumed(client, saved, DIGEST) == digest
    # One that has ended by itself is tidied up after that was told.
    await until(client, lambda usage: usage.precopies == 0)


@pytest.fixture
def bounded(default_image: None) -> Iterator[Agent]:
    """Two checkpoints of such kernels fit into a user's quota, and not three."""
    with running_agent(f"--AgentApp.user_storage={800 * MIB}") as agent:
        yield agent


async def test_it_gives_way_to_its_owner_s_quota(bounded: Agent) -> None:
    """What was copied ahead keeps nobody from saving, and its kernel is saved whole then."""
    async with AgentClient(bounded.socket, user=USER) as client:
        ahead, other = await started(client), await started(client)
        async with connected(ahead) as channels, connected(other) as others:
            await run(channels, "import os; data = os.urandom(256 << 20)")
            await client.precopy(ahead.id)
            copied = (await client.usage()).precopies
            assert copied > 256 * MIB

            await run(others, "import os; data = os.urandom(256 << 20)")
            first = await client.save(other.id)
            assert (await client.usage()).precopies == copied, "given up without need"

            await run(others, "data = os.urandom(256 << 20)")
            second = await client.save(other.id)
            usage = await client.usage()
            assert usage.precopies == 0
            assert usage.total > 512 * MIB
            digest = await run(others, DIGEST)
            assert await resumed(client, second, DIGEST) == digest

            with pytest.raises(QuotaExceeded, match="of your 800 MiB already") as refused:
                await client.save(ahead.id)
            assert "prune" in refused.value.hint
            # What is deleted counts no longer, though its kernel's other checkpoint shares it.
            await client.delete_checkpoint(first.id)
            saved = await client.save(ahead.id)
            digest = await run(channels, DIGEST)
            assert await resumed(client, saved, DIGEST) == digest
        for checkpoint in (second, saved):
            await client.delete_checkpoint(checkpoint.id)
        for kernel in (ahead, other):
            await client.delete_kernel(kernel.id)


async def test_nothing_is_copied_of_what_has_no_memory_to_save(client: AgentClient) -> None:
    request = msgspec.structs.replace(python_kernel(str(uuid4()), detached=True), mode="filesystem")
    kernel = await client.start_kernel(request)
    with pytest.raises(InvalidRequest, match="files"):
        await client.precopy(kernel.id)
    await client.signal(kernel.id, signal.SIGKILL)
    async for model in client.attach(kernel.id):
        if model.state == "exited":
            break
    with pytest.raises(Conflict):
        await client.precopy(kernel.id)


@pytest.mark.parametrize("when", ["during", "after"])
async def test_kill_9(private_agent: Agent, when: str) -> None:
    """The next agent gives back what was written, and saves as if nothing had been copied."""
    agent = private_agent
    async with AgentClient(agent.socket) as client:
        kernel = await started(client)
        async with connected(kernel) as channels:
            await run(channels, FILL)
            digest = await run(channels, DIGEST)
        base = await client.save(kernel.id, SaveRequest())
        async with connected(kernel) as channels:
            await run(channels, "data = numpy.random.default_rng(2).bytes(256 << 20)")
        before = held(agent)
        task = await under_way(client, kernel.id)
        if when == "after":
            await task
            assert held(agent) - before > 256 * MIB
        agent.end(signal.SIGKILL)
        if when == "during":
            with pytest.raises(CheckpointsError):
                await task
    agent.start()
    assert held(agent) <= before
    assert not agent.staging()
    async with AgentClient(agent.socket) as client:
        assert (await client.usage()).precopies == 0
        assert (await client.verify(base.id)).ok
        assert await resumed(client, base, DIGEST) == digest
        saved = await client.save(kernel.id)
        async with connected(kernel) as channels:
            digest = await run(channels, DIGEST)
        assert await resumed(client, saved, DIGEST) == digest
        for checkpoint in (base, saved):
            await client.delete_checkpoint(checkpoint.id)
        await client.delete_kernel(kernel.id)
    agent.assert_clean()
