"""What becomes of checkpoints that are there: verified, kept, deleted."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial

from .client import connect
from .context import Part
from .errors import CheckpointsError, Conflict, NotFound
from .event_schemas import RUNTIME_EVENT
from .models import CheckpointModel, VerifyReport
from .operations import Operation
from .retention import Verdict, prunable


class Keeping(Part):
    """See the module."""

    def verify(self, checkpoint: CheckpointModel) -> Operation:
        """Begin to read a checkpoint again, whole. Its outcome is a :class:`VerifyReport`."""
        return self._operations.start(
            Operation("verify", partial(self._verify, checkpoint), checkpoint=checkpoint.id)
        )

    async def _verify(self, checkpoint: CheckpointModel, operation: Operation) -> VerifyReport:
        with operation.at_agent():
            async with connect() as agent:
                report = await agent.verify(
                    checkpoint.id, operation.progress, operation=operation.id
                )
        self._tell(
            RUNTIME_EVENT,
            action="verified",
            checkpoint=checkpoint.id,
            runtime=checkpoint.runtime,
            operation=operation.id,
            ok=report.ok,
            reason="; ".join(report.problems[:5]),
        )
        return report

    async def prune(self, *, dry_run: bool = False) -> list[Verdict]:
        """Delete what retention does not keep; returns what that was, or would be."""
        async with connect() as agent:
            usage = await agent.usage()
            verdicts = prunable(
                await agent.checkpoints(), usage.checkpoints, self._settings.policy()
            )
            for verdict in verdicts if not dry_run else ():
                try:
                    await agent.delete_checkpoint(verdict.checkpoint)
                except (Conflict, NotFound) as error:
                    self._log.info("Checkpoint %s stays: %s", verdict.checkpoint, error)
                    continue
                self.deleted(verdict.checkpoint, verdict.runtime, verdict.reason)
        return verdicts

    def deleted(self, checkpoint_id: str, runtime: str, reason: str = "") -> None:
        """A checkpoint is no more."""
        self._tell(
            RUNTIME_EVENT,
            action="deleted",
            checkpoint=checkpoint_id,
            runtime=runtime,
            reason=reason,
        )

    def changed(self, model: CheckpointModel) -> None:
        """A checkpoint was named or pinned."""
        self._tell(RUNTIME_EVENT, action="changed", checkpoint=model.id, runtime=model.runtime)

    async def prune_quietly(self) -> None:
        """As :meth:`prune`, after a save; what goes wrong is logged."""
        try:
            await self.prune()
        except CheckpointsError as error:
            self._log.warning("Old checkpoints are not deleted: %s", error)

    async def free_orphans(self) -> None:
        """Delete the checkpoints of notebooks that were deleted long enough ago."""
        limit = (datetime.now(UTC) - timedelta(seconds=self._settings.orphan_grace)).isoformat()
        for entry in await asyncio.to_thread(self._registry.all):
            if not entry.deleted or entry.deleted > limit:
                continue
            async with connect() as agent:
                for checkpoint in await agent.checkpoints(runtime=entry.runtime):
                    await agent.delete_checkpoint(checkpoint.id)
                    self.deleted(checkpoint.id, entry.runtime, "its notebook was deleted")
            await asyncio.to_thread(self._registry.forget, entry.runtime)
