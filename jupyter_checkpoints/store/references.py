"""Which checkpoints need which packs, and giving back what none needs any more.

Counted in memory; what is on the disk of it are the page maps themselves, from which it is counted
again at each start. Packs that nobody needs, and extents in packs that are still needed, go only
after a time of grace.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from ..errors import CheckpointsError
from .pack import PAGE, Array, Pack, PackDamaged, index_path, pack_path
from .pagemap import PageMap

log = logging.getLogger(__name__)

_PUNCH_HOLE, _KEEP_SIZE = 2, 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class References:
    """The packs in one directory. Safe to use from many threads.

    Parameters
    ----------
    directory:
        Of the packs.
    map_of:
        The page map of a checkpoint; raises any error of ours if it cannot be read.
    """

    def __init__(self, directory: Path, map_of: Callable[[str], PageMap]) -> None:
        self._directory = directory
        self._map_of = map_of
        self._lock = threading.Lock()
        self._holders: dict[str, set[str]] = {}
        self._pinned: Counter[str] = Counter()
        #: Since when a pack, or a part of it, has not been needed.
        self._unneeded: dict[str, float] = {}
        #: Checkpoints whose map is unknown: while there are any, nothing is given back.
        self._unknown: set[str] = set()

    def add(self, checkpoint_id: str, packs: Iterable[str]) -> None:
        """A checkpoint that needs these packs."""
        with self._lock:
            for pack in packs:
                self._holders.setdefault(pack, set()).add(checkpoint_id)

    def add_unknown(self, checkpoint_id: str) -> None:
        """A checkpoint that may need any pack."""
        with self._lock:
            self._unknown.add(checkpoint_id)

    def remove(self, checkpoint_id: str) -> None:
        """A checkpoint is gone."""
        now = time.monotonic()
        with self._lock:
            self._unknown.discard(checkpoint_id)
            for pack, holders in self._holders.items():
                if checkpoint_id in holders:
                    holders.discard(checkpoint_id)
                    self._unneeded[pack] = now

    def pin(self, packs: Iterable[str]) -> None:
        """Somebody builds on these packs: nothing of them goes until :meth:`unpin`."""
        with self._lock:
            self._pinned.update(list(packs))

    def unpin(self, packs: Iterable[str]) -> None:
        """Undo one :meth:`pin`."""
        with self._lock:
            self._pinned.subtract(list(packs))

    def of(self, checkpoint_id: str) -> list[str]:
        """The packs a checkpoint needs."""
        with self._lock:
            return [pack for pack, holders in self._holders.items() if checkpoint_id in holders]

    def strangers(self) -> None:
        """Take for unneeded what lies in the directory and is not known. For the start only."""
        with self._lock:
            for path in self._directory.glob("*.pack"):
                if not self._holders.get(path.stem) and not self._pinned[path.stem]:
                    self._unneeded.setdefault(path.stem, 0)

    def give_back(self, grace: float) -> int:
        """Remove what has not been needed for ``grace`` seconds; how many packs are gone."""
        removed = 0
        with self._lock:
            if self._unknown:
                return 0
            before = time.monotonic() - grace
            due = [pack for pack, since in self._unneeded.items() if since <= before]
            for pack in due:
                if self._pinned[pack] > 0:
                    continue
                del self._unneeded[pack]
                try:
                    if self._holders.get(pack):
                        self._thin(pack)
                    else:
                        self._holders.pop(pack, None)
                        # Its index last: an index alone is nothing.
                        pack_path(self._directory, pack).unlink(missing_ok=True)
                        index_path(self._directory, pack).unlink(missing_ok=True)
                        removed += 1
                except OSError as error:
                    log.warning("Pack %s could not be given back: %s", pack, error)
        return removed

    def _thin(self, pack_id: str) -> None:
        """Give back the extents that no checkpoint needs."""
        try:
            pack = Pack(self._directory, pack_id)
        except PackDamaged as error:
            log.warning("Pack %s stays as it is: %s", pack_id, error)
            return
        try:
            where = pack.table.where[self._unused(pack)]
        except CheckpointsError as error:
            log.warning("Pack %s stays as it is: %s", pack_id, error)
            return
        finally:
            pack.close()
        fd = os.open(pack_path(self._directory, pack_id), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            punch(fd, where["offset"], where["offset"] + where["stored"])
        finally:
            os.close(fd)

    def unused(self, pack: Pack) -> Array:
        """For each extent of a pack whether no checkpoint needs it.

        Raises
        ------
        CheckpointsError
            If the page map of one that needs the pack cannot be read.
        """
        with self._lock:
            return self._unused(pack)

    def _unused(self, pack: Pack) -> Array:
        edges = np.zeros(len(pack.starts) + 1, np.int64)
        for checkpoint_id in self._holders.get(pack.id, ()):
            used = self._map_of(checkpoint_id).used(pack.id)
            np.add.at(edges, np.searchsorted(pack.starts, used[:, 0], "right") - 1, 1)
            np.add.at(edges, np.searchsorted(pack.starts, used[:, 1], "left"), -1)
        return np.asarray(np.cumsum(edges[:-1]) == 0)

    def at_rest(self) -> list[str]:
        """The packs that are needed, all of them, and on which nobody builds just now."""
        with self._lock:
            if self._unknown:
                return []
            return [
                pack
                for pack, holders in self._holders.items()
                if holders and not self._pinned[pack] and pack not in self._unneeded
            ]


def punch(fd: int, starts: Array, stops: Array) -> None:
    """Make holes of byte ranges, in ascending order; what is no whole block of them stays.

    Nothing happens where the file system cannot do it.
    """
    if not len(starts):
        return
    joined = np.ones(len(starts), bool)
    joined[1:] = starts[1:] != stops[:-1]
    first = np.flatnonzero(joined)
    last = np.append(first[1:], len(starts)) - 1
    begins = -(-starts[first].astype(np.int64) // PAGE) * PAGE
    ends = stops[last].astype(np.int64) // PAGE * PAGE
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        if end > begin and _LIBC.fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, begin, end - begin):
            return
