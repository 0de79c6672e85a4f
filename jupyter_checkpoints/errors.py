"""Every error a user or a client can meet, in one small tree.

::

    CheckpointsError
    ├── InvalidRequest          400  exit  2  the input is wrong; nothing was changed
    ├── NotFound                404  exit  3  no such kernel, checkpoint or image (or not yours)
    ├── Conflict                409  exit  4  the kernel or checkpoint is busy or in the wrong state
    ├── NotAllowed              403  exit  5  this user may not do that here
    ├── HostNotReady            503  exit  6  the host lacks a tool or a feature
    ├── AgentUnavailable        503  exit  7  no agent answers on the socket
    ├── InsufficientResources   507  exit  8  not enough disk or memory
    ├── StartFailed             500  exit  9  the kernel's container did not start
    ├── SaveFailed              500  exit 10  the kernel could not be saved; it goes on running
    ├── ResumeFailed            500  exit 11  the checkpoint could not be resumed
    ├── PreflightBlocked        409  exit 12  the checkpoint cannot be resumed on this host
    ├── CheckpointDamaged       422  exit 13  files of the checkpoint are missing or changed
    ├── OperationTimeout        504  exit 14  a bounded operation took too long and was ended
    ├── Cancelled               409  exit 15  a user ended the operation; nothing was changed
    └── QuotaExceeded           403  exit 16  it would be more than this user may have here

``message`` says what happened, ``reason`` why, ``hint`` what the user can do.
They travel as JSON (``to_json``) from the agent to its clients, which raise the same class again
(``from_json``).  The HTTP status and the exit code of a class are mapped here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class CheckpointsError(Exception):
    """Root of the tree. Raised itself only for defects of ours (HTTP 500, exit status 1)."""

    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        hint: str = "",
        findings: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.hint = hint
        self.findings = [dict(f) for f in findings]

    def __str__(self) -> str:
        parts = [self.message]
        if self.reason:
            parts.append(f"Reason: {self.reason}")
        parts.extend(f"- {f.get('message', '')}" for f in self.findings)
        if self.hint:
            parts.append(self.hint)
        return "\n".join(parts)

    def to_json(self) -> dict[str, Any]:
        """The body of an error answer: ``message`` and ``reason`` as in Jupyter Server's API."""
        body: dict[str, Any] = {
            "code": type(self).__name__,
            "message": self.message,
            "reason": self.reason,
            "hint": self.hint,
        }
        if self.findings:
            body["findings"] = self.findings
        return body

    @staticmethod
    def from_json(body: Mapping[str, Any]) -> CheckpointsError:
        """Rebuild the error that an agent answered with; an unknown code becomes the root class."""
        cls = _CLASSES.get(str(body.get("code", "")), CheckpointsError)
        return cls(
            str(body.get("message", "unknown error")),
            reason=str(body.get("reason", "")),
            hint=str(body.get("hint", "")),
            findings=body.get("findings") or (),
        )


class InvalidRequest(CheckpointsError):
    """The caller's input is wrong; nothing was changed."""

    http_status = 400
    exit_code = 2


class NotFound(CheckpointsError):
    """No such kernel, checkpoint or image, or none that this caller may see."""

    http_status = 404
    exit_code = 3


class Conflict(CheckpointsError):
    """The object is busy or in a state that does not allow this."""

    http_status = 409
    exit_code = 4


class NotAllowed(CheckpointsError):
    """This user may not do that on this host."""

    http_status = 403
    exit_code = 5


class HostNotReady(CheckpointsError):
    """The host lacks a program or a kernel feature."""

    http_status = 503
    exit_code = 6


class AgentUnavailable(CheckpointsError):
    """No agent answers on the socket. Raised by the client only."""

    http_status = 503
    exit_code = 7


class InsufficientResources(CheckpointsError):
    """Not enough disk space, memory or addresses."""

    http_status = 507
    exit_code = 8


class StartFailed(CheckpointsError):
    """The kernel's container did not start."""

    exit_code = 9


class SaveFailed(CheckpointsError):
    """The kernel could not be saved. It goes on running, or the error says that it has ended."""

    exit_code = 10


class ResumeFailed(CheckpointsError):
    """The checkpoint could not be resumed. It stays as it is."""

    exit_code = 11


class PreflightBlocked(CheckpointsError):
    """The checkpoint cannot be resumed here; ``findings`` says why. Nothing was touched."""

    http_status = 409
    exit_code = 12


class CheckpointDamaged(CheckpointsError):
    """Files of a checkpoint are missing or are not what was written."""

    http_status = 422
    exit_code = 13


class OperationTimeout(CheckpointsError):
    """A bounded operation took too long and was ended."""

    http_status = 504
    exit_code = 14


class Cancelled(CheckpointsError):
    """A user ended the operation before it was done; nothing was changed."""

    http_status = 409
    exit_code = 15


class QuotaExceeded(CheckpointsError):
    """More kernels, memory, stored bytes or connections than the administrator lets a user have."""

    http_status = 403
    exit_code = 16


_CLASSES: dict[str, type[CheckpointsError]] = {
    cls.__name__: cls for cls in CheckpointsError.__subclasses__()
}
