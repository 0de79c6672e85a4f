"""What was copied ahead of the saves of running kernels.

A pre-copy is no checkpoint: nobody sees it, and it only makes the next save of its kernel shorter.
So it gives way to all that needs its space, and is given up when it is not used for long, when its
kernel has ended, and with the agent.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from msgspec import Struct

from ..store.store import Store

log = logging.getLogger(__name__)


class _Precopy(Struct, frozen=True):
    id: str
    uid: int
    made: float


class Precopies:
    """The pre-copies of all kernels; one for each at most. Methods block, and are thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._made: dict[str, _Precopy] = {}

    def of(self, kernel_id: str) -> str:
        """The id of a kernel's, empty if it has none (any more)."""
        with self._lock:
            precopy = self._made.get(kernel_id)
        return precopy.id if precopy is not None and self._store.held(precopy.id) else ""

    def add(self, kernel_id: str, uid: int, precopy_id: str) -> None:
        """A pre-copy was made; the kernel's earlier one is given up."""
        with self._lock:
            earlier = self._made.get(kernel_id)
            self._made[kernel_id] = _Precopy(precopy_id, uid, time.monotonic())
        if earlier is not None:
            self._store.forget(earlier.id)

    def give_up(self, kernel_id: str) -> None:
        """Nothing happens if the kernel has none."""
        with self._lock:
            precopy = self._made.pop(kernel_id, None)
        if precopy is not None:
            self._store.forget(precopy.id)

    def give_up_of(self, uid: int) -> None:
        """All of one user's."""
        for kernel_id in self._which(lambda precopy: precopy.uid == uid):
            self.give_up(kernel_id)

    def give_up_old(self, seconds: float) -> None:
        """Those that were made so long ago."""
        before = time.monotonic() - seconds
        for kernel_id in self._which(lambda precopy: precopy.made <= before):
            log.info("What was copied ahead of a save of kernel %s is given up", kernel_id)
            self.give_up(kernel_id)

    def held(self, owns: Callable[[int], bool]) -> dict[tuple[int, int], int]:
        """Bytes on the disk by file, as of :meth:`Store.held`, of all of some users'."""
        found: dict[tuple[int, int], int] = {}
        with self._lock:
            ids = [precopy.id for precopy in self._made.values() if owns(precopy.uid)]
        for precopy_id in ids:
            found |= self._store.held(precopy_id)
        return found

    def _which(self, wanted: Callable[[_Precopy], bool]) -> list[str]:
        with self._lock:
            return [kernel_id for kernel_id, precopy in self._made.items() if wanted(precopy)]
