"""What the administrator lets ordinary users have. Root may have all.

Everything is checked before anything is touched: a save that would not fit freezes nothing.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase

from msgspec import Struct

from ..errors import NotAllowed, QuotaExceeded
from ..models import Limits

_SMALLEST_MEMORY = 16 * 2**20


class Quotas(Struct, frozen=True, kw_only=True):
    """The agent's configuration of it; sizes are bytes, 0 stands for no bound."""

    images: tuple[str, ...] = ("*",)
    """Patterns of the names of images that kernels may run in."""
    maxima: Limits = Limits()
    """What one kernel may ask for, and gets if it does not ask."""
    kernels: int = 0
    memory: int = 0
    """Of all kernels of a user together: the sum of their limits."""
    storage: int = 0
    """On the disk, of all checkpoints of a user."""

    def allows_image(self, uid: int, names: Iterable[str]) -> bool:
        """``names``: all names and the digest of an image."""
        return uid == 0 or any(fnmatchcase(n, p) for n in names if n for p in self.images)

    def check_image(self, uid: int, names: Iterable[str], shown: str) -> None:
        """As :meth:`allows_image`; ``shown`` is what an error calls it."""
        if self.allows_image(uid, names):
            return
        raise NotAllowed(
            f"The image {shown} is not for users of this host.",
            reason=f"Allowed are: {', '.join(self.images) or 'none'}.",
            hint="An administrator decides that with the agent's `allowed_images`.",
        )

    def check_limits(self, uid: int, wanted: Limits) -> None:
        """Whether a kernel may ask for so much."""
        if uid == 0:
            return
        for what, asked, most, unit in (
            ("memory", wanted.memory, self.maxima.memory, " bytes"),
            ("processors", wanted.cpus, self.maxima.cpus, ""),
            ("processes", wanted.pids, self.maxima.pids, ""),
        ):
            if asked is not None and most is not None and asked > most:
                raise NotAllowed(
                    f"A kernel may have {most}{unit} of {what} here, and this one asks for {asked}."
                    if unit
                    else f"A kernel may have {most} {what} here, and this one asks for {asked}.",
                    hint="Ask for less, or for nothing: then it gets what there is.",
                )

    def check_kernels(self, uid: int, running: int) -> None:
        """Whether one more may run beside ``running`` others."""
        if uid != 0 and self.kernels and running >= self.kernels:
            raise QuotaExceeded(
                f"You have {running} kernels, and may have {self.kernels}.",
                hint="Shut one down, or save it and let it sleep.",
            )

    def memory_left(self, uid: int, promised: int, wanted: int | None) -> int | None:
        """The memory limit of one more kernel, where others have ``promised`` in all."""
        if uid == 0 or not self.memory:
            return wanted
        left = self.memory - promised
        if left < max(wanted or 0, _SMALLEST_MEMORY):
            asked = _size(wanted or _SMALLEST_MEMORY)
            raise QuotaExceeded(
                f"This kernel needs {asked} of memory, and {_size(max(0, left))} are left of your "
                f"{_size(self.memory)}.",
                hint="Shut other kernels down, or ask for a smaller `mem_limit`.",
            )
        return wanted or left

    def fits(self, uid: int, used: int, needed: int) -> bool:
        """Whether a user may store ``needed`` bytes more."""
        return uid == 0 or not self.storage or used + needed <= self.storage

    def check_storage(self, uid: int, used: int, needed: int) -> None:
        """As :meth:`fits`; raises ``QuotaExceeded``."""
        if not self.fits(uid, used, needed):
            raise QuotaExceeded(
                f"This needs about {_size(needed)}, and your checkpoints have "
                f"{_size(used)} of your {_size(self.storage)} already.",
                hint="Delete checkpoints that are no longer needed: `jupyter checkpoints prune`.",
            )


#: Requests of one user that are worked on at a time, apart from long operations.
_SHORT = 16


class Turns:
    """So much of one user's is worked on at a time; the rest of his waits, and nobody else's."""

    def __init__(self, most: int) -> None:
        self._semaphores: defaultdict[int, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(most)
        )
        self._short: defaultdict[int, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(_SHORT)
        )

    async def short_turn(self, uid: int) -> Callable[[], None]:
        """Wait until a request may be worked on; to be called, once, when that is done."""
        if uid == 0:
            return lambda: None
        semaphore = self._short[uid]
        await semaphore.acquire()
        return semaphore.release

    @asynccontextmanager
    async def turn(self, uid: int) -> AsyncIterator[None]:
        """Held by one operation of an ordinary user; root waits for nobody."""
        if uid == 0:
            yield
            return
        async with self._semaphores[uid]:
            yield


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
