"""Which engine this agent runs kernels with. Blocking; called once, at the agent's start."""

from __future__ import annotations

import os
from typing import Any, Literal

from ...errors import HostNotReady
from ...layout import Layout
from ..docker_client import connect, is_ready

Name = Literal["embedded", "docker"]


def choose(wanted: str, docker_host: str, layout: Layout) -> tuple[Name, Any]:
    """The engine's name, and Docker's client if it is Docker.

    Kernels of an earlier agent decide: only the engine that started them can take them over.

    Raises
    ------
    HostNotReady
        If ``wanted`` cannot be had.
    """
    remembered = layout.run_dir / "engine"
    name = wanted
    if any(layout.kernels.glob("*/engine.json")):
        # Agents that knew one engine only wrote nothing down.
        name = remembered.read_text().strip() if remembered.exists() else "embedded"
        if wanted not in ("auto", name):
            raise HostNotReady(
                f"This agent's kernels were started by the {name} engine.",
                reason=f"The {wanted} engine cannot take them over.",
                hint=f"Start the agent with `engine = {name}`, and end them first.",
            )
    if name == "auto":
        name = "docker" if is_ready(docker_host) else "embedded"
    api = connect(docker_host) if name == "docker" else None
    temporary = remembered.with_suffix(".tmp")
    temporary.write_text(name + "\n")
    os.replace(temporary, remembered)
    return ("docker" if name == "docker" else "embedded"), api
