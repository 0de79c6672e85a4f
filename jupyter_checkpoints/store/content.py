"""Reading file content into BLAKE3, fast and without surprises.

Content is read, not mapped: mapping is a little faster while everything is in the page cache, but
a read error or a file cut short under a mapping kills the process with SIGBUS, and the reader here
is the agent. Reading the next piece while the last one is hashed wins back most of the difference.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from blake3 import blake3

#: Bytes read at once. Measured: smaller pieces starve BLAKE3's threads, larger gain nothing.
PIECE = 4 * 2**20
_ZEROS = bytes(PIECE)


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

    def digest(self, fd: int, advance: Callable[[int], None] | None = None) -> tuple[bytes, int]:
        """The BLAKE3 digest of an open file from its start to its end, and how many bytes that was.

        A hole counts as the zeros it stands for, so that a sparse file and its full copy are equal,
        but nothing is read for it. ``advance`` is called with the size of each piece done.

        Raises
        ------
        OSError
            If the file cannot be read.
        """
        size = os.fstat(fd).st_size
        if size <= PIECE:
            content = os.pread(fd, PIECE + 1, 0)
            # A file that grows while it is read is followed to where it ends, as below.
            if len(content) <= PIECE:
                if advance:
                    advance(len(content))
                return blake3(content).digest(), len(content)
        hasher = blake3(max_threads=blake3.AUTO)
        done = 0
        for piece in self._pieces(fd):
            hasher.update(piece)
            done += len(piece)
            if advance:
                advance(len(piece))
        return hasher.digest(), done

    def _pieces(self, fd: int) -> Iterator[memoryview]:
        """Content in order; each piece is good until the next one is asked for."""
        if not self._buffers:
            self._buffers = [memoryview(bytearray(PIECE)) for _ in range(2)]
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        offset = 0
        while True:
            data = _seek(fd, offset, os.SEEK_DATA)
            end = os.fstat(fd).st_size
            for hole in _split(offset, end if data is None else data):
                yield memoryview(_ZEROS)[:hole]
            if data is None:
                return
            offset = data
            hole_start = _seek(fd, data, os.SEEK_HOLE)
            stop = end if hole_start is None else hole_start
            for piece in self._read(fd, offset, stop):
                yield piece
                offset += len(piece)
            if offset < stop:
                return

    def _read(self, fd: int, offset: int, stop: int) -> Iterator[memoryview]:
        turn = 0

        def ahead(at: int) -> Future[int]:
            buffer = self._buffers[turn][: min(PIECE, stop - at)]
            return self._reader.submit(os.preadv, fd, [buffer], at)

        pending = ahead(offset)
        while count := pending.result():
            piece = self._buffers[turn][:count]
            offset += count
            turn ^= 1
            last = offset >= stop
            if not last:
                pending = ahead(offset)
            yield piece
            if last:
                return


def _seek(fd: int, offset: int, whence: int) -> int | None:
    """Where the next data or hole begins; ``None`` when there is none up to the end of the file."""
    try:
        return os.lseek(fd, offset, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


def _split(start: int, stop: int) -> Iterator[int]:
    while start < stop:
        length = min(PIECE, stop - start)
        yield length
        start += length
