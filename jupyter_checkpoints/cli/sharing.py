"""``share``: let other users of this host go on from a checkpoint."""

from __future__ import annotations

import sys

from traitlets import Bool

from ..client import AgentClient
from ..errors import InvalidRequest
from ..sharing import WARNING, shares_of
from . import resolve
from .base import AgentCommand


class ShareApp(AgentCommand):
    name = "jupyter-checkpoints share"
    synopsis = "CHECKPOINT|NOTEBOOK [USER...]"
    arguments = (1, None)
    description = """Let other users of this host make a copy of a checkpoint, and go on from there.

    They see that it is there, and can copy it; it stays yours, and as it is. What they have copied
    stays theirs when you take the share back.

    With --json: the checkpoint (see docs/cli.md), with "shares"."""
    examples = """jupyter checkpoints share 8a1e bob
jupyter checkpoints share analysis.ipynb --everyone
jupyter checkpoints share 8a1e bob --revoke"""

    everyone = Bool(False, help="Share with everybody who may use the agent.").tag(config=True)
    revoke = Bool(False, help="Take shares back.").tag(config=True)

    flags = {
        **AgentCommand.flags,
        "everyone": ({"ShareApp": {"everyone": True}}, "With everybody who may use the agent."),
        "revoke": ({"ShareApp": {"revoke": True}}, "Take shares back."),
    }

    async def work(self, agent: AgentClient) -> None:
        users = [*self.extra_args[1:], *(["*"] if self.everyone else [])]
        if not users:
            raise InvalidRequest("With whom? Name users, or say --everyone.")
        model = await resolve.checkpoint(agent, self.extra_args[0])
        change = agent.unshare if self.revoke else agent.share
        for user in users:
            model = await change(model.id, user)

        def show() -> None:
            shown = ["everyone" if s.user == "*" else s.name for s in shares_of(model)]
            print(f"{model.id} is shared with {', '.join(shown) or 'nobody'}.")
            if not self.revoke:
                print(WARNING, file=sys.stderr)

        self.print_result(model, show)
