"""What the parts of the service share: settings, events, the kernels, the notebooks."""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from .bound import BoundKernels, Kernels, NotebookSessions
from .errors import CheckpointsError
from .event_schemas import Tell
from .notebooks import Notebooks
from .operations import Operations
from .registry import Registry
from .settings import Settings


@dataclass(frozen=True, kw_only=True)
class Context:
    """Made once, by :class:`~jupyter_checkpoints.runtimes.Runtimes`."""

    settings: Settings
    bound: BoundKernels
    kernels: Kernels
    sessions: NotebookSessions
    notebooks: Notebooks
    registry: Registry
    operations: Operations
    tell: Tell
    log: logging.Logger | logging.LoggerAdapter[logging.Logger]


class Part:
    """The base of each part."""

    def __init__(self, context: Context) -> None:
        self._settings = context.settings
        self._bound = context.bound
        self._kernels = context.kernels
        self._sessions = context.sessions
        self._notebooks = context.notebooks
        self._registry = context.registry
        self._operations = context.operations
        self._tell = context.tell
        self._log = context.log

    async def _quietly(self, work: Coroutine[Any, Any, None]) -> None:
        """For what is done again and again: what fails is for the log, and the next turn."""
        try:
            await work
        except CheckpointsError as error:
            self._log.debug("Not now: %s", error)
        except Exception:
            self._log.exception("A look at the kernels failed")
