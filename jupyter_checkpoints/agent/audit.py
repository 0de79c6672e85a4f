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
#: Whatever level the agent's log has.
log.setLevel(logging.INFO)

#: So many lines of one user at once, and so many a second in the long run; what is more is
#: counted and not written. Connections are counted apart from requests.
_BURST = 200
_RATE = 10.0
_TEXT = 500

Outcome = Literal["done", "failed", "refused"]


class Peer(Struct, frozen=True):
    """The process at the other end of a connection, as the kernel says (SO_PEERCRED)."""

    pid: int
    uid: int
    gid: int


class _Budget:
    """Lines that may be written now."""

    def __init__(self) -> None:
        self.left = float(_BURST)
        self.omitted = 0
        self._seen = time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self.left = min(_BURST, self.left + (now - self._seen) * _RATE)
        self._seen = now
        if self.left < 1:
            self.omitted += 1
            return False
        self.left -= 1
        return True


class Audit:
    """Writes the log; made once by the agent. A user who floods it fills no disk."""

    def __init__(self) -> None:
        self._budgets: dict[tuple[int, bool], _Budget] = {}

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
        budget = self._budgets.setdefault((peer.uid, action == "connect"), _Budget())
        if not budget.take():
            return
        if budget.omitted:
            flood = {"action": "flood", "outcome": "refused", "omitted": budget.omitted}
            self._write(peer, flood)
            budget.omitted = 0
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
