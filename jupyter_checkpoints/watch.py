"""Follow the state of a kernel, so that asking for it costs nothing.

A kernel manager asks whether its kernel lives ten times a second, and a blocking one runs its
event loop only while it is called. So the agent is followed from a thread of our own: one for all
kernels of a process, there as long as a kernel is followed. Being attached also tells the agent
that somebody cares for the kernel.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import aclosing
from pathlib import Path

import anyio
from anyio.from_thread import BlockingPortal, BlockingPortalProvider

from .client import AgentClient
from .errors import CheckpointsError, NotFound
from .models import KernelModel, KernelState

_FIRST_DELAY = 0.1
_LAST_DELAY = 5.0
_END_TIMEOUT = 2.0

_thread = BlockingPortalProvider()


class KernelWatch:
    """What the agent last said of one kernel. Properties may be read from any thread.

    Parameters
    ----------
    socket:
        The agent's socket.
    model:
        The kernel as its start, or a question, has just answered.
    log:
        Where to say that the agent is away, and that it is back.
    paused:
        Called in the thread when the kernel was paused (``docker pause``), or goes on.
    """

    def __init__(
        self,
        socket: Path,
        model: KernelModel,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger],
        paused: Callable[[bool], None] = lambda paused: None,
    ) -> None:
        self._socket = socket
        self._model = model
        self._log = log
        self._tell_paused = paused
        self._gone = False
        self._portal: BlockingPortal
        self._closing = threading.Event()
        self._following: Future[None] | None = None
        # Of the thread that follows, and touched there only.
        self._agent: AgentClient | None = None
        self._waiting: anyio.CancelScope | None = None

    @property
    def model(self) -> KernelModel:
        """The kernel at its last change of state."""
        return self._model

    @property
    def state(self) -> KernelState:
        """Its state; ``exited`` also if the agent no longer knows it."""
        return "exited" if self._gone else self._model.state

    @property
    def exit_code(self) -> int | None:
        """``None`` while it lives, be it stopped at a checkpoint; else its exit code, or 1."""
        if self.state != "exited":
            return None
        return 1 if self._model.exit_code is None else self._model.exit_code

    @property
    def reason(self) -> str:
        """Why it was ended if it could not go on, else empty."""
        return self._model.reason

    @property
    def paused(self) -> bool:
        """Whether somebody has paused its container, so that it answers nothing."""
        return self._model.paused

    def open(self) -> None:
        """Begin to follow. Blocks for the start of a thread."""
        self._portal = _thread.__enter__()
        self._following = self._portal.start_task_soon(self._follow)

    def close(self) -> None:
        """Stop following. Blocks until that is done."""
        if self._following is None:
            return
        self._closing.set()
        self._portal.call(self._hang_up)
        try:
            self._following.result(timeout=_END_TIMEOUT)
        except TimeoutError:  # the agent takes connections, but does not answer
            self._following.cancel()
        self._following = None
        _thread.__exit__(None, None, None)

    def _hang_up(self) -> None:
        if self._agent is not None:
            self._agent.hang_up()
        if self._waiting is not None:
            self._waiting.cancel()

    async def _follow(self) -> None:
        delay = _FIRST_DELAY
        while not self._closing.is_set():
            try:
                # Never start an agent here: who stops it on purpose wants it stopped.
                async with (
                    AgentClient(self._socket, autostart=False) as self._agent,
                    aclosing(self._agent.attach(self._model.id)) as models,
                ):
                    async for model in models:
                        if self._closing.is_set():
                            return
                        if delay > _FIRST_DELAY:
                            self._log.info("The agent answers again.")
                        was_paused, self._model = self._model.paused, model
                        delay = _FIRST_DELAY
                        if model.paused != was_paused:
                            self._tell_paused(model.paused)
            except NotFound:
                self._gone = True
                return
            except CheckpointsError as error:
                if self._closing.is_set():
                    return
                if delay == _FIRST_DELAY:
                    self._log.warning("Lost sight of kernel %s: %s", self._model.id, error)
                delay = min(delay * 2, _LAST_DELAY)
            finally:
                self._agent = None
            with anyio.CancelScope() as self._waiting:
                await anyio.sleep(delay)
            self._waiting = None
