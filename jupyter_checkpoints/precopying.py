"""Copy what the next save of a kernel would write ahead of it, when the kernel falls idle."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from .bound import Bound
from .client import connect
from .context import Context, Part
from .errors import (
    HostNotReady,
    InsufficientResources,
    InvalidRequest,
    QuotaExceeded,
)
from .resuming import Resuming


class Precopying(Part):
    """See the module.

    Only kernels that are saved by themselves are copied: of others nothing is ever written to the
    disk.
    """

    def __init__(self, context: Context, resuming: Resuming) -> None:
        super().__init__(context)
        self._resuming = resuming

    async def watch(self) -> None:
        """Look at idle kernels, for ever; one after the other."""
        timeout = self._settings.precopy_idle_timeout
        while timeout > 0:
            await asyncio.sleep(min(self._settings.watch_interval, timeout / 2))
            for bound in self._bound.all():
                await self._quietly(self._look_at(bound))

    async def forget(self) -> None:
        """Give up what was copied of notebooks that are not to be saved any more, for ever."""
        while True:
            await asyncio.sleep(4 * self._settings.watch_interval)
            for bound in self._bound.all():
                if bound.precopied is not None:
                    await self._quietly(self._forget_unwanted(bound))

    async def _forget_unwanted(self, bound: Bound) -> None:
        if not await self._wanted(bound):
            async with connect() as agent:
                await agent.forget_precopy(bound.kernel_id)
            bound.precopied = None

    async def _look_at(self, bound: Bound) -> None:
        activity = self._kernels.last_activity(bound.kernel_id)
        if (
            activity is not None
            and activity != bound.precopied
            and not self._resuming.is_resuming(bound.kernel_id)
            and self._is_idle(bound, activity)
            and await self._bound.changed(bound)
        ):
            if await self._wanted(bound):
                await self._precopy(bound)
            # Once while it is idle, whether it could be done or not: notebooks are read for it.
            bound.precopied = activity

    def _is_idle(self, bound: Bound, activity: datetime) -> bool:
        idle = (datetime.now(UTC) - activity).total_seconds()
        return idle >= self._settings.precopy_idle_timeout and not self._kernels.is_busy(
            bound.kernel_id
        )

    async def _wanted(self, bound: Bound) -> bool:
        _, settings = await self._bound.current(bound.kernel_id)
        return settings.enabled and settings.autosave and settings.mode != "filesystem"

    async def _precopy(self, bound: Bound) -> None:
        """Raises ``Conflict`` if it may be possible at the next look."""
        try:
            async with connect() as agent:
                await agent.precopy(bound.kernel_id)
        except (QuotaExceeded, InsufficientResources) as error:
            self._log.info("Kernel %s is not copied ahead: %s", bound.kernel_id, error)
        except (HostNotReady, InvalidRequest) as error:
            self._log.debug("Kernel %s cannot be copied ahead: %s", bound.kernel_id, error)
