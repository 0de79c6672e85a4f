"""Put kernels back to a checkpoint: in place, or by a new kernel for a notebook's session."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import msgspec

from .after_resume import AfterResume
from .bound import Plan
from .client import connect
from .context import Context, Part
from .errors import Cancelled, CheckpointsError, Conflict, NotFound, PreflightBlocked
from .event_schemas import PREFLIGHT_EVENT, RUNTIME_EVENT, error_fields
from .models import CheckpointModel
from .notebooks import not_enabled
from .operations import Operation, known


class Resuming(Part):
    """See the module."""

    def __init__(self, context: Context, after_resume: AfterResume) -> None:
        super().__init__(context)
        self._after_resume = after_resume
        self._resuming: dict[str, asyncio.Event] = {}

    def is_resuming(self, kernel_id: str) -> bool:
        """Whether a kernel is being put to another state: requests wait, signals are refused."""
        return kernel_id in self._resuming

    @contextmanager
    def holding(self, kernel_id: str) -> Iterator[None]:
        """Meanwhile the kernel is being resumed."""
        self._resuming[kernel_id] = asyncio.Event()
        try:
            yield
        finally:
            self._resuming.pop(kernel_id).set()

    async def settled(self, kernel_id: str) -> None:
        """Wait until the kernel is not being resumed."""
        while (event := self._resuming.get(kernel_id)) is not None:
            await event.wait()

    def in_place(self, checkpoint: CheckpointModel, kernel_id: str) -> Operation:
        """Begin to put a kernel back to a checkpoint. Its outcome is the kernel's id.

        Raises
        ------
        NotFound
            If there is no such kernel here.
        Conflict
            If it is being resumed already.
        """
        if kernel_id not in self._bound:
            raise NotFound(f"There is no kernel {kernel_id} here that could be resumed.")
        if kernel_id in self._resuming:
            raise Conflict(f"Kernel {kernel_id} is being resumed already.")
        self._resuming[kernel_id] = asyncio.Event()
        return self._operations.start(
            Operation(
                "resume",
                partial(self._resume_in_place, checkpoint, kernel_id),
                kernel_id=kernel_id,
                checkpoint=checkpoint.id,
            )
        )

    async def _resume_in_place(
        self, checkpoint: CheckpointModel, kernel_id: str, operation: Operation
    ) -> dict[str, str]:
        bound = self._bound[kernel_id]
        facts = {
            "kernel_id": kernel_id,
            "notebook": bound.path,
            "runtime": bound.runtime,
            "checkpoint": checkpoint.id,
            "operation": operation.id,
            "in_place": True,
        }
        self._tell(RUNTIME_EVENT, action="resuming", **facts)
        try:
            with operation.at_agent():
                async with connect() as agent:
                    model = await agent.resume(
                        kernel_id, checkpoint.id, operation.progress, operation=operation.id
                    )
            busy = False
            if model.connection is not None:
                busy = not await self._kernels.adopt(kernel_id, model.connection)
            bound.checkpoint, bound.cell = checkpoint.id, checkpoint.execution_count
            await self._after_resume.run(kernel_id, checkpoint, new=False, busy=busy)
            await self._bound.settle(bound, self._kernels.last_activity(kernel_id), None)
        except (CheckpointsError, asyncio.CancelledError) as error:
            self._log.warning("Kernel %s was not resumed: %s", kernel_id, known(error))
            self.tell_failed(kernel_id, checkpoint, bound.path, known(error), in_place=True)
            raise
        finally:
            self._resuming.pop(kernel_id).set()
        self._tell(RUNTIME_EVENT, action="resumed", **facts)
        return {"kernel_id": kernel_id}

    async def in_new_kernel(self, checkpoint: CheckpointModel, path: str = "") -> Operation:
        """Begin to resume a checkpoint in a new kernel, for the session of a notebook.

        ``path``: the notebook; default: the one that the checkpoint's runtime belongs to. Its
        former kernel is shut down when the new one is there.

        Raises
        ------
        Conflict
            If there is no such notebook, or checkpoints are not switched on for it.
        """
        if not path:
            entry = await asyncio.to_thread(self._registry.find, checkpoint.runtime)
            path = self._notebooks.path_of(entry.place) if entry is not None else ""
        runtime = await self._notebooks.runtime_of(path)
        if not runtime:
            if not path:
                raise Conflict(
                    "This checkpoint belongs to no notebook of this server.",
                    hint="Name the notebook that is to go on from it.",
                )
            raise not_enabled(path)
        plan = Plan(path=path, runtime=runtime, checkpoint=checkpoint)
        return self._operations.start(
            Operation("resume", partial(self._resume_new, plan), checkpoint=checkpoint.id)
        )

    async def _resume_new(self, plan: Plan, operation: Operation) -> dict[str, str]:
        async with self._bound.starting(plan.path):
            return await self._replace_kernel(plan, operation)

    async def _replace_kernel(self, plan: Plan, operation: Operation) -> dict[str, str]:
        assert plan.checkpoint is not None
        try:
            with operation.at_agent():
                kernel_id = await self._kernels.start_resumed(
                    msgspec.structs.replace(plan, operation=operation.id)
                )
        except (CheckpointsError, asyncio.CancelledError) as error:
            self.tell_failed("", plan.checkpoint, plan.path, known(error), in_place=False)
            raise
        operation.kernel_id = kernel_id
        former = await self._sessions.change_kernel(plan.path, kernel_id)
        if former:
            await self._kernels.end(former)
        return {"kernel_id": kernel_id, "notebook": plan.path}

    def tell_failed(
        self,
        kernel_id: str,
        checkpoint: CheckpointModel,
        path: str,
        error: CheckpointsError,
        *,
        in_place: bool,
    ) -> None:
        """Emit the events of a resume that did not come to its end."""
        self._tell(
            RUNTIME_EVENT,
            action="resume_cancelled" if isinstance(error, Cancelled) else "resume_failed",
            kernel_id=kernel_id,
            notebook=path,
            runtime=checkpoint.runtime,
            checkpoint=checkpoint.id,
            in_place=in_place,
            **error_fields(error),
        )
        if isinstance(error, PreflightBlocked):
            self._tell(
                PREFLIGHT_EVENT,
                checkpoint=checkpoint.id,
                kernel_id=kernel_id,
                notebook=path,
                findings=error.findings,
            )
