"""``agent``: hands everything over to the agent's own program."""

from __future__ import annotations

from traitlets.config import Application


class AgentForward(Application):
    """Passes its arguments, ``--help`` included, on to :mod:`jupyter_checkpoints.agent.app`."""

    name = "jupyter-checkpoints agent"

    def initialize(self, argv: list[str] | None = None) -> None:
        self.argv = list(argv or [])

    def start(self) -> None:
        from ..agent.app import main

        # The agent is an application of its own, of which there can be one in a process.
        AgentForward.clear_instance()
        main(self.argv)
