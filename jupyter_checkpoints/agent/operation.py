"""Long operations of the agent's clients: how far they are, and how they end early.

A client that wants to be able to cancel an operation gives it an id. Cancelling is a wish: the
operation looks at it where it can stop and leave everything as it was, and refuses it where it
has gone too far for that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import Cancelled, Conflict, NotFound
from ..models import Event
from .records import Caller

#: Ids of ended operations that are remembered, so that cancelling one of them is told from
#: cancelling one that has not arrived yet.
_ENDED = 1000


class Operation:
    """One long operation. Calling it tells the client of an event, on the event loop."""

    def __init__(self, tell: Callable[[Event], None]) -> None:
        self._tell = tell
        self._cancelled = self._settled = False

    def __call__(self, event: Event) -> None:
        self._tell(event)

    def check(self) -> None:
        """Raise ``Cancelled`` if that is wished. Called where stopping is safe; in any thread."""
        if self._cancelled:
            raise Cancelled("The operation was cancelled; nothing was changed.")

    def settle(self) -> None:
        """The last :meth:`check`: what comes next cannot be taken back. On the event loop."""
        self.check()
        self._settled = True

    def cancel(self) -> None:
        """Wish for the end. ``Conflict`` if it cannot be had any more."""
        if self._settled:
            raise too_late()
        self._cancelled = True


class Operations:
    """The operations that can be cancelled: those whose clients gave them an id."""

    def __init__(self) -> None:
        self._running: dict[tuple[int, str], Operation] = {}
        self._ended: deque[tuple[int, str]] = deque(maxlen=_ENDED)

    @contextmanager
    def known(self, caller: Caller, operation_id: str, operation: Operation) -> Iterator[None]:
        """Meanwhile it can be cancelled; an empty id means that nobody wants to."""
        name = (caller.uid, operation_id)
        if not operation_id:
            yield
            return
        if name in self._running:
            raise Conflict(f"There is an operation {operation_id} already.")
        self._running[name] = operation
        try:
            yield
        finally:
            del self._running[name]
            self._ended.append(name)

    def cancel(self, caller: Caller, operation_id: str) -> None:
        """Wish for the end of an operation of this user.

        Raises
        ------
        NotFound
            If there is none of that id (yet).
        Conflict
            If it has ended, or has gone too far.
        """
        name = (caller.uid, operation_id)
        if name in self._running:
            self._running[name].cancel()
        elif name in self._ended:
            raise too_late()
        else:
            raise NotFound(f"There is no operation {operation_id}.")


def too_late() -> Conflict:
    """The error of whoever cancels what is done, or nearly so."""
    return Conflict("It is too late to cancel this operation.", reason="It is done, or nearly so.")
