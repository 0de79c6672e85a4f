"""Notebooks, their runtimes and their kernels: when to save, what to resume, what to keep.

The server extension's policies, without tornado. The kernel manager asks before it starts and
before it culls a kernel, the REST handlers ask for what users want, timers ask for the rest. What
touches kernels goes through :class:`~.bound.Kernels`, what touches notebooks through the contents
manager, what touches checkpoints through the agent's client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from .after_resume import AfterResume
from .bound import BoundKernels, Kernels, NotebookSessions
from .context import Context
from .culling import Culling
from .event_schemas import RUNTIME_EVENT
from .file_ids import FileIds
from .keeping import Keeping
from .notebooks import Notebooks
from .operations import Operations
from .precopying import Precopying
from .registry import Registry
from .resuming import Resuming
from .saving import Saving
from .settings import Settings
from .starting import Starting
from .watching import Watching

Emit = Callable[[str, dict[str, Any]], None]


class Runtimes(Settings):
    """The service, made of its parts. Made once by the extension; lives on its event loop."""

    def __init__(
        self,
        *,
        contents: Any,
        emit: Emit,
        kernels: Kernels,
        sessions: NotebookSessions,
        registry: Registry | None = None,
        file_id_manager: Callable[[], Any] = lambda: None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.operations = Operations()
        self.registry = registry or Registry()
        self.notebooks = Notebooks(
            parent=self,
            contents=contents,
            registry=self.registry,
            file_ids=FileIds(file_id_manager),
            tell=self.tell,
            save_original=self._save_original,
        )
        self.bound = BoundKernels(kernels, sessions, self.notebooks)
        context = Context(
            settings=self,
            bound=self.bound,
            kernels=kernels,
            sessions=sessions,
            notebooks=self.notebooks,
            registry=self.registry,
            operations=self.operations,
            tell=self.tell,
            log=self.log,
        )
        after_resume = AfterResume(context)
        self.keeping = Keeping(context)
        self.resuming = Resuming(context, after_resume)
        self.saving = Saving(context, self.resuming, self._saved)
        self.starting = Starting(context, self.resuming, after_resume)
        self.culling = Culling(context, self.saving, self.resuming)
        self._watching = Watching(context, self.saving, self.resuming, self.keeping)
        self._precopying = Precopying(context, self.resuming)
        self._emit = emit
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Start the timers. Called when the server's event loop runs."""
        self._later(self._watching.watch())
        self._later(self._watching.tidy())
        self._later(self._precopying.watch())
        self._later(self._precopying.forget())

    async def close(self) -> None:
        """Save what asks for it, within the time limit. Called before kernels are shut down."""
        self._stopping = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        failed = await self.saving.save_all(
            "shutdown", stop=True, timeout=self.shutdown_save_timeout
        )
        for kernel_id, reason in failed.items():
            self.log.error(
                "Kernel %s (%s) could not be saved before the server stops, and its state is "
                "lost: %s",
                kernel_id,
                self.bound.path(kernel_id) or "no notebook",
                reason,
            )

    def tell(self, schema: str, **data: Any) -> None:
        """Emit an event, without what is empty. Never fails."""
        self._emit(schema, {k: v for k, v in data.items() if v not in ("", None)})

    def paused_or_not(self, kernel_id: str, paused: bool) -> None:
        """A kernel was paused by somebody else, or goes on. Called by the kernel manager."""
        bound = self.bound.get(kernel_id)
        self.tell(
            RUNTIME_EVENT,
            action="paused" if paused else "unpaused",
            kernel_id=kernel_id,
            notebook=self.bound.path(kernel_id),
            runtime=bound.runtime if bound is not None else "",
            message="The kernel's container was paused." if paused else "",
            reason="Somebody has used `docker pause` on it." if paused else "",
            hint="Cells wait until `docker unpause`. It can be saved meanwhile." if paused else "",
        )

    async def _save_original(self, runtime: str) -> None:
        await self.saving.save_original(runtime)

    def _saved(self) -> None:
        if not self._stopping:
            self._later(self.keeping.prune_quietly())

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
