"""The audit log: one line of JSON for every refusal, and for every act for or on another user.

Logger ``jupyter_checkpoints.audit``; part of the agent's log unless its ``logging_config`` sends
it elsewhere. No line holds content of a request: only who, what, on which object, and the outcome.
"""

from __future__ import annotations

import datetime
import json
import logging
import time
from typing import Literal

from msgspec import Struct

log = logging.getLogger("jupyter_checkpoints.audit")

#: So many lines of one user in so many seconds; what is more is counted and not written.
_MOST = 200
_SECONDS = 10.0
_TEXT = 500

Outcome = Literal["done", "failed", "refused"]


class Peer(Struct, frozen=True):
    """The process at the other end of a connection, as the kernel says (SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


class Audit:
    """Writes the log; made once by the agent. A user who floods it fills no disk."""

    def __init__(self) -> None:
        self._windows: dict[int, tuple[float, int]] = {}

    def note(
        self,
        peer: Peer,
        action: str,
        outcome: Outcome,
        *,
        subject: str = "",
        reason: str = "",
        acting_for: int | None = None,
        owners: frozenset[int] = frozenset(),
    ) -> None:
        """Write a line.

        Parameters
        ----------
        action:
            Method and path, as they were sent.
        subject:
            The kernel, checkpoint or image, if the action has one.
        acting_for:
            The user that root has named.
        owners:
            Other users whose kernels or checkpoints the action was about.
        """
        began, count = self._windows.get(peer.uid, (0.0, 0))
        now = time.monotonic()
        if now - began >= _SECONDS:
            if count > _MOST:
                self._write(
                    peer, {"action": "flood", "outcome": "refused", "omitted": count - _MOST}
                )
            began, count = now, 0
        self._windows[peer.uid] = (began, count + 1)
        if count >= _MOST:
            return
        line: dict[str, object] = {"action": action, "outcome": outcome}
        if subject:
            line["object"] = subject[:_TEXT]
        if acting_for is not None:
            line["for"] = acting_for
        if owners:
            line["owners"] = sorted(owners)
        if reason:
            line["reason"] = reason[:_TEXT]
        self._write(peer, line)

    def _write(self, peer: Peer, line: dict[str, object]) -> None:
        moment = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        level = logging.INFO if line["outcome"] == "done" else logging.WARNING
        log.log(level, "%s", json.dumps({"time": moment, "uid": peer.uid, "pid": peer.pid, **line}))
