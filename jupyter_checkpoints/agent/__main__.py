"""``python -m jupyter_checkpoints.agent``: the agent, without the command line around it."""

from .app import main

main()
