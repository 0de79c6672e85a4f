"""The measurements of our own: save and resume at several sizes, and starting a kernel."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jupyter_checkpoints.client import connect
from jupyter_checkpoints.layout import Layout
from jupyter_checkpoints.models import CheckpointModel

from . import floor
from .kernels import kernel
from .results import ChangeResult, SizeResult, StartResult

GIB = 2**30
CONTAINER = "checkpoints-python3"
PLAIN = "python3"

#: Random numbers cannot be compressed or guessed, and two sums of them tell whether all are there.
FILL = """
import numpy as np
data = np.random.default_rng().integers(0, 2**64 - 1, size={count}, dtype=np.uint64)
"""
CHECK = "(int(np.bitwise_xor.reduce(data)), int(data.sum()))"
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

Note = Callable[[str], None]


async def size(
    gib: float, directory: Path, repeats: int, store: Layout | None, note: Note
) -> SizeResult:
    """Save and resume a kernel with ``gib`` GiB of random numbers, ``repeats`` times.

    Parameters
    ----------
    directory:
        On the file system of the store; for the floor's file, and the kernels' working directory.
    store:
        Where the checkpoints are, if these are to be read from the disk at the resume.
    """
    pauses: list[float] = []
    seen: list[float] = []
    saves: list[float] = []
    resumes: list[float] = []
    touched: list[float] = []
    writes: list[float] = []
    reads: list[float] = []
    async with kernel(CONTAINER, directory) as original, connect() as agent:
        await original.run(FILL.format(count=int(gib * GIB) // 8) + TICKER + "None")
        expected = await original.run(CHECK)
        bytes_saved = 0
        for turn in range(repeats):
            note(f"{gib:g} GiB, {turn + 1} of {repeats}")
            # Whoever comes first may find the memory of the other's files, freed and warm.
            if floor_first := turn % 2 == 1:
                await _floor(directory, bytes_saved, writes, reads, store is not None)
            await original.run("worst[0] = 0.0\nNone")
            began = time.perf_counter()
            checkpoint = await agent.save(original.id)
            saves.append(time.perf_counter() - began)
            pauses.append(checkpoint.pause_seconds)
            seen.append(await original.run("worst[0]"))
            bytes_saved = checkpoint.memory_size
            if not floor_first:
                await _floor(directory, bytes_saved, writes, reads, store is not None)
            if store is not None:
                for place in (store.store / checkpoint.id, store.packs):
                    await asyncio.to_thread(floor.forget, place)
            first, everything = await _resume(checkpoint, directory, expected)
            resumes.append(first)
            touched.append(everything)
            await agent.delete_checkpoint(checkpoint.id)
    held = checkpoint.memory_size + checkpoint.files_size
    write, read = min(writes), min(reads)
    save, resume = statistics.median(saves), statistics.median(resumes)
    pause = statistics.median(pauses)
    return SizeResult(
        gib=gib,
        pause_over_floor=pause / write,
        save_over_floor=save / write,
        resume_over_floor=resume / read,
        held_over_data=held / (gib * GIB) if gib else None,
        pause_s=pause,
        pause_seen_s=statistics.median(seen),
        save_s=save,
        resume_first_cell_s=resume,
        resume_all_touched_s=statistics.median(touched),
        bytes_held=held,
        floor_write_s=write,
        floor_read_s=read,
        repeats=repeats,
    )


#: Writes into a share of all pages, here and there.
CHANGE = """
pages = data[:data.size // 512 * 512].reshape(-1, 512)
some = np.random.default_rng().permutation(len(pages))[:int(len(pages) * {share})]
pages[some, 0] += np.uint64(1)
del pages, some
"""


async def changes(
    gib: float, directory: Path, shares: Sequence[float], paths: Layout, note: Note
) -> list[ChangeResult]:
    """Save a kernel again and again, each time after a share of its memory has changed."""
    results = []
    async with kernel(CONTAINER, directory) as one, connect() as agent:
        await one.run(FILL.format(count=int(gib * GIB) // 8) + "None")
        saved = [await agent.save(one.id)]
        for share in shares:
            note(f"{gib:g} GiB, {share:.0%} changed")
            await one.run(CHANGE.format(share=share) + "None")
            before = await asyncio.to_thread(_held, paths)
            began = time.perf_counter()
            saved.append(await agent.save(one.id))
            elapsed = time.perf_counter() - began
            results.append(
                ChangeResult(
                    gib=gib,
                    changed=share,
                    pause_s=saved[-1].pause_seconds,
                    save_s=elapsed,
                    bytes_added=await asyncio.to_thread(_held, paths) - before,
                )
            )
        for checkpoint in saved:
            await agent.delete_checkpoint(checkpoint.id)
    return results


def _held(paths: Layout) -> int:
    files = [*paths.store.rglob("*"), *paths.packs.rglob("*")]
    return sum(path.stat().st_blocks * 512 for path in files if path.is_file())


async def _floor(
    directory: Path, size: int, writes: list[float], reads: list[float], cold: bool
) -> None:
    file = directory / "floor"
    writes.append(await asyncio.to_thread(floor.write_seconds, file, size))
    if cold:
        await asyncio.to_thread(floor.forget, file)
    reads.append(await asyncio.to_thread(floor.read_seconds, file))
    await asyncio.to_thread(file.unlink)


async def _resume(
    checkpoint: CheckpointModel, directory: Path, expected: object
) -> tuple[float, float]:
    """Seconds to the first cell's reply, and to that of a cell that reads all memory."""
    began = time.perf_counter()
    async with kernel(CONTAINER, directory, restore_from=checkpoint.id) as clone:
        await clone.run("data.size")
        elapsed = time.perf_counter() - began
        if await clone.run(CHECK) != expected:
            raise RuntimeError("the resumed kernel does not hold what was saved")
        everything = time.perf_counter() - began
    return elapsed, everything


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
