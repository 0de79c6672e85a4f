"""The page map of one checkpoint: where each page of each of its images is.

All images of a checkpoint, one after the other and each filled up to whole pages, are one row of
pages. The map says of every page of that row in which pack it is and under which number there
(*segments*), or that it is zero; and for memory, whose it is and at which address it was (*runs*),
so that the next save of the same processes can be compared with this one.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from blake3 import blake3
from msgspec import Struct
from numpy.typing import NDArray

from .pack import PAGE

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: The pack of pages that are zero.
ZERO = 0xFFFFFFFF
_MAGIC = b"JRCMAP1\n"
_SEGMENT = np.dtype([("pages", "<u4"), ("pack", "<u4"), ("first", "<u8")])
_RUN = np.dtype([("page", "<u8"), ("pages", "<u8"), ("space", "<u4"), ("address", "<u8")])

Array = NDArray[Any]


class Run(NamedTuple):
    """Pages that lie behind each other in a pages file and in somebody's memory."""

    space: str
    """Whose memory: any name that is the same in the next save of the same processes."""
    address: int
    """Of the first page, in pages."""
    pages: int


class MappedFile(Struct, frozen=True, array_like=True):
    """An image: its name, its size in bytes, and where in the row of pages it begins."""

    name: str
    size: int
    first: int

    @property
    def pages(self) -> int:
        return -(-self.size // PAGE)


class Row:
    """The row of pages of one checkpoint: its images, and whose memory is where in it.

    Parameters
    ----------
    spaces, runs:
        Names of spaces, and an array of runs that names them by their index.
    """

    def __init__(self, files: list[MappedFile], spaces: list[str], runs: Array) -> None:
        self.files = files
        self.spaces = spaces
        self.runs = runs
        self.length = files[-1].first + files[-1].pages if files else 0
        self._by_address: dict[str, tuple[Array, Array]] = {}

    @classmethod
    def of(cls, files: Sequence[tuple[str, int]], memory: Mapping[str, Sequence[Run]]) -> Row:
        """Of names and sizes, in the order of the row, and what is known of some of the files.

        What is known of a file is left out where it is not about exactly its pages.
        """
        mapped: list[MappedFile] = []
        names: dict[str, int] = {}
        rows: list[tuple[int, int, int, int]] = []
        at = 0
        for name, size in files:
            file = MappedFile(name, size, at)
            mapped.append(file)
            runs = memory.get(name, ())
            if sum(run.pages for run in runs) * PAGE == size:
                page = at
                for run in runs:
                    space = names.setdefault(run.space, len(names))
                    rows.append((page, run.pages, space, run.address))
                    page += run.pages
            at += file.pages
        return cls(mapped, list(names), np.array(rows, _RUN))

    def file(self, name: str) -> MappedFile | None:
        return next((file for file in self.files if file.name == name), None)

    def counterparts(self, before: Row) -> Array:
        """For each page the page of ``before`` that it has to be compared with, or -1.

        Memory: the one of the same owner at the same address. Other images: the one at the same
        place of the file with the same name.
        """
        found = np.full(self.length, -1, np.int64)
        for space, name in enumerate(self.spaces):
            if name not in before.spaces:
                continue
            pages, addresses = self._addresses(space)
            found[pages] = before.at(name, addresses)
        for file in self.files:
            other = before.file(file.name)
            if other is not None and not self._has_runs(file):
                count = min(file.pages, other.pages)
                found[file.first : file.first + count] = np.arange(other.first, other.first + count)
        return found

    def at(self, space: str, addresses: Array) -> Array:
        """The page at each address of a space, or -1."""
        if space not in self.spaces:
            return np.full(len(addresses), -1, np.int64)
        pages, known = self._sorted(space)
        at = np.minimum(np.searchsorted(known, addresses), len(known) - 1)
        return np.where(known[at] == addresses, pages[at], -1)

    def _sorted(self, space: str) -> tuple[Array, Array]:
        """As :meth:`_addresses`, by address; made once."""
        if space not in self._by_address:
            pages, addresses = self._addresses(self.spaces.index(space))
            order = np.argsort(addresses, kind="stable")
            self._by_address[space] = pages[order], addresses[order]
        return self._by_address[space]

    def _addresses(self, space: int) -> tuple[Array, Array]:
        """Page of the row and address of all pages of one space."""
        runs = self.runs[self.runs["space"] == space]
        counts = runs["pages"].astype(np.int64)
        ends = np.cumsum(counts)
        within = np.arange(counts.sum()) - np.repeat(ends - counts, counts)
        return (
            np.repeat(runs["page"].astype(np.int64), counts) + within,
            np.repeat(runs["address"].astype(np.int64), counts) + within,
        )

    def without_runs(self) -> list[tuple[str, int]]:
        """Names and sizes of the files that are nobody's memory."""
        return [(file.name, file.size) for file in self.files if not self._has_runs(file)]

    def _has_runs(self, file: MappedFile) -> bool:
        first = self.runs["page"]
        return bool(((first >= file.first) & (first < file.first + file.pages)).any())


def runs_of(space: str, addresses: Array) -> list[Run]:
    """The runs of memory at these addresses: in pages, ascending."""
    first = np.flatnonzero(np.diff(addresses, prepend=-2) != 1)
    counts = np.diff(first, append=len(addresses))
    return [
        Run(space, address, pages)
        for address, pages in zip(addresses[first].tolist(), counts.tolist(), strict=True)
    ]


class _Head(Struct, frozen=True, kw_only=True):
    files: list[MappedFile]
    packs: list[str]
    spaces: list[str]
    segments: int
    runs: int


class PageMap:
    """Where each page of a row is. Immutable.

    Parameters
    ----------
    packs, segments:
        Ids of packs, and an array of segments that names them by their index. No segment goes
        beyond a file.
    """

    def __init__(self, row: Row, packs: list[str], segments: Array) -> None:
        self.row = row
        self.packs = packs
        self.segments = segments
        #: Where each segment ends, in the row.
        self.ends = np.cumsum(segments["pages"], dtype=np.int64)

    @classmethod
    def of(cls, row: Row, packs: list[str], pack: Array, number: Array) -> PageMap:
        """From the index of the pack and the number there of each page."""
        cut = np.ones(row.length, bool)
        cut[1:] = (pack[1:] != pack[:-1]) | (
            (number[1:] != number[:-1] + np.uint64(1)) & (pack[1:] != ZERO)
        )
        cut[[file.first for file in row.files if file.size]] = True
        starts = np.flatnonzero(cut)
        segments = np.empty(len(starts), _SEGMENT)
        segments["pages"] = np.diff(starts, append=row.length)
        segments["pack"], segments["first"] = pack[starts], number[starts]
        segments["first"][segments["pack"] == ZERO] = 0
        # Packs that are not needed any more are not named any more.
        used = [index for index in np.unique(segments["pack"]).tolist() if index != ZERO]
        stored = segments["pack"] != ZERO
        segments["pack"][stored] = np.searchsorted(used, segments["pack"][stored])
        return cls(row, [packs[index] for index in used], segments)

    def encode(self) -> bytes:
        head = msgspec.json.encode(
            _Head(
                files=self.row.files,
                packs=self.packs,
                spaces=self.row.spaces,
                segments=len(self.segments),
                runs=len(self.row.runs),
            )
        )
        body = (
            struct.pack("<Q", len(head)) + head + self.segments.tobytes() + self.row.runs.tobytes()
        )
        return _MAGIC + zstd.compress(body, 3)

    @classmethod
    def decode(cls, encoded: bytes) -> PageMap:
        if not encoded.startswith(_MAGIC):
            raise ValueError("it is no page map")
        try:
            body = zstd.decompress(encoded[len(_MAGIC) :])
            (size,) = struct.unpack_from("<Q", body)
            head = msgspec.json.decode(body[8 : 8 + size], type=_Head)
            at = 8 + size
            segments = np.frombuffer(body, _SEGMENT, head.segments, at)
            runs = np.frombuffer(body, _RUN, head.runs, at + segments.nbytes)
        except (zstd.ZstdError, struct.error, msgspec.MsgspecError) as error:
            raise ValueError(str(error)) from error
        found = cls(Row(head.files, head.spaces, runs), head.packs, segments)
        if found.length != found.row.length:
            raise ValueError("it is not about all pages")
        return found

    @property
    def length(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def between(self, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """(page of the row, pages, pack, first number) for all pages from ``start`` to ``stop``."""
        at = int(np.searchsorted(self.ends, start, "right"))
        while start < stop:
            end = int(self.ends[at])
            segment = self.segments[at]
            skipped = start - (end - int(segment["pages"]))
            taken = min(stop, end) - start
            yield start, taken, int(segment["pack"]), int(segment["first"]) + skipped
            start += taken
            at += 1

    def stored(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """(first, stop) of the pages between ``start`` and ``stop`` that are not zero."""
        began = start
        for at, pages, pack, _ in self.between(start, stop):
            if pack == ZERO:
                if began < at:
                    yield began, at
                began = at + pages
        if began < stop:
            yield began, stop

    def pages(self) -> tuple[Array, Array]:
        """Pack and number of each page of the row."""
        counts = self.segments["pages"]
        within = np.arange(self.row.length) - np.repeat(self.ends - counts, counts)
        return np.repeat(self.segments["pack"], counts), (
            np.repeat(self.segments["first"], counts) + within.astype(np.uint64)
        )

    def addresses(self, space: str, without: Sequence[int]) -> Array:
        """The addresses of a space's pages, as ranges [start, stop): (n, 2), ascending.

        Those in the packs ``without`` (by index) are left out.
        """
        if space not in self.row.spaces:
            return np.empty((0, 2), np.int64)
        pages, addresses = self.row._addresses(self.row.spaces.index(space))
        if without:
            addresses = addresses[~np.isin(self.pages()[0][pages], without)]
        addresses = np.sort(addresses)
        cut = np.flatnonzero(np.diff(addresses) != 1)
        first = np.concatenate([[0], cut + 1])[: len(addresses)].astype(np.int64)
        last = np.concatenate([cut, [len(addresses) - 1]])[: len(first)].astype(np.int64)
        return np.stack([addresses[first], addresses[last] + 1], axis=1)

    def used(self, pack: str) -> Array:
        """(first, stop) of the numbers in a pack that this map names; they may overlap."""
        if pack not in self.packs:
            return np.empty((0, 2), np.uint64)
        mine = self.segments[self.segments["pack"] == self.packs.index(pack)]
        return np.stack([mine["first"], mine["first"] + mine["pages"]], axis=1)

    def digest(self, file: MappedFile) -> str:
        """What vouches for the content of a file without reading it: the names of all its pages."""
        low, high = np.searchsorted(self.ends, [file.first, file.first + file.pages], "right")
        names = struct.pack("<Q", file.size) + "".join(self.packs).encode()
        return f"map:{blake3(names + self.segments[low:high].tobytes()).hexdigest()}"
