"""Memory that reaches a checkpoint in the making before it is known where in it it belongs.

Pages come from the processes themselves, in any order, some of them more than once. CRIU's images
say later which of them make up which pages file.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .pack import PAGE, Array, bytes_of

#: In the place of a page's number in the file: nothing is known of it, it is zero, it is as in the
#: checkpoint's parent.
ABSENT, NOUGHT, KEPT = -1, -2, -3
#: Given a space, addresses in pages and a row for each: which are as in the checkpoint's parent.
Comparison = Callable[[str, Array, Array], Array]
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class Intake:
    """The pages that were taken so far. Safe to use from many threads.

    Parameters
    ----------
    path:
        A file for them, which is made with the first.
    unchanged:
        For those that are to be compared with the checkpoint's parent, if it has one.
    """

    def __init__(self, path: Path, unchanged: Comparison | None = None) -> None:
        self.path = path
        self._unchanged = unchanged
        self.pages = 0
        """How many the file has."""
        self.fd = -1
        self._lock = threading.Lock()
        #: By space, in the order in which they came: addresses of pages, and their numbers.
        self._came: dict[str, list[tuple[Array, Array]]] = {}

    def write(self, space: str, ranges: Array, content: Array, *, compare: bool = False) -> None:
        """Take pages. Where some were taken before, these are the ones that count. Blocking.

        Parameters
        ----------
        space:
            Whose memory it is; see :class:`~.pagemap.Run`.
        ranges:
            Their addresses [start, stop), in pages: (n, 2).
        content:
            A row for each page.
        compare:
            Whether to look if they are as in the checkpoint's parent, and not to write those.

        Raises
        ------
        OSError
            If they cannot be written.
        """
        addresses = _each(ranges)
        stored = content.view(np.uint64).any(axis=1)
        numbers = np.full(len(content), NOUGHT, np.int64)
        if compare and self._unchanged is not None:
            kept = stored & self._unchanged(space, addresses, content)
            numbers[kept] = KEPT
            stored &= ~kept
        if not stored.all():
            content = content[stored]
        with self._lock:
            if self.fd < 0 and len(content):
                self.fd = os.open(self.path, _NEW, 0o600)
            first, self.pages = self.pages, self.pages + len(content)
            numbers[stored] = np.arange(first, self.pages)
            self._came.setdefault(space, []).append((addresses, numbers))
        view, at = bytes_of(content), first * PAGE
        while view:
            count = os.pwrite(self.fd, view, at)
            at += count
            view = view[count:]

    def keep(self, space: str, ranges: Array) -> None:
        """Take pages as they are in the checkpoint's parent, unless they are written later."""
        addresses = _each(ranges)
        with self._lock:
            numbers = np.full(len(addresses), KEPT, np.int64)
            self._came.setdefault(space, []).append((addresses, numbers))

    def addresses(self) -> dict[str, Array]:
        """By space, the addresses (in pages, ascending) of all that was taken."""
        with self._lock:
            return {
                space: np.unique(np.concatenate([addresses for addresses, _ in came]))
                for space, came in self._came.items()
            }

    def sync(self) -> None:
        """Wait until what was written so far is on the disk. Blocking.

        Raises
        ------
        OSError
            If it is not.
        """
        if self.fd >= 0:
            os.fdatasync(self.fd)

    def numbers(self, space: str, addresses: Array) -> Array:
        """For each address (in pages, ascending) the page's number, or what is in its place."""
        found = np.full(len(addresses), ABSENT, np.int64)
        if len(addresses):
            for came, numbers in self._came.get(space, ()):
                at = np.minimum(np.searchsorted(addresses, came), len(addresses) - 1)
                known = addresses[at] == came
                # Of an index that comes twice the last one counts.
                found[at[known]] = numbers[known]
        return found

    def close(self) -> None:
        """Let go of the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _each(ranges: Array) -> Array:
    counts = ranges[:, 1] - ranges[:, 0]
    before = np.cumsum(counts) - counts
    return np.repeat(ranges[:, 0] - before, counts) + np.arange(int(counts.sum()))
