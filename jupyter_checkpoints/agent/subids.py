"""Subordinate ids: a range of user and group ids for each ordinary user's containers.

Outside of his containers a range belongs to nobody, and never to two users: what is written down
stays. Ranges start above the ids of people and services, of directory services and of systemd
(https://systemd.io/UIDS-GIDS), and are never where ``/etc/subuid`` or ``/etc/subgid`` has given
ids away or the user database has a user or group.
"""

from __future__ import annotations

import grp
import os
import pwd
import threading
from pathlib import Path

import msgspec

from ..errors import InsufficientResources, NotAllowed

#: Ids of one range: all that a container's image may use.
SIZE = 1 << 16
#: Larger ids are negative numbers to some programs.
_END = 1 << 31


class SubordinateIds:
    """The ranges of one agent's users. All methods block: call them in a thread.

    Parameters
    ----------
    path:
        Where they are written down.
    first:
        The first id of the first range; ranges given before stay where they are.
    """

    def __init__(self, path: Path, first: int) -> None:
        self.path = path
        self.first = first
        self._lock = threading.Lock()

    def range_of(self, uid: int) -> int:
        """The first id of a user's range, which is given to him now if he has none.

        Raises
        ------
        NotAllowed
            If the uid is in a range itself: then it is no user but somebody's container.
        InsufficientResources
            If no range is left.
        """
        with self._lock:
            given = self._read()
            if any(start <= uid < start + SIZE for start in given.values()):
                raise NotAllowed(f"User {uid} is part of another user's containers.")
            if (start := given.get(uid)) is None:
                start = given[uid] = self._free(given)
                self._write(given)
            return start

    def _free(self, given: dict[int, int]) -> int:
        taken = [(start, SIZE) for start in given.values()] + _taken()
        for start in range(self.first, _END - SIZE + 1, SIZE):
            if not any(start < first + size and first < start + SIZE for first, size in taken):
                return start
        raise InsufficientResources(
            "There are no subordinate user ids left for another user.",
            reason=f"Ranges of {SIZE} ids from {self.first} to {_END} are all taken.",
            hint="Give the agent a smaller `first_subordinate_id`.",
        )

    def _read(self) -> dict[int, int]:
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=dict[int, int])
        except FileNotFoundError:
            return {}

    def _write(self, given: dict[int, int]) -> None:
        temporary = self.path.with_suffix(".tmp")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(given))
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, self.path)


def _taken() -> list[tuple[int, int]]:
    """What this host has given away: (first id, how many)."""
    found = [(entry.pw_uid, 1) for entry in pwd.getpwall()]
    found += [(entry.gr_gid, 1) for entry in grp.getgrall()]
    for path in (Path("/etc/subuid"), Path("/etc/subgid")):
        try:
            lines = path.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            continue
        for line in lines:
            match line.split(":"):
                case [_, first, size] if first.isdecimal() and size.isdecimal():
                    found.append((int(first), int(size)))
    return found
