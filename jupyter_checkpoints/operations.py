"""Long work that somebody may ask after: what it is, how far it is, how it ended."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import msgspec
from msgspec import Struct

from .client import connect
from .errors import Cancelled, CheckpointsError, Conflict, NotFound
from .models import Event

Kind = Literal["save", "resume", "verify"]
State = Literal["running", "done", "failed", "cancelled"]

#: Seconds that an operation can be asked for after its end.
KEEP = 600.0
#: Ended operations that are kept at most.
MOST = 1000
#: Seconds until an agent that does not know of an operation yet is asked again to cancel it.
_AGAIN = 0.02


class OperationModel(Struct, frozen=True, kw_only=True):
    """One operation as REST gives it."""

    id: str
    kind: Kind
    state: State
    kernel_id: str = ""
    checkpoint: str = ""
    stage: str = ""
    done: int = 0
    total: int = 0
    """Bytes, where they are known; else 0."""
    result: Any = None
    error: dict[str, Any] | None = None


class Operation:
    """Runs ``work`` in a task of its own: it goes on when nobody waits for it any more.

    It can be cancelled until the agent has done its part. The part of the agent, which it does
    under this operation's id, is marked by :meth:`at_agent`.
    """

    def __init__(
        self,
        kind: Kind,
        work: Callable[[Operation], Awaitable[Any]],
        *,
        kernel_id: str = "",
        checkpoint: str = "",
    ) -> None:
        self.id = str(uuid.uuid4())
        self.kind = kind
        self.kernel_id = kernel_id
        self.checkpoint = checkpoint
        self.stage = ""
        self.done = self.total = 0
        self.ended_at: float | None = None
        self._work = work
        self._task: asyncio.Task[Any] | None = None
        self._phase: Literal["new", "before", "agent", "after"] = "new"
        self._cancelled = False

    def start(self) -> None:
        """Begin. Called by :class:`Operations`, on the event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(self._ended)

    def _ended(self, _: asyncio.Task[Any]) -> None:
        self.ended_at = time.monotonic()

    async def _run(self) -> Any:
        self._phase = "before"
        try:
            return await self._work(self)
        except asyncio.CancelledError:
            if self._cancelled:
                raise _cancelled() from None
            raise

    @contextmanager
    def at_agent(self) -> Iterator[None]:
        """The agent works on it. What comes after that is not taken back any more."""
        self._phase = "agent"
        yield
        self._phase = "after"

    def progress(self, event: Event) -> None:
        """Take in an event of the agent."""
        self.stage, self.done, self.total = event.stage, event.done, event.total

    async def outcome(self) -> Any:
        """Wait for the end; what the work returned or raised. Cancelling this leaves it running."""
        assert self._task is not None
        await asyncio.wait([self._task])
        if self._task.cancelled():
            raise _cancelled()
        return self._task.result()

    async def cancel(self) -> None:
        """Have it end as if it had never begun; it raises ``Cancelled`` then.

        Raises
        ------
        Conflict
            If it has ended, or has gone too far for that.
        """
        assert self._task is not None
        while self.running:
            match self._phase:
                case "new":
                    await asyncio.sleep(0)
                case "before":
                    self._cancelled = True
                    self._task.cancel()
                    return
                case "agent":
                    try:
                        async with connect() as agent:
                            await agent.cancel(self.id)
                    except NotFound:  # our request is still on its way
                        await asyncio.sleep(_AGAIN)
                    else:
                        return
                case "after":
                    break
        raise Conflict(
            f"It is too late to cancel operation {self.id}.", reason="It is done, or nearly so."
        )

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.ended_at is None

    def model(self) -> OperationModel:
        """What is known of it now."""
        state: State = "running"
        result, error = None, None
        task = self._task
        if task is not None and task.done():
            failure = _cancelled() if task.cancelled() else task.exception()
            if failure is None:
                state, result = "done", msgspec.to_builtins(task.result())
            else:
                state = "cancelled" if isinstance(failure, Cancelled) else "failed"
                error = known(failure).to_json()
        return OperationModel(
            id=self.id,
            kind=self.kind,
            state=state,
            kernel_id=self.kernel_id,
            checkpoint=self.checkpoint,
            stage=self.stage,
            done=self.done,
            total=self.total,
            result=result,
            error=error,
        )


class Operations:
    """Those that run and those that ended lately."""

    def __init__(self) -> None:
        self._operations: OrderedDict[str, Operation] = OrderedDict()

    def start(self, operation: Operation) -> Operation:
        """Begin an operation and keep it to be asked for."""
        self._drop_old()
        self._operations[operation.id] = operation
        operation.start()
        return operation

    def get(self, operation_id: str) -> Operation:
        """One operation. ``NotFound`` if it is not known (any more)."""
        operation = self._operations.get(operation_id)
        if operation is None:
            raise NotFound(f"There is no operation {operation_id} (any more).")
        return operation

    def running(self) -> list[Operation]:
        """Those that have not ended."""
        return [o for o in self._operations.values() if o.running]

    def _drop_old(self) -> None:
        ended = [o for o in self._operations.values() if o.ended_at is not None]
        limit = time.monotonic() - KEEP
        for number, operation in enumerate(ended):
            too_many = len(ended) - number > MOST
            if too_many or (operation.ended_at is not None and operation.ended_at < limit):
                del self._operations[operation.id]


def _cancelled() -> Cancelled:
    return Cancelled("The operation was cancelled; nothing was changed.")


def known(error: BaseException) -> CheckpointsError:
    """The error as one of ours; what we do not know is a defect, and says so."""
    if isinstance(error, CheckpointsError):
        return error
    if isinstance(error, asyncio.CancelledError):
        return _cancelled()
    return CheckpointsError(
        "Something went wrong in the server.",
        reason=f"{type(error).__name__}: {error}",
        hint="This is a defect; the server's log has the details.",
    )
