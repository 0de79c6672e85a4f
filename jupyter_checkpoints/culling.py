"""When an idle kernel may be shut down, and when a user's restart may go on."""

from __future__ import annotations

from .client import connect
from .context import Context, Part
from .errors import Cancelled, CheckpointDamaged, CheckpointsError
from .event_schemas import RUNTIME_EVENT, error_fields
from .models import CheckpointModel
from .resuming import Resuming
from .saving import Saving


class Culling(Part):
    """See the module."""

    def __init__(self, context: Context, saving: Saving, resuming: Resuming) -> None:
        super().__init__(context)
        self._saving = saving
        self._resuming = resuming

    async def may_cull(self, kernel_id: str) -> bool:
        """Whether an idle kernel may be shut down now: what is to be saved of it is saved.

        Called by the kernel manager for each kernel that it is about to cull.
        """
        if self._kernels.last_activity(kernel_id) is None or kernel_id not in self._bound:
            return True
        if self._resuming.is_resuming(kernel_id):
            return False
        before = self._kernels.last_activity(kernel_id)
        try:
            model = await self._saving.autosave(kernel_id, "cull")
            if model is not None and self._settings.verify_before_cull:
                await self._require_intact(model)
        except CheckpointsError as error:
            keep = self._settings.on_save_failure == "keep" or isinstance(error, Cancelled)
            self._log.error(
                "Kernel %s could not be saved before it is culled, so it is %s: %s",
                kernel_id,
                "kept" if keep else "culled with all of its state",
                error,
            )
            self._tell(
                RUNTIME_EVENT,
                action="kept" if keep else "culled",
                kernel_id=kernel_id,
                notebook=self._bound.path(kernel_id),
                **error_fields(error),
            )
            return not keep
        if self._kernels.last_activity(kernel_id) != before or self._kernels.in_use(kernel_id):
            self._log.info("Kernel %s is kept: it was used while it was saved", kernel_id)
            return False
        if model is not None:
            bound = self._bound[kernel_id]
            bound.final = True
            self._tell(
                RUNTIME_EVENT,
                action="culled",
                kernel_id=kernel_id,
                notebook=bound.path,
                runtime=bound.runtime,
                checkpoint=model.id,
            )
        return True

    async def _require_intact(self, model: CheckpointModel) -> None:
        async with connect() as agent:
            report = await agent.verify(model.id)
        if not report.ok:
            raise CheckpointDamaged(
                f"Checkpoint {model.id} is not what was saved.",
                reason="; ".join(report.problems[:5]),
                hint="Look into the system's log for errors of the disk.",
            )

    def is_final(self, kernel_id: str) -> bool:
        """Whether the kernel is saved for good: nothing in it may run to its end any more.

        What a kernel does when it is asked to end (delete its files, say) would be missed in its
        checkpoint.
        """
        bound = self._bound.get(kernel_id)
        return bound is not None and bound.final

    async def before_restart(self, kernel_id: str) -> None:
        """The user restarts a kernel. Raises as :meth:`save` if it had to be saved and was not."""
        if self._settings.autosave_before_restart and kernel_id in self._bound:
            await self._saving.autosave(kernel_id, "restart")
