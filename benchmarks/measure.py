"""Save and resume one kernel at one size, save it again, and start kernels."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from jupyter_checkpoints.client import AgentClient, connect
from jupyter_checkpoints.errors import Conflict
from jupyter_checkpoints.layout import Layout
from jupyter_checkpoints.models import CheckpointModel

from . import floor
from .agent import Agent
from .kernels import PATIENCE, another, kernel, resumed
from .results import ChangeResult, PrecopyResult, ResumeResult, SizeResult, StartResult

GIB = 2**30
CONTAINER = "checkpoints-python3"
PLAIN = "python3"

#: Random numbers cannot be compressed or guessed, and two sums of them tell whether all are there.
FILL = """
import numpy as np
data = np.random.default_rng().integers(0, 2**64 - 1, size={count}, dtype=np.uint64)
"""
CHECK = "(int(np.bitwise_xor.reduce(data)), int(data.sum()))"
#: Writes into a share of all pages, here and there.
CHANGE = """
pages = data[:data.size // 512 * 512].reshape(-1, 512)
some = np.random.default_rng().permutation(len(pages))[:int(len(pages) * {share})]
pages[some, 0] += np.uint64(1)
del pages, some
"""
#: A thread that looks at the clock a thousand times a second, and keeps the longest time between.
TICKER = """
import threading, time
worst = [0.0]
def tick():
    last = time.monotonic()
    while True:
        time.sleep(0.001)
        now = time.monotonic()
        worst[0] = max(worst[0], now - last)
        last = now
threading.Thread(target=tick, daemon=True).start()
"""
EAGER = ("--AgentApp.lazy_resume=off",)
#: Seconds after which an agent has made ready again what the next start takes.
_SETTLE = 1.0
#: Bytes that a kernel, its server and the page cache need besides the data.
_BESIDES = GIB

Note = Callable[[str], None]


class TooLittleMemory(Exception):
    """This machine cannot hold what is to be measured; the message has the numbers."""


def require_memory(needed: float, share: float = 1.0) -> None:
    """Raise :class:`TooLittleMemory` if ``needed`` bytes are more than a share of what is free."""
    free = psutil.virtual_memory().available
    if needed > free * share:
        raise TooLittleMemory(
            f"it needs {needed / GIB:.1f} GiB of memory, and of {free / GIB:.1f} GiB that are free "
            f"{share:.0%} are used at most"
        )


def filling(gib: float) -> str:
    """A cell that makes ``gib`` GiB of data."""
    return FILL.format(count=int(gib * GIB) // 8) + "None"


async def size(
    gib: float, directory: Path, repeats: int, agent: Agent, cold: bool, note: Note
) -> SizeResult:
    """Save and resume a kernel with ``gib`` GiB of random numbers, ``repeats`` times.

    Lazy and eager resumes take turns, of the same checkpoints.

    Parameters
    ----------
    directory:
        On the file system of the store; for the floor's file, and the kernels' working directory.
    cold:
        Whether checkpoints are to be read from the disk at the resume.
    """
    require_memory(2 * gib * GIB + _BESIDES)
    pauses: list[float] = []
    seen: list[float] = []
    saves: list[float] = []
    writes: list[float] = []
    reads: list[float] = []
    starts: list[float] = []
    resumes: dict[tuple[str, ...], list[ResumeResult]] = {(): [], EAGER: []}
    async with kernel(CONTAINER, directory) as original, connect() as client:
        await original.run(filling(gib)[: -len("None")] + TICKER + "None")
        expected = await original.run(CHECK)
        model = await client.kernel(original.id)
        bytes_saved = 0
        for turn in range(repeats):
            note(f"{gib:g} GiB, {turn + 1} of {repeats}")
            # Whoever comes first may find the memory of the other's files, freed and warm.
            if floor_first := turn % 2 == 1:
                await _floor(directory, bytes_saved, writes, reads, cold)
            await original.run("worst[0] = 0.0\nNone")
            began = time.perf_counter()
            checkpoint = await client.save(original.id)
            saves.append(time.perf_counter() - began)
            pauses.append(checkpoint.pause_seconds)
            seen.append(await original.run("worst[0]"))
            bytes_saved = checkpoint.memory_size
            if not floor_first:
                await _floor(directory, bytes_saved, writes, reads, cold)
            await asyncio.sleep(_SETTLE)
            async with another(client, model, directory) as fresh:
                await fresh.run("1")
                starts.append(time.perf_counter() - fresh.began)
            for options in ((), EAGER) if turn % 2 else (EAGER, ()):
                await asyncio.to_thread(agent.run, *options)
                await client.status()  # an agent that has just started answers when it is ready
                if cold:
                    for place in (agent.paths.store / checkpoint.id, agent.paths.packs):
                        await asyncio.to_thread(floor.forget, place)
                await asyncio.sleep(_SETTLE)
                resumes[options].append(await _resume(client, checkpoint, expected))
            await delete(client, checkpoint.id)
    await asyncio.to_thread(agent.run)
    return SizeResult(
        gib=gib,
        pause_s=statistics.median(pauses),
        pause_seen_s=statistics.median(seen),
        save_s=statistics.median(saves),
        cold_start_s=statistics.median(starts),
        lazy=_median(resumes[()]),
        eager=_median(resumes[EAGER]),
        bytes_held=checkpoint.memory_size + checkpoint.files_size,
        floor_write_s=min(writes),
        floor_read_s=min(reads),
        repeats=repeats,
    )


async def changes(
    gib: float, directory: Path, shares: Sequence[float], repeats: int, paths: Layout, note: Note
) -> list[ChangeResult]:
    """Save a kernel again and again, each time after a share of its memory has changed."""
    require_memory(gib * GIB + _BESIDES)
    results = []
    async with kernel(CONTAINER, directory) as one, connect() as agent:
        await one.run(filling(gib))
        saved = [await agent.save(one.id)]
        for share in shares:
            pauses, saves, more = [], [], []
            for turn in range(repeats):
                note(f"{gib:g} GiB, {share:.0%} changed, {turn + 1} of {repeats}")
                await one.run(CHANGE.format(share=share) + "None")
                before = await asyncio.to_thread(stored, paths)
                began = time.perf_counter()
                saved.append(await agent.save(one.id))
                saves.append(time.perf_counter() - began)
                pauses.append(saved[-1].pause_seconds)
                more.append(await asyncio.to_thread(added, paths, before))
            results.append(
                ChangeResult(
                    gib=gib,
                    changed=share,
                    pause_s=statistics.median(pauses),
                    save_s=statistics.median(saves),
                    bytes_added=int(statistics.median(more)),
                    repeats=repeats,
                )
            )
        for checkpoint in saved:
            await delete(agent, checkpoint.id)
    return results


async def precopied(
    gib: float, directory: Path, repeats: int, paths: Layout, note: Note
) -> PrecopyResult:
    """Copy a kernel ahead of its save, and save it; of what was there before nothing is left."""
    require_memory(gib * GIB + _BESIDES)
    ahead, pauses, saves, more = [], [], [], []
    async with kernel(CONTAINER, directory) as one, connect() as agent:
        await one.run(filling(gib))
        for turn in range(repeats):
            note(f"{gib:g} GiB, copied ahead, {turn + 1} of {repeats}")
            began = time.perf_counter()
            await agent.precopy(one.id)
            ahead.append(time.perf_counter() - began)
            before = await asyncio.to_thread(stored, paths)
            began = time.perf_counter()
            saved = await agent.save(one.id)
            saves.append(time.perf_counter() - began)
            pauses.append(saved.pause_seconds)
            more.append(await asyncio.to_thread(added, paths, before))
            await delete(agent, saved.id)
    return PrecopyResult(
        gib=gib,
        precopy_s=statistics.median(ahead),
        pause_s=statistics.median(pauses),
        save_s=statistics.median(saves),
        bytes_added=int(statistics.median(more)),
        repeats=repeats,
    )


def stored(paths: Layout) -> set[Path]:
    """The files of the store."""
    found = (*paths.store.rglob("*"), *paths.packs.rglob("*"))
    return {path for path in found if path.is_file()}


def added(paths: Layout, before: set[Path]) -> int:
    """Bytes that the store's new files have on the disk, holes not counted.

    What was there ``before`` is left out: of deleted checkpoints, it vanishes at some later time.
    """
    return sum(path.stat().st_blocks * 512 for path in stored(paths) - before)


async def start(directory: Path, repeats: int, note: Note) -> StartResult:
    """Start kernels in containers and plain ones, turn by turn."""
    times: dict[str, list[float]] = {CONTAINER: [], PLAIN: []}
    for turn in range(-1, repeats):  # the first turn only fills the page cache
        note(f"kernel start, {max(turn, 0) + 1} of {repeats}")
        for name, elapsed in times.items():
            began = time.perf_counter()
            async with kernel(name, directory) as one:
                await one.answer()
                if turn >= 0:
                    elapsed.append(time.perf_counter() - began)
    container, plain = (statistics.median(times[name]) for name in (CONTAINER, PLAIN))
    return StartResult(
        container_s=container, plain_s=plain, extra_s=container - plain, repeats=repeats
    )


async def delete(agent: AgentClient, checkpoint_id: str) -> None:
    """Delete a checkpoint, as soon as nothing reads it any more.

    Kernels that were resumed from it have all of their memory then.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            await agent.delete_checkpoint(checkpoint_id)
        except Conflict:  # the agent has waited some seconds before it says so
            if time.monotonic() > deadline:
                raise
        else:
            return


async def _resume(
    agent: AgentClient, checkpoint: CheckpointModel, expected: object
) -> ResumeResult:
    async with resumed(agent, checkpoint) as clone:
        await clone.run("data.size")
        first = time.perf_counter()
        if await clone.run(CHECK) != expected:
            raise RuntimeError("the resumed kernel does not hold what was saved")
        everything = time.perf_counter()
    return ResumeResult(
        engine_first_cell_s=first - clone.restored,
        first_cell_s=first - clone.began,
        all_touched_s=everything - clone.began,
    )


def _median(resumes: list[ResumeResult]) -> ResumeResult:
    return ResumeResult(
        engine_first_cell_s=statistics.median(one.engine_first_cell_s for one in resumes),
        first_cell_s=statistics.median(one.first_cell_s for one in resumes),
        all_touched_s=statistics.median(one.all_touched_s for one in resumes),
    )


async def _floor(
    directory: Path, size: int, writes: list[float], reads: list[float], cold: bool
) -> None:
    file = directory / "floor"
    writes.append(await asyncio.to_thread(floor.write_seconds, file, size))
    if cold:
        await asyncio.to_thread(floor.forget, file)
    reads.append(await asyncio.to_thread(floor.read_seconds, file))
    await asyncio.to_thread(file.unlink)
