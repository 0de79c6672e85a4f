"""Look at kernels, memory and disk from time to time, and save what may soon be lost."""

from __future__ import annotations

import asyncio
import shutil
import time
from datetime import UTC, datetime

from .bound import Bound
from .client import connect
from .context import Context, Part
from .keeping import Keeping
from .resuming import Resuming
from .saving import Saving


class Watching(Part):
    """See the module."""

    def __init__(
        self, context: Context, saving: Saving, resuming: Resuming, keeping: Keeping
    ) -> None:
        super().__init__(context)
        self._saving = saving
        self._resuming = resuming
        self._keeping = keeping
        self._disk_low = False

    async def watch(self) -> None:
        """Look at idle kernels and at dangers, for ever."""
        while True:
            idle = self._settings.autosave_idle_timeout
            await asyncio.sleep(min(self._settings.watch_interval, idle / 2 if idle > 0 else 3600))
            for bound in self._bound.all():
                await self._quietly(self._look_at(bound))
            await self._quietly(self._look_at_disk())

    async def _look_at(self, bound: Bound) -> None:
        """Save a kernel that has been idle for long, or that may soon be ended by its limit."""
        if self._resuming.is_resuming(bound.kernel_id):
            return
        activity = self._kernels.last_activity(bound.kernel_id)
        if activity is None:
            return
        if self._is_idle(bound, activity):
            if await self._bound.changed(bound):
                await self._saving.autosave(bound.kernel_id, "idle")
        elif self._settings.danger_memory > 0:
            async with connect() as agent:
                kernel = await agent.kernel(bound.kernel_id)
            limit, used = kernel.limits.memory, kernel.memory
            part = self._settings.danger_memory
            near = limit is not None and used is not None and used > part * limit
            if near and not bound.warned and await self._bound.changed(bound):
                await self._saving.autosave(bound.kernel_id, "danger")
            bound.warned = near

    def _is_idle(self, bound: Bound, activity: datetime) -> bool:
        """Whether nobody has used it for long, and it was not saved lately either.

        A kernel that works on by itself is saved again after as long a time.
        """
        timeout = self._settings.autosave_idle_timeout
        idle = (datetime.now(UTC) - activity).total_seconds()
        return (
            0 < timeout <= idle
            and not self._kernels.is_busy(bound.kernel_id)
            and (activity != bound.seen or time.monotonic() - bound.since >= timeout)
        )

    async def _look_at_disk(self) -> None:
        root = self._notebooks.root
        if not root or not self._settings.danger_disk:
            return
        low = (await asyncio.to_thread(shutil.disk_usage, root)).free < self._settings.danger_disk
        if low and not self._disk_low:
            self._log.warning("The disk is nearly full: saving all kernels")
            await self._saving.save_all("danger")
        self._disk_low = low

    async def tidy(self) -> None:
        """Look at the checkpoints of deleted notebooks, for ever."""
        while True:
            await asyncio.sleep(self._settings.tidy_interval)
            await self._quietly(self._keeping.free_orphans())
