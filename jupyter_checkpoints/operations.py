"""Long work that somebody may ask after: what it is, how far it is, how it ended."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec
from msgspec import Struct

from .errors import CheckpointsError
from .models import Event

Kind = Literal["save", "resume", "import"]
State = Literal["running", "done", "failed"]

#: Seconds that an operation can be asked for after its end.
KEEP = 600.0
#: Ended operations that are kept at most.
MOST = 1000


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
    """Runs ``work`` in a task of its own: it goes on when nobody waits for it any more."""

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

    def start(self) -> None:
        """Begin. Called by :class:`Operations`, on the event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> Any:
        try:
            return await self._work(self)
        finally:
            self.ended_at = time.monotonic()

    def progress(self, event: Event) -> None:
        """Take in an event of the agent."""
        self.stage, self.done, self.total = event.stage, event.done, event.total

    async def outcome(self) -> Any:
        """Wait for the end; what the work returned or raised. Cancelling this leaves it running."""
        assert self._task is not None
        return await asyncio.shield(self._task)

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
            failure = asyncio.CancelledError() if task.cancelled() else task.exception()
            if failure is None:
                state, result = "done", msgspec.to_builtins(task.result())
            else:
                state, error = "failed", known(failure).to_json()
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

    def get(self, operation_id: str) -> Operation | None:
        """One operation, if it is known (still)."""
        return self._operations.get(operation_id)

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


def known(error: BaseException) -> CheckpointsError:
    """The error as one of ours; what we do not know is a defect, and says so."""
    if isinstance(error, CheckpointsError):
        return error
    return CheckpointsError(
        "Something went wrong in the server.",
        reason=f"{type(error).__name__}: {error}",
        hint="This is a defect; the server's log has the details.",
    )
