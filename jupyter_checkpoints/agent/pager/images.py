"""What CRIU's images say about pages that may come later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..criu import entries, wire
from .missing import Extent
from .userfaultfd import PAGE

# pagemap.proto: pagemap_head.pages_id = 1; pagemap_entry: vaddr = 1, nr_pages = 5 (in 32 bits: 2),
# flags = 4. mm.proto: mm_entry.vmas = 14; vma.proto: end = 2.
_PARENT, _LAZY, _PRESENT = 1, 2, 4


def lazy_extents(images: Path) -> dict[int, list[Extent]]:
    """The memory that CRIU leaves to a pager, by pid and in order.

    An extent never reaches over the end of a memory area: no call may.

    Raises
    ------
    OSError, ValueError
        If the images are missing, or not what is expected.
    """
    pids = [
        int(path.stem.removeprefix("pagemap-"))
        for path in images.glob("pagemap-*.img")
        if path.stem.removeprefix("pagemap-").isdigit()
    ]
    return {pid: _extents(images, pid) for pid in pids}


def _extents(images: Path, pid: int) -> list[Extent]:
    head, *rest = entries(images / f"pagemap-{pid}.img")
    file = f"pages-{_number(dict(wire(head)).get(1))}.img"
    ends = set(_area_ends(images / f"mm-{pid}.img"))
    found: list[Extent] = []
    offset = 0
    for entry in rest:
        fields = dict(wire(entry))
        start, flags = _number(fields.get(1)), _number(fields.get(4))
        size = _number(fields.get(5) or fields.get(2)) * PAGE
        if flags & _PARENT:
            raise ValueError("pages in an earlier checkpoint")
        if not flags & _PRESENT:
            raise ValueError("pages that were not saved")
        if flags & _LAZY:
            last = found[-1] if found else None
            if last and last.end == start and start not in ends and _follows(last, offset):
                found[-1] = last._replace(end=start + size)
            else:
                found.append(Extent(start, start + size, file, offset))
        offset += size
    return [piece for extent in found for piece in _split(extent, ends)]


def _number(value: int | bytes | None) -> int:
    if isinstance(value, bytes):
        raise ValueError("bytes where a number should be")
    return value or 0


def _follows(extent: Extent, offset: int) -> bool:
    return extent.offset + extent.end - extent.start == offset


def _area_ends(path: Path) -> Iterator[int]:
    for entry in entries(path):
        for number, value in wire(entry):
            if number == 14 and isinstance(value, bytes):
                yield _number(dict(wire(value)).get(2))


def _split(extent: Extent, ends: set[int]) -> Iterator[Extent]:
    start = extent.start
    for end in sorted(end for end in ends if extent.start < end < extent.end):
        yield extent.part(start, end)
        start = end
    yield extent.part(start, extent.end)
