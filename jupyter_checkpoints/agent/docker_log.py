"""What Docker Engine has logged of one container, read from the files of its ``json-file`` driver.

The Engine's own way to follow a log (``GET /containers/{id}/logs?follow=1``) falls silent for good
when the files are rotated faster than they are read
(https://github.com/moby/moby/issues/37646), and with ``since`` it cannot tell two lines of one
instant apart. The files can be read by position; what the driver does to them is simple: it
appends lines of JSON, and at the size limit renames ``LOG`` to ``LOG.1``, ``LOG.1`` to ``LOG.2``,
and so on.
"""

import contextlib
import os
import stat
from pathlib import Path

import msgspec

_CHUNK = 1 << 20


class _Entry(msgspec.Struct):
    """One line of the files: a line of output, or a part of one without its newline."""

    log: str = ""


_ENTRY = msgspec.json.Decoder(_Entry)


class DockerLog:
    """Reads one container's log from where ``position`` says, or from the oldest file that is left.

    Used by the Docker engine, which copies the output into the kernel's own log, by one thread
    only. ``path`` is the container's ``LogPath``, ``files`` the driver's ``max-file``; ``position``
    is what :attr:`position` said, to an earlier agent perhaps.
    """

    def __init__(self, path: Path, files: int, position: str = "") -> None:
        self._names = [path, *(path.with_name(f"{path.name}.{n}") for n in range(1, files))]
        self._fd = -1
        self._offset = 0
        self._rest = b""
        self._resume(position)

    @property
    def position(self) -> str:
        """How far :meth:`read` has come."""
        return f"{os.fstat(self._fd).st_ino} {self._offset}" if self._fd >= 0 else ""

    def read(self) -> bytes:
        """Some of the output that follows, or nothing, if that was all for now."""
        while True:
            if self._fd < 0 and not self._next():
                return b""
            data = os.pread(self._fd, _CHUNK, self._offset + len(self._rest))
            if data:
                output = self._decode(data)
                if output:
                    return output
            elif not self._next():
                return b""

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _decode(self, data: bytes) -> bytes:
        *lines, self._rest = (self._rest + data).split(b"\n")
        output = []
        for line in lines:
            self._offset += len(line) + 1
            # A disk that was full leaves half a line.
            with contextlib.suppress(msgspec.DecodeError):
                output.append(_ENTRY.decode(line).log.encode())
        return b"".join(output)

    def _resume(self, position: str) -> None:
        inode, _, offset = position.partition(" ")
        for name in self._names if position else ():
            with contextlib.suppress(FileNotFoundError):
                fd = self._open(name)
                at = int(offset)
                # The number may meanwhile belong to another file.
                if os.fstat(fd).st_ino == int(inode) and (
                    at == 0 or os.pread(fd, 1, at - 1) == b"\n"
                ):
                    self._fd, self._offset = fd, at
                    return
                os.close(fd)

    def _next(self) -> bool:
        """Go on to the file that follows the one that was read to its end; tell if there is one.

        Called at the end of a file. That it has another name by now says that nothing more is
        written to it, so one more look finds its last lines.
        """
        found = self._inodes()
        if self._fd < 0:
            place = max((n for n, inode in enumerate(found) if inode), default=-1)
        else:
            own = os.fstat(self._fd)
            if found[0] in (0, own.st_ino):
                return False  # still the newest, or in the midst of being renamed
            if own.st_size > self._offset + len(self._rest):
                return True  # its last lines
            # Of what was thrown away unread nothing is left; the oldest file is what follows.
            after = found.index(own.st_ino) if own.st_ino in found else len(found)
            place = max((n for n in range(after) if found[n]), default=-1)
        if place < 0:
            return False
        try:
            fd = self._open(self._names[place])
        except FileNotFoundError:
            return self._next()  # renamed meanwhile
        if os.fstat(fd).st_ino != found[place] or self._inodes() != found:
            os.close(fd)
            return self._next()
        self.close()
        self._fd, self._offset, self._rest = fd, 0, b""
        return True

    def _inodes(self) -> list[int]:
        found = []
        for name in self._names:
            try:
                found.append(name.stat().st_ino)
            except FileNotFoundError:
                found.append(0)
        return found

    @staticmethod
    def _open(name: Path) -> int:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise FileNotFoundError(name)
        return fd
