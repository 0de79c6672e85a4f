"""Which pages of a process are still to come, and where in the checkpoint they are."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Extent(NamedTuple):
    """Memory from ``start`` to ``end`` that lies in a file of the checkpoint, from ``offset``."""

    start: int
    end: int
    file: str
    offset: int

    def part(self, start: int, end: int) -> Extent:
        """What of it is between two addresses, of which at least one byte must be."""
        start, end = max(start, self.start), min(end, self.end)
        return Extent(start, end, self.file, self.offset + start - self.start)


class Missing:
    """Extents that do not overlap, in order. Addresses and sizes are whole pages."""

    def __init__(self, extents: Iterable[Extent] = ()) -> None:
        self._extents = sorted(extents)
        self._starts = [extent.start for extent in self._extents]

    def __iter__(self) -> Iterator[Extent]:
        return iter(self._extents)

    def __bool__(self) -> bool:
        return bool(self._extents)

    def copy(self) -> Missing:
        """The same for a child that was forked now."""
        return Missing(self._extents)

    def find(self, start: int, end: int) -> list[Extent]:
        """What is missing between two addresses."""
        first, last = self._indices(start, end)
        return [extent.part(start, end) for extent in self._extents[first:last]]

    def next(self, address: int) -> int | None:
        """The first missing byte at or after an address."""
        at = bisect_right(self._starts, address)
        if at and self._extents[at - 1].end > address:
            return address
        return self._starts[at] if at < len(self._starts) else None

    def drop(self, start: int, end: int) -> None:
        """Nothing is missing between two addresses any more."""
        first, last = self._indices(start, end)
        if first < last:
            touched = self._extents[first:last]
            kept = []
            if touched[0].start < start:
                kept.append(touched[0].part(touched[0].start, start))
            if touched[-1].end > end:
                kept.append(touched[-1].part(end, touched[-1].end))
            self._extents[first:last] = kept
            self._starts[first:last] = [extent.start for extent in kept]

    def move(self, old: int, new: int, size: int) -> None:
        """mremap(2): what was at ``old`` is at ``new`` now, and all else there is gone."""
        moved = [
            extent._replace(start=extent.start - old + new, end=extent.end - old + new)
            for extent in self.find(old, old + size)
        ]
        self.drop(old, old + size)
        self.drop(new, new + size)
        at = bisect_left(self._starts, new)
        self._extents[at:at] = moved
        self._starts[at:at] = [extent.start for extent in moved]

    def _indices(self, start: int, end: int) -> tuple[int, int]:
        """From the first extent that reaches into a range to the first behind it."""
        first = bisect_right(self._starts, start) - 1
        if first < 0 or self._extents[first].end <= start:
            first += 1
        return first, max(first, bisect_left(self._starts, end))
