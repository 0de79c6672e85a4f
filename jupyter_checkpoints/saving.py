"""Save kernels: by hand, by themselves, all at once, one after the other where there are many."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from .client import connect
from .context import Context, Part
from .errors import Cancelled, CheckpointsError, NotFound
from .event_schemas import SAVE_EVENT, error_fields
from .models import CheckpointModel, CheckpointPatch, Event, Mode, SaveRequest, Trigger
from .notebooks import not_enabled
from .operations import Operation, known
from .resuming import Resuming


class Saving(Part):
    """See the module. ``saved`` is called after each save."""

    def __init__(self, context: Context, resuming: Resuming, saved: Callable[[], None]) -> None:
        super().__init__(context)
        self._resuming = resuming
        self._saved = saved
        self._saving: dict[str, Operation] = {}
        self._slots = asyncio.Semaphore(self._settings.max_concurrent_saves)

    def save(
        self,
        kernel_id: str,
        *,
        trigger: Trigger,
        name: str = "",
        mode: Mode | None = None,
        stop: bool = False,
    ) -> Operation:
        """Begin to save a kernel. Who asks while nothing is taken yet joins the save that waits.

        The operation's outcome is the :class:`CheckpointModel`; it raises as
        :meth:`AgentClient.save`, and ``Conflict`` if the notebook wants nothing to be saved.
        """
        current = self._saving.get(kernel_id)
        if current is not None and not stop and (name, mode) == ("", None):
            return current
        operation = Operation(
            "save",
            partial(self._save, kernel_id, trigger=trigger, name=name, mode=mode, stop=stop),
            kernel_id=kernel_id,
        )
        if not stop:
            self._saving[kernel_id] = operation
        return self._operations.start(operation)

    async def _save(
        self,
        kernel_id: str,
        operation: Operation,
        *,
        trigger: Trigger,
        name: str,
        mode: Mode | None,
        stop: bool,
    ) -> CheckpointModel:
        facts = {"kernel_id": kernel_id, "trigger": trigger, "operation": operation.id}
        try:
            await self._resuming.settled(kernel_id)
            async with self._slots:
                bound, settings = await self._bound.current(kernel_id)
                if bound.path and not settings.enabled:
                    raise not_enabled(bound.path)
                facts |= {"notebook": bound.path, "runtime": bound.runtime, "name": name}
                self._tell(SAVE_EVENT, action="started", **facts)
                activity = self._kernels.last_activity(kernel_id)
                request = SaveRequest(
                    name=name,
                    trigger=trigger,
                    mode=mode or settings.mode,
                    stop=stop,
                    execution_count=bound.cell,
                )
                with operation.at_agent():
                    async with connect() as agent:
                        model = await agent.save(
                            kernel_id,
                            request,
                            partial(self._save_progress, operation, facts),
                            operation=operation.id,
                        )
        except BaseException as failure:
            error = known(failure)
            self._taken(operation)
            self._log.warning("Kernel %s was not saved: %s", kernel_id, error)
            action = "cancelled" if isinstance(error, Cancelled) else "failed"
            self._tell(SAVE_EVENT, action=action, **facts, **error_fields(error))
            raise
        bound.checkpoint = model.id
        await self._bound.settle(bound, activity, model.cpu_seconds)
        operation.checkpoint = model.id
        self._log.info("Saved kernel %s (%s): %s", kernel_id, trigger, model.id)
        self._tell(SAVE_EVENT, action="done", checkpoint=model.id, **facts)
        self._saved()
        return model

    def _save_progress(self, operation: Operation, facts: dict[str, Any], event: Event) -> None:
        operation.progress(event)
        # From here on the state is being taken: later requests are for a later state.
        self._taken(operation)
        self._tell(
            SAVE_EVENT,
            action="progress",
            stage=event.stage,
            done=event.done,
            total=event.total,
            **facts,
        )

    def _taken(self, operation: Operation) -> None:
        if self._saving.get(operation.kernel_id) is operation:
            del self._saving[operation.kernel_id]

    async def save_original(self, runtime: str) -> None:
        """A copy is to go on from what the original is now, not from when it was saved last."""
        for bound in self._bound.all():
            if bound.runtime == runtime and await self._bound.changed(bound):
                try:
                    await self.save(bound.kernel_id, trigger="remix").outcome()
                except CheckpointsError as error:
                    self._log.warning("Kernel %s is not saved: %s", bound.kernel_id, error)

    async def autosave(
        self, kernel_id: str, trigger: Trigger, *, stop: bool = False
    ) -> CheckpointModel | None:
        """Save a kernel if its notebook asks for that; touch its checkpoint if nothing changed.

        Returns the checkpoint that holds its state now, ``None`` if none does and none is wanted:
        autosave is off, or nothing was ever run in it. Raises as :meth:`save`.
        """
        bound, settings = await self._bound.current(kernel_id)
        if not (settings.enabled and settings.autosave):
            return None
        if not await self._bound.changed(bound):
            if not bound.checkpoint:
                return None
            try:
                async with connect() as agent:
                    model = await agent.change_checkpoint(
                        bound.checkpoint, CheckpointPatch(touch=True)
                    )
            except NotFound:
                bound.dirty = True  # it was deleted meanwhile
            else:
                self._tell(
                    SAVE_EVENT,
                    action="unchanged",
                    kernel_id=kernel_id,
                    trigger=trigger,
                    notebook=bound.path,
                    runtime=bound.runtime,
                    checkpoint=model.id,
                )
                return model
        saved: CheckpointModel
        saved = await self.save(kernel_id, trigger=trigger, stop=stop).outcome()
        bound.final = stop
        return saved

    async def save_all(
        self, trigger: Trigger, *, stop: bool = False, timeout: float | None = None
    ) -> dict[str, str]:
        """Save every kernel that asks for it, in parallel; why it failed, by kernel, where so."""
        tasks = {
            bound.kernel_id: asyncio.create_task(self.autosave(bound.kernel_id, trigger, stop=stop))
            for bound in self._bound.all()
        }
        if not tasks:
            return {}
        await asyncio.wait(tasks.values(), timeout=timeout)
        failed = {}
        for kernel_id, task in tasks.items():
            if not task.done():
                task.cancel()
                failed[kernel_id] = f"it took longer than {timeout:g} seconds"
            elif task.exception() is not None:
                failed[kernel_id] = str(task.exception())
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        return failed
