"""The events that the extension emits: their schemas are in ``events/*.yaml``."""

from __future__ import annotations

from typing import Any, Protocol

from .errors import CheckpointsError

SAVE_EVENT = "https://schema.jupyter.org/jupyter_checkpoints/save/v1"
RUNTIME_EVENT = "https://schema.jupyter.org/jupyter_checkpoints/runtime/v1"
PREFLIGHT_EVENT = "https://schema.jupyter.org/jupyter_checkpoints/preflight/v1"


class Tell(Protocol):
    """Emits an event, without what is empty. Never fails."""

    def __call__(self, schema: str, **data: Any) -> None: ...


def error_fields(error: CheckpointsError) -> dict[str, str]:
    """What an event tells of an error."""
    return {"message": error.message, "reason": error.reason, "hint": error.hint}
