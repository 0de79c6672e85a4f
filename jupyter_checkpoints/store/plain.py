"""The pages of a checkpoint that is kept as plain files."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from .content import ContentHasher
from .source import PagesDescription, PageSource, damaged


class PlainPages(PagesDescription, frozen=True, kw_only=True, tag="plain"):
    """Pages files as CRIU wrote them, in one directory."""

    checkpoint: str
    directory: str
    files: dict[str, tuple[int, str]]
    """Size and BLAKE3 in hex, by name."""

    def open(self) -> PlainPageSource:
        return PlainPageSource(self)


class PlainPageSource(PageSource):
    """Made by :meth:`PlainPages.open`.

    There is one hash for a whole file, so the first to read a file waits until all of it was read.
    """

    def __init__(self, description: PlainPages) -> None:
        self._description = description
        self._locks = {name: threading.Lock() for name in description.files}
        self._verified: dict[str, int] = {}

    def files(self) -> dict[str, int]:
        return {name: size for name, (size, _) in self._description.files.items()}

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        size = self.files().get(name, 0)
        if not 0 <= offset <= offset + len(buffer) <= size:
            raise ValueError(f"{name} has {size} bytes")
        fd = self._intact(name)
        done = 0
        try:
            while done < len(buffer):
                count = os.preadv(fd, [buffer[done:]], offset + done)
                if count == 0:
                    raise self._damaged(name, "it was cut short meanwhile")
                done += count
        except OSError as error:
            raise self._damaged(name, f"cannot be read: {error.strerror}") from error

    def _intact(self, name: str) -> int:
        """A descriptor of the file, which was compared with its hash when it was opened."""
        with self._locks[name]:
            if name not in self._verified:
                self._verified[name] = self._open(name)
            return self._verified[name]

    def _open(self, name: str) -> int:
        size, digest = self._description.files[name]
        path = Path(self._description.directory) / name
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                with ContentHasher() as hasher:
                    found, length = hasher.digest(fd)
                if (found.hex(), length) != (digest, size):
                    raise self._damaged(name, "its content is not what was saved")
            except BaseException:
                os.close(fd)
                raise
        except OSError as error:
            raise self._damaged(name, f"cannot be read: {error.strerror}") from error
        return fd

    def _damaged(self, name: str, reason: str) -> Exception:
        return damaged(self._description.checkpoint, f"{name}: {reason}")

    def close(self) -> None:
        while self._verified:
            os.close(self._verified.popitem()[1])
