"""A pack: one append-only file with pages of one or many checkpoints.

::

    extents…     up to 16 pages each, as they are or compressed by Zstandard, at any offset
    what         per extent: first page, number of pages, BLAKE3 of its content      (the identity)
    where        per extent: offset, stored bytes, codec
    trailer      magic, number of extents, nonce, BLAKE3 of all since the last extent

The pages of a pack are numbered, with gaps: checkpoints name them by pack and number, and neither
changes when extents are stored in another way. A pack's id is the hash of its nonce and of *what*,
so who has the id has the hash of every page. The last three parts are written a second time beside
the pack (``.index``): that is what is read first, and each can be made from the other.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PAGE = 4096
#: Pages of one extent, at most: what is read and hashed for a single page of it.
EXTENT = 16
#: What compression has to gain for an extent to be stored compressed.
_GAIN = 0.9
_LEVEL = 1
_MAGIC = b"JRCPACK1"
CODEC_RAW, _ZSTD = 0, 1
_WHAT = np.dtype([("start", "<u8"), ("pages", "<u4"), ("hash", "V32")])
_WHERE = np.dtype([("offset", "<u8"), ("stored", "<u4"), ("codec", "<u4")])
_TRAILER = np.dtype([("magic", "S8"), ("count", "<u8"), ("nonce", "V16"), ("digest", "V32")])

Array = NDArray[Any]


class PackDamaged(Exception):
    """Something of a pack is missing or is not what was written."""


class Table(NamedTuple):
    """What and where the extents of a pack are."""

    nonce: bytes
    what: Array
    where: Array

    @property
    def id(self) -> str:
        return blake3(self.nonce + self.what.tobytes()).hexdigest()

    def encode(self) -> bytes:
        body = self.what.tobytes() + self.where.tobytes()
        head = (_MAGIC, len(self.what), self.nonce)
        trailer = np.array([(*head, b"")], _TRAILER)
        digest = blake3(body + trailer.tobytes()[:-32]).digest()
        return body + np.array([(*head, digest)], _TRAILER).tobytes()


def read_table(fd: int, pack_id: str) -> Table:
    """The table at the end of an index or a pack.

    Raises
    ------
    PackDamaged, OSError
        If it is not the whole table of that pack.
    """
    size = os.fstat(fd).st_size
    encoded = _trailer(fd)
    trailer = np.frombuffer(encoded, _TRAILER)[0]
    count = int(trailer["count"])
    length = count * (_WHAT.itemsize + _WHERE.itemsize)
    if trailer["magic"] != _MAGIC or length > size - _TRAILER.itemsize:
        raise PackDamaged("its table cannot be found")
    body = _pread(fd, size - _TRAILER.itemsize - length, length)
    if blake3(body + encoded[:-32]).digest() != trailer["digest"].tobytes():
        raise PackDamaged("its table is not what was written")
    table = Table(
        trailer["nonce"].tobytes(),
        np.frombuffer(body, _WHAT, count),
        np.frombuffer(body, _WHERE, count, count * _WHAT.itemsize),
    )
    if table.id != pack_id:
        raise PackDamaged("it is another pack")
    return table


def _trailer(fd: int) -> bytes:
    return _pread(fd, os.fstat(fd).st_size - _TRAILER.itemsize, _TRAILER.itemsize)


class Pack:
    """An open pack. Safe to use from many threads.

    Raises
    ------
    PackDamaged
        If the file is missing, or neither of its tables is right.
    """

    def __init__(self, directory: Path, pack_id: str) -> None:
        self.id = pack_id
        self._fd = -1
        try:
            self._fd = os.open(
                pack_path(directory, pack_id), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            )
            self.table = self._table(index_path(directory, pack_id))
        except OSError as error:
            self.close()
            raise PackDamaged(f"pack {pack_id}: {error.strerror}") from error
        except PackDamaged as error:
            self.close()
            raise PackDamaged(f"pack {pack_id}: {error}") from error
        # Copies, so that searching them does not step over all else in the table each time.
        self.starts = np.ascontiguousarray(self.table.what["start"])
        self.ends = self.starts + self.table.what["pages"]
        where = self.table.where
        self._end = int((where["offset"] + where["stored"]).max()) if len(where) else 0

    def _table(self, index: Path) -> Table:
        """The one beside the pack, unless the pack was stored in another way since."""
        try:
            with opened(index) as fd:
                if _trailer(fd) == _trailer(self._fd):
                    return read_table(fd, self.id)
        except (OSError, PackDamaged):
            return read_table(self._fd, self.id)
        try:
            return read_table(self._fd, self.id)
        except PackDamaged:
            with opened(index) as fd:
                return read_table(fd, self.id)

    @staticmethod
    def own_table(fd: int, pack_id: str) -> bytes:
        """The table at the end of a pack, for its index. Errors as :func:`read_table`."""
        return read_table(fd, pack_id).encode()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def is_in(self, fd: int) -> bool:
        """Whether this is the file that the pack is read from."""
        return os.path.sameopenfile(self._fd, fd)

    def plain(self, low: int, high: int) -> bool:
        """Whether these extents are as they are in the file, each page at its number."""
        where = self.table.where[low:high]
        offsets = self.starts[low:high] * np.uint64(PAGE)
        return bool(((where["codec"] == CODEC_RAW) & (where["offset"] == offsets)).all())

    def complete(self) -> bool:
        """Whether the file is long enough for all its extents; cheap."""
        return os.fstat(self._fd).st_size >= self._end

    def read(self, first: int, buffer: memoryview) -> None:
        """Fill ``buffer`` (whole pages) from page ``first`` on; each byte is verified.

        Raises
        ------
        PackDamaged
            If a page is missing or is not what was written.
        """
        stop = first + len(buffer) // PAGE
        if stop == first:
            return
        low, high = self.extents(first, stop)
        what, where = self.table.what[low:high], self.table.where[low:high]
        starts, pages = what["start"].tolist(), what["pages"].tolist()
        offsets, raw = where["offset"].tolist(), (where["codec"] == CODEC_RAW).tolist()
        at = 0
        while at < len(starts):
            # Whole extents that lie behind each other are read in one go, to where they belong.
            run, end = at, offsets[at]
            while (
                run < len(starts)
                and raw[run]
                and offsets[run] == end
                and starts[run] >= first
                and starts[run] + pages[run] <= stop
            ):
                end += pages[run] * PAGE
                run += 1
            if run > at:
                piece = buffer[(starts[at] - first) * PAGE :][: end - offsets[at]]
                self._fill(piece, offsets[at])
                for number in range(at, run):
                    size = pages[number] * PAGE
                    if blake3(piece[:size]).digest() != what["hash"][number].tobytes():
                        raise self._changed(low + number)
                    piece = piece[size:]
                at = run
            else:
                begin, end = max(first, starts[at]), min(stop, starts[at] + pages[at])
                content = self._decoded(low + at)
                if blake3(content).digest() != what["hash"][at].tobytes():
                    raise self._changed(low + at)
                buffer[(begin - first) * PAGE : (end - first) * PAGE] = content[
                    (begin - starts[at]) * PAGE : (end - starts[at]) * PAGE
                ]
                at += 1

    def extents(self, first: int, stop: int) -> tuple[int, int]:
        """The range of extents that hold the pages from ``first`` to ``stop``.

        Raises
        ------
        PackDamaged
            If the pack does not have all of them.
        """
        # Of the starts' own type, or all of them would be converted for each search.
        low = int(np.searchsorted(self.starts, np.uint64(first), "right")) - 1
        high = int(np.searchsorted(self.starts, np.uint64(stop), "left"))
        if low >= 0:
            ends = self.ends[low:high]
            if (ends[:-1] == self.starts[low + 1 : high]).all() and ends[-1] >= stop:
                return low, high
        raise PackDamaged(f"pack {self.id}: has no pages {first} to {stop}")

    def fetch(self, numbers: Array, scratch: Scratch) -> Fetched:
        """Read the extents that hold the pages ``numbers``, without verifying anything yet.

        Raises
        ------
        PackDamaged
            If a page is missing or cannot be read.
        """
        at = np.searchsorted(self.starts, numbers, "right") - 1
        if (at < 0).any() or (numbers >= self.ends[at]).any():
            raise PackDamaged(f"pack {self.id}: does not have all pages")
        extents, which = np.unique(at, return_inverse=True)
        pages = self.table.what["pages"][extents].astype(np.int64)
        firsts = np.cumsum(pages) - pages
        content = scratch.rows(int(pages.sum()))
        where = self.table.where[extents]
        offsets, stored = where["offset"], where["stored"].astype(np.uint64)
        raw = where["codec"] == CODEC_RAW
        cut = np.ones(len(extents), bool)
        cut[1:] = (offsets[1:] != offsets[:-1] + stored[:-1]) | ~raw[1:] | ~raw[:-1]
        starts = np.flatnonzero(cut)
        stops = np.append(firsts[starts[1:]], len(content))
        view = bytes_of(content)
        for extent, first, stop in zip(
            starts.tolist(), firsts[starts].tolist(), stops, strict=True
        ):
            piece = view[first * PAGE : int(stop) * PAGE]
            if raw[extent]:
                self._fill(piece, int(offsets[extent]))
            else:
                piece[:] = self._decoded(int(extents[extent]))
        rows = firsts[which] + (numbers - self.starts[at]).astype(np.int64)
        return Fetched(self, extents, firsts, content, which, rows)

    def _decoded(self, number: int) -> bytes:
        """One extent, which is not verified yet; always all of it."""
        what, where = self.table.what[number], self.table.where[number]
        size = int(what["pages"]) * PAGE
        try:
            stored = _pread(self._fd, int(where["offset"]), int(where["stored"]))
            if where["codec"] == _ZSTD:
                stored = zstd.ZstdDecompressor().decompress(stored, max_length=size)
        except OSError as error:
            raise PackDamaged(f"pack {self.id}: cannot be read: {error.strerror}") from error
        except (zstd.ZstdError, EOFError) as error:
            raise self._changed(number) from error
        if len(stored) != size:
            raise self._changed(number)
        return stored

    def _fill(self, buffer: memoryview, offset: int) -> None:
        done = 0
        try:
            while done < len(buffer):
                count = os.preadv(self._fd, [buffer[done:]], offset + done)
                if count == 0:
                    raise PackDamaged(f"pack {self.id}: was cut short")
                done += count
        except OSError as error:
            raise PackDamaged(f"pack {self.id}: cannot be read: {error.strerror}") from error

    def _changed(self, extent: int) -> PackDamaged:
        return PackDamaged(f"pack {self.id}: extent {extent} is not what was written")


class Scratch:
    """Memory that is used again and again by one thread."""

    def __init__(self) -> None:
        self._rows = np.empty((0, PAGE), np.uint8)

    def rows(self, count: int) -> Array:
        """``count`` pages with anything in them; what was given out before is no longer good."""
        if len(self._rows) < count:
            self._rows = np.empty((count, PAGE), np.uint8)
        return self._rows[:count]


class Fetched(NamedTuple):
    """Extents of a pack, as they were read."""

    pack: Pack
    extents: Array
    """Which ones, ascending."""
    firsts: Array
    """Where each begins in ``content``."""
    content: Array
    """One row for each page."""
    which: Array
    """For each page asked for its extent, as an index into ``extents``."""
    rows: Array
    """For each page asked for its row of ``content``."""

    def pages(self) -> Array:
        """The content of the pages asked for, without a copy where they lie in a row."""
        first = int(self.rows[0])
        if (np.diff(self.rows) == 1).all():
            return self.content[first : first + len(self.rows)]
        return self.content[self.rows]

    def damaged(self, wanted: Array) -> Array:
        """Which of the extents are not what was written, of those that are ``wanted``."""
        found = np.zeros(len(self.extents), bool)
        view = bytes_of(self.content)
        what = self.pack.table.what
        for index in np.flatnonzero(wanted).tolist():
            number = int(self.extents[index])
            first = int(self.firsts[index]) * PAGE
            size = int(what["pages"][number]) * PAGE
            digest = blake3(view[first : first + size]).digest()
            found[index] = digest != what["hash"][number].tobytes()
        return found

    def require_intact(self) -> None:
        """``PackDamaged`` if any extent is not what was written."""
        bad = self.damaged(np.ones(len(self.extents), bool))
        if bad.any():
            number = int(self.extents[np.argmax(bad)])
            raise PackDamaged(f"pack {self.pack.id}: extent {number} is not what was written")


class PackWriter:
    """A pack in the making. Used by one thread.

    Parameters
    ----------
    path:
        A new file, or one with ``pages`` pages that are to be part of the pack where they lie.
    """

    def __init__(self, path: Path, pages: int = 0) -> None:
        self.path = path
        self.next_page = pages
        self._end = pages * PAGE
        self._what: list[Array] = []
        self._where: list[Array] = []
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.fchmod(self.fd, 0o600)

    def adopt(self, starts: Array, pages: Array, hashes: bytes) -> None:
        """Extents that are in the file already, each page at its number times its size."""
        self._add(starts, pages, hashes, starts * np.uint64(PAGE), pages * np.uint32(PAGE))

    def append(self, buffers: Iterable[memoryview], pages: Array, hashes: bytes) -> int:
        """Extents as they are, written behind the last; the number of their first page.

        ``buffers`` together hold the extents, one after the other.
        """
        sizes = pages.astype(np.uint64)
        before = np.cumsum(sizes) - sizes
        first = self.next_page
        offsets = np.uint64(self._end) + before * np.uint64(PAGE)
        for buffer in buffers:
            self._write(buffer)
        self._add(np.uint64(first) + before, pages, hashes, offsets, pages * np.uint32(PAGE))
        self.next_page += int(sizes.sum())
        return first

    def append_compressed(self, content: memoryview, hashed: bytes) -> int:
        """One extent, compressed if that gains enough; the number of its first page."""
        stored, codec = packed(content)
        offset, first = self._end, self.next_page
        self._write(stored)
        pages = len(content) // PAGE
        self._what.append(np.array([(first, pages, hashed)], _WHAT))
        self._where.append(np.array([(offset, len(stored), codec)], _WHERE))
        self.next_page += pages
        return first

    def _write(self, content: memoryview) -> None:
        while content:
            count = os.pwrite(self.fd, content, self._end)
            self._end += count
            content = content[count:]

    def _add(
        self, starts: Array, pages: Array, hashes: bytes, offsets: Array, stored: Array
    ) -> None:
        what = np.empty(len(starts), _WHAT)
        what["start"], what["pages"] = starts, pages
        what["hash"] = np.frombuffer(hashes, "V32")
        where = np.zeros(len(starts), _WHERE)
        where["offset"], where["stored"] = offsets, stored
        self._what.append(what)
        self._where.append(where)

    def finish(self) -> str:
        """Write the tables, flush all of it to the disk, close it; the pack's id.

        The index lies beside it then, as ``PATH.index``, and is not flushed: it can be made again.
        """
        empty = [np.empty(0, _WHAT)], [np.empty(0, _WHERE)]
        table = Table(
            secrets.token_bytes(16),
            np.concatenate(self._what or empty[0]),
            np.concatenate(self._where or empty[1]),
        )
        encoded = table.encode()
        self._write(memoryview(encoded))
        os.fsync(self.fd)
        write_index(index_beside(self.path), encoded)
        self.close()
        return table.id

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def packed(content: memoryview) -> tuple[memoryview, int]:
    """An extent as it is to be stored, compressed if that gains enough, and its codec."""
    compressed = zstd.compress(content, _LEVEL)
    if len(compressed) < _GAIN * len(content):
        return memoryview(compressed), _ZSTD
    return content, CODEC_RAW


def bytes_of(array: Array) -> memoryview:
    """The memory of a contiguous array."""
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def pack_path(directory: Path, pack_id: str) -> Path:
    return directory / f"{pack_id}.pack"


def index_path(directory: Path, pack_id: str) -> Path:
    return directory / f"{pack_id}.index"


def index_beside(path: Path) -> Path:
    return path.with_name(path.name + ".index")


def write_index(path: Path, encoded: bytes) -> None:
    """Make an index of an encoded table, all of it or none."""
    temporary = path.with_name(path.name + ".tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(encoded)
    temporary.rename(path)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A plain file, open for reading."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _pread(fd: int, offset: int, size: int) -> bytes:
    content = os.pread(fd, size, offset) if offset >= 0 else b""
    if len(content) != size:
        raise PackDamaged("it was cut short")
    return content
