"""Reading file content into BLAKE3, fast and without surprises.

Content is read, not mapped: mapping is a little faster while everything is in the page cache, but
a read error or a file cut short under a mapping kills the process with SIGBUS, and the reader here
is the agent. Reading the next piece while the last one is hashed wins back most of the difference.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from blake3 import blake3

from .store import FileRecord

#: Bytes read at once. Measured: smaller pieces starve BLAKE3's threads, larger gain nothing.
PIECE = 4 * 2**20
#: Zeros are left out of a file's sparse digest in units of this size.
UNIT = 64 * 2**10
_ZEROS = bytes(UNIT)

Advance = Callable[[int], None]


class ContentHasher:
    """Hashes files one after the other, with a reader thread and two buffers of its own.

    Used as a context manager, by one thread at a time.
    """

    def __init__(self) -> None:
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="content-reader")
        self._buffers: list[memoryview] = []

    def __enter__(self) -> ContentHasher:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._reader.shutdown()

    def digest(self, fd: int, advance: Advance | None = None) -> tuple[bytes, int]:
        """The BLAKE3 digest of an open file, as ``b3sum`` gives it, and how many bytes that was.

        ``advance`` is called with the size of each piece that is done.

        Raises
        ------
        OSError
            If the file cannot be read.
        """
        hasher = blake3(max_threads=blake3.AUTO)
        done = 0
        for piece in self._read(fd, 0, os.fstat(fd).st_size):
            hasher.update(piece)
            done += len(piece)
            if advance:
                advance(len(piece))
        return hasher.digest(), done

    def sparse_digest(self, fd: int, advance: Advance | None = None) -> bytes:
        """A digest of an open file's content that costs nothing for holes.

        A hole and the zeros it stands for are the same, so a sparse file and a full copy of it have
        one digest: that of the data that is not zero (in aligned units of :data:`UNIT`), of where
        it is, and of the size. Users make files of many terabytes with hardly anything in them.
        Same ``advance`` and errors as :meth:`digest`.
        """
        hasher = blake3(max_threads=blake3.AUTO)
        size = os.fstat(fd).st_size
        runs: list[int] = []
        passed = 0
        for start, stop in _extents(fd, size):
            offset = start
            for piece in self._read(fd, start, stop):
                for first, end in _not_zero(piece):
                    hasher.update(piece[first:end])
                    # Runs that touch are one run: how the file lies on the disk must not matter.
                    if runs and runs[-1] == offset + first:
                        runs[-1] = offset + end
                    else:
                        runs += (offset + first, offset + end)
                offset += len(piece)
                if advance:
                    advance(offset - passed)
                passed = offset
        if advance:
            advance(size - passed)
        where = struct.pack(f"<{len(runs) + 1}Q", size, *runs)
        return blake3(hasher.digest() + where).digest()

    def _read(self, fd: int, start: int, stop: int) -> Iterator[memoryview]:
        """Content from ``start`` to ``stop``; each piece is good until the next one is asked for.

        Ends early where the file does. Pieces are full, but for the last one.
        """
        if stop - start <= UNIT:
            content = os.pread(fd, stop - start, start)
            if content:
                yield memoryview(content)
            return
        if not self._buffers:
            self._buffers = [memoryview(bytearray(PIECE)) for _ in range(2)]
        turn = 0
        pending = self._ahead(fd, start, stop, turn)
        while count := pending.result():
            piece = self._buffers[turn][:count]
            start += count
            turn ^= 1
            last = start >= stop or count < PIECE
            if not last:
                pending = self._ahead(fd, start, stop, turn)
            yield piece
            if last:
                return

    def _ahead(self, fd: int, start: int, stop: int, turn: int) -> Future[int]:
        buffer = self._buffers[turn][: min(PIECE, stop - start)]
        return self._reader.submit(os.preadv, fd, [buffer], start)


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where data is, in whole units, in order and without overlap."""
    stop = 0
    while stop < size:
        try:
            data = os.lseek(fd, stop, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # only a hole is left
            raise
        start = max(stop, data // UNIT * UNIT)
        stop = min(size, -(-os.lseek(fd, data, os.SEEK_HOLE) // UNIT) * UNIT)
        yield start, stop


def _not_zero(piece: memoryview) -> Iterator[tuple[int, int]]:
    """The units of a piece that hold anything but zeros, neighbours taken together."""
    first = None
    for at in range(0, len(piece), UNIT):
        unit = piece[at : at + UNIT]
        if unit[0] == 0 and bytes(unit) == _ZEROS[: len(unit)]:
            if first is not None:
                yield first, at
            first = None
        elif first is None:
            first = at
    if first is not None:
        yield first, len(piece)


def file_records(images: Path) -> list[FileRecord]:
    """What a manifest says of plain files: paths from the directory's parent on, in order.

    Called where process images come from or go to an archive. Blocking.
    """
    records = []
    with ContentHasher() as hasher:
        for path in images.rglob("*"):
            if path.is_file():
                fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    digest, size = hasher.digest(fd)
                finally:
                    os.close(fd)
                name = str(path.relative_to(images.parent))
                records.append(FileRecord(path=name, size=size, digest=digest.hex()))
    return sorted(records, key=lambda record: record.path)
