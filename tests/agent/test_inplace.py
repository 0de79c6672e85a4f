"""Resuming a kernel in place, under a client that stays connected and is told nothing.

The client keeps its sockets from beginning to end: it never reconnects by hand, rebuilds no
channel and makes no handshake. Each time its next cell must give a reply and its output.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient

from jupyter_checkpoints.agent.cgroup import Cgroup
from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.errors import Conflict, ResumeFailed
from jupyter_checkpoints.models import Event, SaveRequest

from .agents import Agent, wait_until
from .callers import for_all_callers
from .cells import finish, run
from .kernels import client_of, connected, python_kernel

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600), for_all_callers]

TIMES = 50
#: A request that was lost is never answered: this long is never.
LOST = 10.0


class Kernel:
    def __init__(self, id: str, channels: AsyncKernelClient) -> None:
        self.id = id
        self.channels = channels


@pytest.fixture
async def kernel(client: AgentClient) -> AsyncIterator[Kernel]:
    kernel_id = str(uuid.uuid4())
    model = await client.start_kernel(python_kernel(kernel_id, detached=True))
    async with connected(model) as channels:
        yield Kernel(kernel_id, channels)
    for checkpoint in await client.checkpoints(kernel=kernel_id):
        await client.delete_checkpoint(checkpoint.id)
    await client.delete_kernel(kernel_id)


async def test_the_state_just_saved(client: AgentClient, kernel: Kernel) -> None:
    """The kernel stopped at the save: its connections come back with it."""
    answered = 0
    for n in range(TIMES):
        await run(kernel.channels, f"x = {n}")
        saved = await client.save(kernel.id, SaveRequest(stop=True))
        await client.resume(kernel.id, saved.id)
        answered += await run(kernel.channels, "print(x)", LOST) == str(n)
        await client.delete_checkpoint(saved.id)
    assert answered == TIMES


async def test_an_older_state(client: AgentClient, kernel: Kernel) -> None:
    """The kernel ran on after the save: its connections are cut, and are made again."""
    await run(kernel.channels, "x = 'saved'")
    saved = await client.save(kernel.id, SaveRequest())
    answered = 0
    for n in range(TIMES):
        assert await run(kernel.channels, f"x = {n}; print(x)", LOST) == str(n)
        await client.resume(kernel.id, saved.id)
        answered += await run(kernel.channels, "print(x)", LOST) == "saved"
    assert answered == TIMES


async def test_an_older_state_of_a_stopped_kernel(client: AgentClient, kernel: Kernel) -> None:
    """Clients of a stopped kernel have half-open connections, which must not stay deaf."""
    await run(kernel.channels, "x = 'older'")
    older = await client.save(kernel.id, SaveRequest())
    for _ in range(10):
        await run(kernel.channels, "x = 'newer'")
        newer = await client.save(kernel.id, SaveRequest(stop=True))
        await client.resume(kernel.id, older.id)
        assert await run(kernel.channels, "print(x)", LOST) == "older"
        await client.delete_checkpoint(newer.id)


async def test_requests_while_it_is_stopped(client: AgentClient, kernel: Kernel) -> None:
    """Each is delivered once, in order, with its output."""
    await run(kernel.channels, "n = 0")
    for _ in range(5):
        saved = await client.save(kernel.id, SaveRequest(stop=True))
        sent = [kernel.channels.execute("n += 1; print(n)") for _ in range(3)]
        before = int(await _resumed_then(client, kernel, saved.id, sent[0]))
        assert await finish(kernel.channels, sent[1], LOST) == str(before + 1)
        assert await finish(kernel.channels, sent[2], LOST) == str(before + 2)
        await client.delete_checkpoint(saved.id)
    assert await run(kernel.channels, "print(n)") == "15"


async def _resumed_then(client: AgentClient, kernel: Kernel, checkpoint: str, sent: str) -> str:
    await client.resume(kernel.id, checkpoint)
    return await finish(kernel.channels, sent, LOST)


async def test_many_clients(client: AgentClient, kernel: Kernel) -> None:
    """All of them hear the kernel again, not only the first that comes back."""
    model = await client.kernel(kernel.id)
    others = [client_of(model) for _ in range(4)]
    try:
        for other in others:
            await other.wait_for_ready(timeout=LOST)
        await run(kernel.channels, "x = 1")
        saved = await client.save(kernel.id, SaveRequest())
        await client.resume(kernel.id, saved.id)
        answers = await asyncio.gather(*(run(o, "print(x)", LOST) for o in others))
        assert answers == ["1"] * 4
    finally:
        for other in others:
            other.stop_channels()


async def test_a_running_cell_prints_on(client: AgentClient, kernel: Kernel) -> None:
    """Saved in mid-cell and stopped: not a line of its output is missing after the resume."""
    cell = kernel.channels.execute(
        "import time\nfor i in range(600):\n    print(i)\n    time.sleep(0.005)"
    )
    saved = await client.save(kernel.id, SaveRequest(stop=True))
    await client.resume(kernel.id, saved.id)
    lines = (await finish(kernel.channels, cell)).split()
    assert lines == [str(i) for i in range(600)]


async def test_no_signal_waits_for_a_resume(client: AgentClient, kernel: Kernel) -> None:
    """An interrupt of a stopped kernel is refused, not kept until it is back."""
    saved = await client.save(kernel.id, SaveRequest(stop=True))
    with pytest.raises(Conflict):
        await client.signal(kernel.id, 2)
    await client.resume(kernel.id, saved.id)
    assert await run(kernel.channels, "print('here')", LOST) == "here"


async def test_a_resume_that_fails_changes_nothing(
    agent: Agent, client: AgentClient, kernel: Kernel
) -> None:
    """The kernel that was to be replaced goes on, with its connections."""
    await run(kernel.channels, "x = 'now'")
    saved = await client.save(kernel.id, SaveRequest())
    agent.damage(saved.id, "core-1.img")
    with pytest.raises(Exception, match="damaged"):
        await client.resume(kernel.id, saved.id)
    assert await run(kernel.channels, "print(x)", LOST) == "now"


async def test_an_end_in_the_midst_of_a_resume(
    agent: Agent, client: AgentClient, kernel: Kernel
) -> None:
    """A container that is ended while another comes in its place takes nothing with it."""
    await run(kernel.channels, "x = 'saved'")
    saved = await client.save(kernel.id, SaveRequest())
    resumed = 0
    for n in range(12):
        model = await client.kernel(kernel.id)
        replaced = Cgroup.of(model.pid or 0)
        restores = asyncio.Event()

        def heard(event: Event, restores: asyncio.Event = restores) -> None:
            if event.stage == "restore":
                restores.set()

        operation = asyncio.ensure_future(client.resume(kernel.id, saved.id, heard))
        await restores.wait()
        await asyncio.sleep(n * 0.02)
        await asyncio.to_thread(replaced.kill)
        try:
            await operation
        except ResumeFailed:
            # It had not yet been made to stand still, and its end counts.
            async for model in client.attach(kernel.id):
                if model.state == "exited":
                    break
            await client.resume(kernel.id, saved.id)
        else:
            resumed += 1
            # Its clients were counted before it ended: all of them are heard again.
            assert await run(kernel.channels, "print(x)", LOST) == "saved"
        await asyncio.to_thread(wait_until, partial(_is_alone, agent.layout.kernel(kernel.id)))
        async with connected(await client.kernel(kernel.id)) as channels:
            assert await run(channels, "print(x)") == "saved"
    assert resumed


def _is_alone(kernel: Path) -> bool:
    """Whether a kernel has one container."""
    return len([name for name in os.listdir(kernel) if name.isdigit()]) == 1


async def test_a_deleted_kernel_leaves_no_network(agent: Agent, client: AgentClient) -> None:
    """Nor that of a container which another has just taken the place of: names are used again."""
    for _ in range(5):
        kernel_id = str(uuid.uuid4())
        await client.start_kernel(python_kernel(kernel_id, detached=True))
        saved = await client.save(kernel_id, SaveRequest())
        await client.resume(kernel_id, saved.id)
        await client.delete_kernel(kernel_id)
        # One is always kept ready for the next kernel.
        assert len(agent.namespaces()) <= 1
        await client.delete_checkpoint(saved.id)
