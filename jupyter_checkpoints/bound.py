"""The kernels of this server that run in containers: whose they are, what they were saved to."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import Protocol
from weakref import WeakValueDictionary

from msgspec import Struct, field

from .client import connect
from .errors import CheckpointsError, NotFound
from .metadata import NotebookSettings
from .models import CheckpointModel, ConnectionInfo, KernelPatch, Mode
from .notebooks import Notebooks, not_enabled

#: Processor time that a kernel may use, at once and per second, without being at work. An idle
#: IPython uses 0.2 to 0.4 ms each second, and 4 ms whenever a page connects.
_IDLE_CPU = 0.1
_IDLE_CPU_RATE = 0.001


class Plan(Struct, frozen=True, kw_only=True):
    """How a kernel is to be started."""

    path: str = ""
    runtime: str = ""
    checkpoint: CheckpointModel | None = None
    mode: Mode | None = None
    operation: str = ""
    """The operation that resumes it, where that is one."""


class Kernels(Protocol):
    """What is asked of the server's kernel manager."""

    def in_container(self, kernel_id: str) -> bool:
        """Whether it is a kernel that can be saved."""

    def last_activity(self, kernel_id: str) -> datetime | None:
        """When something was last run in it; ``None`` if there is no such kernel."""

    def is_busy(self, kernel_id: str) -> bool:
        """Whether it is running something now."""

    def in_use(self, kernel_id: str) -> bool:
        """Whether it runs something, or a page is there that keeps it from being culled."""

    def language(self, kernel_id: str) -> str:
        """The language of its kernelspec, in small letters."""

    async def start_resumed(self, plan: Plan) -> str:
        """Start a new kernel from a plan's checkpoint; returns its id."""

    async def end(self, kernel_id: str) -> None:
        """Shut a kernel down that another has replaced."""

    async def adopt(self, kernel_id: str, connection: ConnectionInfo) -> bool:
        """It was put to another state: take over its key; whether it answers (or runs a cell)."""

    async def renew_key(self, kernel_id: str) -> str:
        """Have it sign its messages with a new key; returns why not, or nothing."""

    async def execute(self, kernel_id: str, code: str, timeout: float) -> str:
        """Run code that no history keeps; returns what went wrong, or nothing."""


class NotebookSessions(Protocol):
    """What is asked of the server's session manager."""

    async def path_of_kernel(self, kernel_id: str) -> str:
        """The path of the kernel's notebook, or empty."""

    async def change_kernel(self, path: str, kernel_id: str) -> str:
        """Give the notebook's session another kernel; the id of the one it had, or empty."""


class Bound(Struct, kw_only=True):
    """A kernel of this server and what it was saved to."""

    kernel_id: str
    path: str
    runtime: str
    checkpoint: str = ""
    """The newest checkpoint that holds its state."""
    seen: datetime | None = None
    """Its last activity when it was saved to, or started."""
    dirty: bool = False
    """Its state changed in a way that activity does not tell."""
    final: bool = False
    """It was saved for good and is only to be ended."""
    precopied: datetime | None = None
    """Its last activity when it was copied ahead of its next save."""
    warned: bool = False
    """Its memory is near the limit, and it was saved for that."""
    cell: int | None = None
    """The number of the last cell that it has run, where that is known."""
    cpu: float | None = None
    """Processor time that its container had used when it was saved to, or started."""
    since: float = field(default_factory=time.monotonic)
    """When that was, on the monotonic clock."""


class BoundKernels:
    """All of them, by id. Used by all parts of :class:`~jupyter_checkpoints.runtimes.Runtimes`."""

    def __init__(self, kernels: Kernels, sessions: NotebookSessions, notebooks: Notebooks) -> None:
        self._kernels = kernels
        self._sessions = sessions
        self._notebooks = notebooks
        self._bound: dict[str, Bound] = {}
        self._starting: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        #: What the user is to read in the banner of a kernel, by kernel.
        self.notices: dict[str, str] = {}

    def __contains__(self, kernel_id: str) -> bool:
        return kernel_id in self._bound

    def __getitem__(self, kernel_id: str) -> Bound:
        return self._bound[kernel_id]

    def starting(self, path: str) -> asyncio.Lock:
        """Held by whoever gives a notebook its kernel: two at once would give it two."""
        return self._starting.setdefault(path.strip("/"), asyncio.Lock())

    def all(self) -> list[Bound]:
        """Those of now."""
        return list(self._bound.values())

    def get(self, kernel_id: str) -> Bound | None:
        """One, if it is there."""
        return self._bound.get(kernel_id)

    def path(self, kernel_id: str) -> str:
        """Its notebook; empty if it has none, or is no more."""
        return self._bound[kernel_id].path if kernel_id in self._bound else ""

    def add(self, bound: Bound) -> None:
        """A kernel has started."""
        self._bound[bound.kernel_id] = bound

    def ended(self, kernel_id: str) -> None:
        """The kernel is no more."""
        self._bound.pop(kernel_id, None)
        self.notices.pop(kernel_id, None)

    def restarted(self, kernel_id: str) -> None:
        """The kernel has begun anew, so what it was saved to is not its state."""
        if (bound := self._bound.get(kernel_id)) is not None:
            bound.dirty, bound.cell = True, 0

    def cell_started(self, kernel_id: str, number: int) -> None:
        """The kernel says that it runs a cell, and which number that has."""
        if (bound := self._bound.get(kernel_id)) is not None:
            bound.cell = number

    async def current(self, kernel_id: str) -> tuple[Bound, NotebookSettings]:
        """A kernel, with its notebook's settings and place of now.

        Raises
        ------
        NotFound
            If it is none of these.
        """
        bound = self._bound.get(kernel_id)
        if bound is None:
            raise NotFound(
                f"There is no kernel {kernel_id} here that could be saved.",
                hint="Only kernels whose kernelspec runs them in a container can be saved.",
            )
        bound.path = await self._sessions.path_of_kernel(kernel_id) or bound.path
        settings = await self._notebooks.settings(bound.path)
        runtime = await self._notebooks.runtime_of(bound.path, settings)
        if runtime and runtime != bound.runtime:
            async with connect() as agent:
                await agent.change_kernel(kernel_id, KernelPatch(runtime=runtime))
            bound.runtime = runtime
        return bound, settings

    async def require_saveable(self, kernel_id: str) -> None:
        """Raise ``NotFound`` or ``Conflict`` if saving this kernel cannot even begin."""
        bound, settings = await self.current(kernel_id)
        if bound.path and not settings.enabled:
            raise not_enabled(bound.path)

    async def changed(self, bound: Bound) -> bool:
        """Whether something may have happened in a kernel since it was saved to, or started."""
        activity = self._kernels.last_activity(bound.kernel_id)
        if activity is None or self._kernels.is_busy(bound.kernel_id):
            return activity is not None
        if bound.dirty or bound.seen is None or activity > bound.seen:
            return True
        if bound.cpu is None:
            return False
        # Nothing was run by anybody, but threads and processes may be at work.
        used = await self._cpu_seconds(bound.kernel_id)
        idle = _IDLE_CPU + _IDLE_CPU_RATE * (time.monotonic() - bound.since)
        return used is not None and used - bound.cpu > idle

    async def settle(self, bound: Bound, activity: datetime | None, cpu: float | None) -> None:
        """It is saved to its checkpoint, or has started: changes count from here on."""
        bound.seen, bound.dirty, bound.precopied = activity, False, None
        if cpu is None and bound.checkpoint:
            cpu = await self._cpu_seconds(bound.kernel_id)
        # One that nothing was run in has no work of its own: what it uses is its start.
        bound.cpu = cpu
        bound.since = time.monotonic()

    async def _cpu_seconds(self, kernel_id: str) -> float | None:
        try:
            async with connect() as agent:
                return (await agent.kernel(kernel_id)).cpu_seconds
        except CheckpointsError:
            return None
