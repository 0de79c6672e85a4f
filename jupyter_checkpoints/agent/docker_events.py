"""Docker's event stream: what was done to an agent's containers that the kernel does not tell.

That a container has ended is known by its pidfd, earlier than by any event. That it is paused, was
told to end, or has run out of memory is known by Docker alone.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from ..errors import CheckpointsError
from .docker_client import DockerFailed, told

log = logging.getLogger(__name__)

#: What is of interest of a container.
ACTIONS = ["pause", "unpause", "oom", "kill", "die"]
_FIRST_DELAY, _LAST_DELAY = 0.1, 2.0


class DockerEvent(Struct, frozen=True):
    """One event of a container's, or of what ``container`` is the id of."""

    action: str
    container: str
    attributes: dict[str, str]
    """The container's labels among them."""


class DockerEvents:
    """Follows the stream in a thread, and connects again when Docker was away.

    Parameters
    ----------
    api:
        Docker's client.
    filters:
        Which events, as the Docker SDK has them.
    on_event:
        Called with each event, in the thread.
    on_connected:
        Called in the thread whenever the stream begins, for what may have been missed before:
        Docker forgets its events when it is restarted. Events from then on follow.
    """

    def __init__(
        self,
        api: Any,
        filters: dict[str, Any],
        on_event: Callable[[DockerEvent], None],
        on_connected: Callable[[], None],
    ) -> None:
        self._api = api
        self._filters = filters
        self._on_event = on_event
        self._on_connected = on_connected
        self._closing = threading.Event()
        self._stream: Any = None
        #: What led to the end of containers, and which have ended, until they are forgotten.
        self._causes: dict[str, list[DockerEvent]] = {}
        self._died: set[str] = set()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._follow, name="Docker's events", daemon=True)

    def open(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def close(self) -> None:
        """Stop following. Blocks until that is done."""
        self._closing.set()
        with self._changed:
            stream = self._stream
        if stream is not None:
            with contextlib.suppress(Exception):  # it may be ending by itself
                stream.close()
        if self._thread.is_alive():
            self._thread.join(_LAST_DELAY)

    def causes(self, container: str, timeout: float) -> list[DockerEvent]:
        """What was done to a container that has ended: ``kill`` and ``oom``, in order.

        Called in a thread when Docker knows of the end. Waits ``timeout`` seconds at most, and not
        at all while Docker is away, for the event of the end: by then all others are there.
        """
        with self._changed:
            self._changed.wait_for(lambda: container in self._died or self._stream is None, timeout)
            return list(self._causes.get(container, ()))

    def forget(self, container: str) -> None:
        """The container is removed."""
        with self._changed:
            self._causes.pop(container, None)
            self._died.discard(container)

    def _follow(self) -> None:
        delay = _FIRST_DELAY
        while not self._closing.is_set():
            try:
                with told():
                    stream = self._api.events(filters=self._filters, decode=True)
                with self._changed:
                    self._stream = stream
                if self._closing.is_set():  # close() has not seen this one
                    return
                self._on_connected()
                delay = _FIRST_DELAY
                for event in stream:
                    self._take(event)
            except (DockerFailed, CheckpointsError) as error:
                log.debug("Docker's events cannot be followed now: %s", error)
            except Exception:
                # A stream that breaks off does so in many ways, none of which ends the thread.
                if not self._closing.is_set():
                    log.debug("Docker's events have broken off", exc_info=True)
            finally:
                with self._changed:
                    self._stream = None
                    self._changed.notify_all()
            self._closing.wait(delay)
            delay = min(2 * delay, _LAST_DELAY)

    def _take(self, raw: dict[str, Any]) -> None:
        actor = raw.get("Actor", {})
        event = DockerEvent(
            action=str(raw.get("Action", "")),
            container=str(actor.get("ID", "")),
            attributes=dict(actor.get("Attributes", {})),
        )
        with self._changed:
            if event.action in ("kill", "oom"):
                self._causes.setdefault(event.container, []).append(event)
            elif event.action == "die":
                self._died.add(event.container)
                self._changed.notify_all()
        self._on_event(event)
