"""Many of one kernel: the bytes of ten checkpoints, and the memory of ten remixes."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import psutil

from jupyter_checkpoints.client import AgentClient, connect
from jupyter_checkpoints.layout import Layout

from .kernels import Kernel, kernel, resumed
from .measure import (
    CHANGE,
    CHECK,
    CONTAINER,
    GIB,
    Note,
    added,
    delete,
    filling,
    require_memory,
    stored,
)
from .results import RemixesResult, TenResult

_TEN = 10
_CHANGED = 0.01
#: What ten kernels may take of the memory that is free.
_SHARE = 0.6
#: Bytes of a kernel without data.
_KERNEL = 64 * 2**20


async def ten_checkpoints(gib: float, directory: Path, paths: Layout, note: Note) -> TenResult:
    """Save a kernel ten times, each time but the first after 1 % of its memory has changed."""
    require_memory(gib * GIB + GIB)
    async with kernel(CONTAINER, directory) as one, connect() as agent:
        await one.run(filling(gib))
        before = await asyncio.to_thread(stored, paths)
        saved = [await agent.save(one.id)]
        first = await asyncio.to_thread(added, paths, before)
        for number in range(1, _TEN):
            note(f"{gib:g} GiB, checkpoint {number + 1} of {_TEN}")
            await one.run(CHANGE.format(share=_CHANGED) + "None")
            saved.append(await agent.save(one.id))
        every = await asyncio.to_thread(added, paths, before)
        for checkpoint in saved:
            await delete(agent, checkpoint.id)
    return TenResult(gib=gib, bytes_one=first, bytes_ten=every)


async def ten_remixes(gib: float, directory: Path, note: Note) -> RemixesResult:
    """Resume ten kernels from one checkpoint, and wait until all of their memory is there."""
    require_memory(_TEN * (gib * GIB + _KERNEL), _SHARE)
    async with connect() as agent, AsyncExitStack() as running:
        # Saved anew for the first one: to delete a checkpoint is to wait until all is there.
        async with kernel(CONTAINER, directory) as original:
            await original.run(filling(gib))
            expected = await original.run(CHECK)
            single = await agent.save(original.id)
            common = await agent.save(original.id)

        async def remix(checkpoint_id: str) -> Kernel:
            checkpoint = await agent.checkpoint(checkpoint_id)
            one = await running.enter_async_context(resumed(agent, checkpoint))
            if await one.run(CHECK) != expected:
                raise RuntimeError("the remix does not hold what was saved")
            return one

        kernels = [await remix(single.id)]
        await delete(agent, single.id)
        alone = await _memory(agent, kernels)
        for number in range(1, _TEN):
            note(f"{gib:g} GiB, remix {number + 1} of {_TEN}")
            kernels.append(await remix(common.id))
        await delete(agent, common.id)
        every = await _memory(agent, kernels)
    return RemixesResult(gib=gib, bytes_one=alone, bytes_ten=every)


async def _memory(agent: AgentClient, kernels: list[Kernel]) -> int:
    """The proportional set sizes of all processes of these kernels."""
    total = 0
    for one in kernels:
        pid = (await agent.kernel(one.id)).pid
        if pid is None:
            raise RuntimeError("a kernel has ended")
        total += await asyncio.to_thread(_proportional, pid)
    return total


def _proportional(pid: int) -> int:
    init = psutil.Process(pid)
    return sum(p.memory_full_info().pss for p in [init, *init.children(recursive=True)])
