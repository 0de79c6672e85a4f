"""What is known of the memory of a container's processes from one save to the next."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from . import dirty, process, ranges
from .dirty import Tracker, Untracked
from .ranges import Array

log = logging.getLogger(__name__)


class Watch:
    """The processes of one container of which is known what they write. Safe to use from threads.

    It is kept in the agent's memory only: for the next agent everything counts as written.
    """

    def __init__(self) -> None:
        self.checkpoint = ""
        """The one with whose window, or the pre-copy with which, the watching began that goes on.

        Empty after a failed one.
        """
        self._lock = threading.Lock()
        self._trackers: dict[tuple[int, int], Tracker] = {}
        self._closed = False

    def unchanged(self, pid: int) -> Array:
        """What a process has not written since the last call; all of it may have been, at first.

        Ranges as of :mod:`.ranges`, in bytes. It is watched from now on, if that is possible.
        Called while it runs. Blocking.
        """
        with self._lock:
            found = self._ask(pid)
            if len(found) or self._closed or not dirty.available():
                return found
            # It is new, or it has become another program.
            self._forget(pid)
            try:
                tracker = Tracker(pid)
            except Untracked as why:
                log.info("What is written is not known: %s", why)
                return ranges.EMPTY
            self._trackers[pid, process.start_time(pid) or 0] = tracker
            return self._ask(pid)

    def watches(self, pid: int) -> bool:
        """Whether what a process writes is known from the last call on."""
        with self._lock:
            return (pid, process.start_time(pid) or 0) in self._trackers

    def unchanged_of_frozen(self, pid: int) -> Array:
        """The same of a process that stands still: it is not watched if it was not before."""
        with self._lock:
            return self._ask(pid, Tracker.unchanged_while_frozen)

    def _ask(self, pid: int, unchanged: Callable[[Tracker], Array] = Tracker.unchanged) -> Array:
        tracker = self._trackers.get((pid, process.start_time(pid) or 0))
        try:
            return ranges.EMPTY if tracker is None else ranges.normal(unchanged(tracker))
        except Untracked as why:
            log.info("What is written is not known any more: %s", why)
            self._forget(pid)
            return ranges.EMPTY

    def _forget(self, pid: int) -> None:
        for key in [key for key in self._trackers if key[0] == pid]:
            self._trackers.pop(key).close()

    def keep_only(self, pids: set[int]) -> None:
        """Forget processes that have ended. Blocking."""
        with self._lock:
            for pid in {pid for pid, _ in self._trackers} - pids:
                self._forget(pid)

    def close(self) -> None:
        """Watch nothing any more. Blocking."""
        with self._lock:
            self._closed = True
            while self._trackers:
                self._trackers.popitem()[1].close()
