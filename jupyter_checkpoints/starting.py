"""How a notebook's kernel starts: afresh, or from its newest checkpoint."""

from __future__ import annotations

from datetime import UTC, datetime

from .after_resume import AfterResume
from .bound import Bound, Plan
from .client import connect
from .context import Context, Part
from .errors import CheckpointsError
from .event_schemas import RUNTIME_EVENT
from .models import CheckpointModel, Renewal
from .resuming import Resuming


class Starting(Part):
    """Asked by the kernel manager before and after it starts a kernel."""

    def __init__(self, context: Context, resuming: Resuming, after_resume: AfterResume) -> None:
        super().__init__(context)
        self._resuming = resuming
        self._after_resume = after_resume
        #: When it was asked that a runtime's next kernel starts afresh.
        self._fresh: dict[str, datetime] = {}

    async def plan(self, path: str, kernel_name: str, *, fresh: bool = False) -> Plan:
        """How the kernel of a notebook is to be started: afresh, or from its newest checkpoint."""
        settings = await self._notebooks.settings(path)
        runtime = await self._notebooks.runtime_of(path, settings)
        if not runtime:
            return Plan(path=path)
        asked = self._fresh.pop(runtime, None)
        checkpoint = None
        if self._settings.wake and not fresh:
            try:
                async with connect() as agent:
                    checkpoint = next(
                        (
                            c
                            for c in await agent.checkpoints(runtime=runtime)
                            if c.kernel_name == kernel_name
                        ),
                        None,
                    )
            except CheckpointsError as error:
                self._log.warning("No checkpoint can be looked for: %s", error)
        if asked is not None and checkpoint is not None and _current_at(checkpoint) <= asked:
            checkpoint = None
        return Plan(path=path, runtime=runtime, checkpoint=checkpoint, mode=settings.mode)

    def renewals(self, plan: Plan) -> list[Renewal]:
        """What a container that is made of the plan's checkpoint is to have anew."""
        assert plan.checkpoint is not None
        return self._after_resume.renewals(plan.checkpoint, plan.runtime)

    def fresh_next(self, runtime: str) -> None:
        """The next kernel of this runtime starts without a checkpoint, once.

        What is saved only after that is resumed nevertheless: somebody has worked on meanwhile.
        """
        self._fresh[runtime] = datetime.now(UTC)

    async def started(
        self, kernel_id: str, plan: Plan, *, resumed: bool, busy: bool = False
    ) -> None:
        """A kernel has started; with ``resumed`` it stands where its checkpoint was made.

        ``busy``: in the middle of a cell, it seems.
        """
        bound = Bound(kernel_id=kernel_id, path=plan.path, runtime=plan.runtime, cell=0)
        self._bound.add(bound)
        if resumed and plan.checkpoint is not None:
            bound.checkpoint = plan.checkpoint.id
            bound.cell = plan.checkpoint.execution_count
            with self._resuming.holding(kernel_id):
                await self._after_resume.run(kernel_id, plan.checkpoint, new=True, busy=busy)
            self._tell(
                RUNTIME_EVENT,
                action="resumed",
                kernel_id=kernel_id,
                notebook=plan.path,
                runtime=plan.runtime,
                checkpoint=plan.checkpoint.id,
                in_place=False,
            )
        await self._bound.settle(bound, self._kernels.last_activity(kernel_id), None)

    def resume_failed(self, kernel_id: str, plan: Plan, error: CheckpointsError) -> None:
        """The kernel is going to start fresh instead; the user is to know why."""
        assert plan.checkpoint is not None
        self._log.warning("%s starts afresh: %s", plan.path or kernel_id, error)
        self._bound.notices[kernel_id] = (
            f"This kernel was started fresh: its runtime checkpoint of {plan.checkpoint.created} "
            f"could not be resumed, and is kept.\n{error}\n\n"
        )
        self._resuming.tell_failed(kernel_id, plan.checkpoint, plan.path, error, in_place=False)


def _current_at(checkpoint: CheckpointModel) -> datetime:
    """When the kernel was last known to be as it is in the checkpoint."""
    return datetime.fromisoformat(max(checkpoint.created, checkpoint.touched))
