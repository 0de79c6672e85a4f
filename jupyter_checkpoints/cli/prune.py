"""``prune``: delete what need not be kept."""

from __future__ import annotations

import sys

from traitlets import Bool, Integer

from ..client import AgentClient
from ..errors import Conflict, NotFound
from ..retention import Policy, prunable
from .base import AgentCommand

_DEFAULTS = Policy()


class PruneApp(AgentCommand):
    name = "jupyter-checkpoints prune"
    description = """Delete runtime checkpoints that need not be kept.

    Of each runtime those are kept that any of the options asks for. The newest, and pinned ones,
    are never deleted; manual and named ones only where a quota leaves no other choice. Those
    without a notebook are left alone.

    With --json: an array of {"checkpoint", "runtime", "reason", "bytes"}."""
    examples = "jupyter checkpoints prune --last 3 --daily 7 --dry-run"

    dry_run = Bool(False, help="Only show what would be deleted.").tag(config=True)
    last = Integer(_DEFAULTS.last, help="Keep so many of the newest of each runtime.").tag(
        config=True
    )
    hourly = Integer(_DEFAULTS.hourly, help="Keep one for each of so many hours.").tag(config=True)
    daily = Integer(_DEFAULTS.daily, help="Keep one for each of so many days.").tag(config=True)
    weekly = Integer(_DEFAULTS.weekly, help="Keep one for each of so many weeks.").tag(config=True)
    runtime_quota = Integer(0, help="Bytes for each runtime; 0: any.").tag(config=True)
    user_quota = Integer(0, help="Bytes for all of them; 0: any.").tag(config=True)

    aliases = {
        **AgentCommand.aliases,
        "last": "PruneApp.last",
        "hourly": "PruneApp.hourly",
        "daily": "PruneApp.daily",
        "weekly": "PruneApp.weekly",
        "runtime-quota": "PruneApp.runtime_quota",
        "user-quota": "PruneApp.user_quota",
    }
    flags = {
        **AgentCommand.flags,
        "dry-run": ({"PruneApp": {"dry_run": True}}, "Only show what would be deleted."),
    }

    async def work(self, agent: AgentClient) -> None:
        policy = Policy(
            last=self.last,
            hourly=self.hourly,
            daily=self.daily,
            weekly=self.weekly,
            runtime_quota=self.runtime_quota,
            user_quota=self.user_quota,
        )
        usage = await agent.usage()
        verdicts = []
        for verdict in prunable(await agent.checkpoints(), usage.checkpoints, policy):
            if not self.dry_run:
                try:
                    await agent.delete_checkpoint(verdict.checkpoint)
                except NotFound:
                    continue
                except Conflict as error:
                    print(f"{verdict.checkpoint} stays: {error}", file=sys.stderr)
                    continue
            verdicts.append(verdict)

        def show() -> None:
            from .output import print_table, size

            print_table(
                ["CHECKPOINT", "RUNTIME", "FREES", "WHY"],
                [(v.checkpoint, v.runtime, size(v.bytes), v.reason) for v in verdicts],
                empty="There is nothing to delete.",
            )

        self.print_result(verdicts, show)
