"""The lock that makes one process the only one to change a directory."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from pathlib import Path

import msgspec
from msgspec import Struct

from ..errors import Conflict

log = logging.getLogger(__name__)


class Owner(Struct, frozen=True, kw_only=True):
    """Who holds, or held, a lock."""

    pid: int
    started: int
    """The process' start in clock ticks since boot, which tells it from a later one's pid."""
    boot_id: str
    host: str

    @staticmethod
    def this() -> Owner:
        """This process."""
        return Owner(
            pid=os.getpid(),
            started=_started(os.getpid()),
            boot_id=_boot_id(),
            host=socket.gethostname(),
        )

    def lives(self) -> bool:
        """Whether it runs; a process of another host or boot cannot be seen and counts as gone."""
        return self.boot_id == _boot_id() and _started(self.pid) == self.started != 0


class DirectoryLock:
    """Held from its making until :meth:`close`, or the end of the process.

    The kernel's lock decides, so a dead owner holds nothing; what is written in the file tells
    whom to ask, and that an owner did not end as it should.

    Raises
    ------
    Conflict
        If another process holds it.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = self._owner()
            os.close(self._fd)
            raise Conflict(
                f"Another agent uses {path.parent}.",
                reason=f"It is process {owner.pid} on {owner.host}." if owner else str(error),
                hint="Give each agent a data directory of its own, or end the other one.",
            ) from error
        owner = self._owner()
        if owner is not None and not owner.lives():
            log.warning("Took over %s from process %s, which has died", path.parent, owner.pid)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, msgspec.json.encode(Owner.this()), 0)

    def _owner(self) -> Owner | None:
        try:
            return msgspec.json.decode(os.pread(self._fd, 4096, 0), type=Owner)
        except (OSError, msgspec.MsgspecError):
            return None

    def close(self) -> None:
        """Let go of it; it may be called again."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1


def _started(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    # The name in parentheses may hold spaces, and the start is the 20th field behind it.
    return int(stat.rpartition(")")[2].split()[19])


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
