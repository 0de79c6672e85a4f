"""Finding what of a row of pages is new: not zero, and not as it was in an earlier checkpoint.

Pages are compared with the earlier ones themselves, which are verified while they are read: so no
checkpoint is ever built on something that is damaged, and no hash function has to be trusted with
that two pages are one. Everything is done for many pages at once, by a few threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
from blake3 import blake3

from .content import Advance
from .pack import EXTENT, PAGE, Array, Pack, PackDamaged, Scratch, bytes_of
from .pagemap import ZERO, PageMap

#: Pages that are looked at in one go: they and their counterparts fit into a processor's cache.
CHUNK = 512
_THREADS = max(2, min(8, os.cpu_count() or 1))
#: Packs that a checkpoint may share with earlier ones. What is in further ones is stored again, so
#: that a checkpoint after thousands of others is still read from a few files.
MAX_PACKS = 48


class Region(NamedTuple):
    """Pages of the row and where their content is."""

    first: int
    pages: int
    content: int | memoryview
    """A descriptor of a file that begins with the region's first page, or all of it."""


class Changes(NamedTuple):
    """What was found; ``zero`` and ``same`` have an entry for each page of the row."""

    zero: Array
    same: Array
    starts: Array
    """The first pages of the extents that are new, ascending."""
    pages: Array
    hashes: bytes
    """Of all the new extents, 32 bytes each."""


def surplus(pages: PageMap) -> list[int]:
    """The packs that a checkpoint built on this one may not share with it, by index."""
    held = np.zeros(len(pages.packs), np.int64)
    stored = pages.segments[pages.segments["pack"] != ZERO]
    np.add.at(held, stored["pack"], stored["pages"].astype(np.int64))
    return [int(index) for index in np.argsort(-held)[MAX_PACKS:]]


class Earlier:
    """The checkpoint that a new one is compared with. Safe to use from many threads.

    Raises
    ------
    PackDamaged
        Never: what cannot be read is taken for different.
    """

    def __init__(self, directory: Path, pages: PageMap) -> None:
        self.map = pages
        self.pack, self.number = pages.pages()
        self._directory = directory
        self._lock = threading.Lock()
        self._open: dict[int, Pack | None] = {}
        self._stack = ExitStack()
        for index in surplus(pages):
            self._open[index] = None

    def __enter__(self) -> Earlier:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    def same(self, pages: Array, ours: Array, scratch: Scratch) -> Array:
        """Which rows of ``ours`` are equal to ``pages`` of the earlier checkpoint's row.

        ``pages`` has -1 where there is nothing to compare. An extent that is equal as a whole is
        intact by that; others are verified before anything of them counts as equal.
        """
        found = np.zeros(len(pages), bool)
        pack = np.where(pages >= 0, self.pack[pages], np.uint32(ZERO))
        for index in np.unique(pack).tolist():
            opened = self._pack(index) if index != ZERO else None
            if opened is None:
                continue
            rows = np.flatnonzero(pack == index)
            try:
                fetched = opened.fetch(self.number[pages[rows]], scratch)
            except PackDamaged:
                continue
            mine = ours[rows] if len(rows) < len(ours) else ours
            equal = (mine.view(np.uint64) == fetched.pages().view(np.uint64)).all(axis=1)
            met = np.zeros(len(fetched.content), np.int64)
            met[fetched.rows[equal]] = 1
            counts = np.add.reduceat(met, fetched.firsts)
            whole = np.diff(fetched.firsts, append=len(met))
            bad = fetched.damaged((counts > 0) & (counts < whole))
            found[rows] = equal & ~bad[fetched.which]
        return found

    def _pack(self, index: int) -> Pack | None:
        with self._lock:
            if index not in self._open:
                try:
                    self._open[index] = pack = Pack(self._directory, self.map.packs[index])
                    self._stack.callback(pack.close)
                except PackDamaged:
                    self._open[index] = None
            return self._open[index]


def find_changes(
    length: int,
    regions: Sequence[Region],
    earlier: Earlier | None,
    counterparts: Array | None,
    advance: Advance,
    unwanted: Array | None = None,
) -> Changes:
    """Look at all regions, which together are a row of ``length`` pages.

    Parameters
    ----------
    counterparts:
        For each page the page of ``earlier``'s row that it may be equal to, or -1.
    advance:
        Called with bytes done, by one thread at a time.
    unwanted:
        Pages that nobody needs, which count as zero.

    Raises
    ------
    OSError
        If the content cannot be read.
    """
    zero, same = np.zeros(length, bool), np.zeros(length, bool)
    local = threading.local()

    def look(chunk: Region, offset: int) -> tuple[Array, Array, list[bytes]]:
        if not hasattr(local, "buffers"):
            local.buffers = Scratch(), Scratch()
        ours = local.buffers[0].rows(chunk.pages)
        if isinstance(chunk.content, int):
            _fill(chunk.content, bytes_of(ours), offset)
        else:
            ours[:] = np.frombuffer(chunk.content, np.uint8, ours.size, offset).reshape(ours.shape)
        words = ours.view(np.uint64)
        where = slice(chunk.first, chunk.first + chunk.pages)
        zero[where] = ~words.any(axis=1)
        if unwanted is not None:
            zero[where] |= unwanted[where]
        if earlier is not None and counterparts is not None:
            wanted = np.where(zero[where], -1, counterparts[where])
            if (wanted >= 0).any():
                same[where] = earlier.same(wanted, ours, local.buffers[1])
        starts, pages = _extents(~(zero[where] | same[where]))
        view = bytes_of(ours)
        hashes = [
            blake3(view[start * PAGE : (start + count) * PAGE]).digest()
            for start, count in zip(starts.tolist(), pages.tolist(), strict=True)
        ]
        return starts + chunk.first, pages, hashes

    chunks = [
        (Region(region.first + at, min(CHUNK, region.pages - at), region.content), at * PAGE)
        for region in regions
        for at in range(0, region.pages, CHUNK)
    ]
    found = []
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="changes") as pool:
        futures = [pool.submit(look, chunk, offset) for chunk, offset in chunks]
        try:
            for (chunk, _), future in zip(chunks, futures, strict=True):
                found.append(future.result())
                advance(chunk.pages * PAGE)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return Changes(
        zero,
        same,
        np.concatenate([np.empty(0, np.int64), *(starts for starts, _, _ in found)]),
        np.concatenate([np.empty(0, np.int64), *(pages for _, pages, _ in found)]),
        b"".join(digest for _, _, hashes in found for digest in hashes),
    )


def _extents(new: Array) -> tuple[Array, Array]:
    """(starts, pages) of the runs of what is new, none longer than an extent."""
    edges = np.flatnonzero(np.diff(new, prepend=False, append=False))
    starts, stops = edges[::2], edges[1::2]
    counts = -(-(stops - starts) // EXTENT)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    first = np.repeat(starts, counts) + within * EXTENT
    return first, np.minimum(EXTENT, np.repeat(stops, counts) - first)


def _fill(fd: int, buffer: memoryview, offset: int) -> None:
    """Read all of ``buffer``; zeros behind the end of the file."""
    done = 0
    while done < len(buffer):
        count = os.preadv(fd, [buffer[done:]], offset + done)
        if count == 0:
            buffer[done:] = bytes(len(buffer) - done)
            return
        done += count
