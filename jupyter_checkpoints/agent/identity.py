"""Who a caller is on this host, and what the paths he names are to him.

Every path that comes from outside goes through :class:`PathOpener`: it is resolved once, by a
process that has the caller's rights and no others, and is a descriptor from then on.
"""

from __future__ import annotations

import asyncio
import errno
import grp
import json
import os
import pwd
import socket
import stat
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Literal, Protocol

from msgspec import Struct

from ..errors import CheckpointsError, HostNotReady, InvalidRequest, NotAllowed
from ..models import Mount
from . import opener
from .process import start_isolated

_FOREIGN = (errno.EACCES, errno.EPERM)


class Identity(Struct, frozen=True, kw_only=True):
    """A user of this host: what his processes run as, outside of every container."""

    uid: int
    gid: int
    groups: list[int] = []
    """The supplementary groups."""

    @property
    def is_root(self) -> bool:
        return self.uid == 0


ROOT = Identity(uid=0, gid=0)


def identity_of(uid: int, gid: int | None = None) -> Identity:
    """The user with this uid, with the groups that the user database gives him. Blocking.

    ``gid``: the group of one that the database does not know (as SO_PEERCRED tells it).

    Raises
    ------
    InvalidRequest
        If the database does not know him and no ``gid`` is given.
    """
    if uid == 0:
        return ROOT
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        if gid is None:
            raise InvalidRequest(f"There is no user {uid} on this host.") from None
        return Identity(uid=uid, gid=gid)
    groups = sorted(set(os.getgrouplist(entry.pw_name, entry.pw_gid)))
    return Identity(uid=uid, gid=entry.pw_gid, groups=groups)


def identity_named(name: str) -> Identity:
    """The user with this name or number; called where root acts for somebody. Blocking.

    Raises
    ------
    InvalidRequest
        If the user database has none.
    """
    if name.isascii() and name.isdigit() and len(name) < 10:
        return identity_of(int(name))
    try:
        return identity_of(pwd.getpwnam(name).pw_uid)
    except (KeyError, ValueError):
        raise InvalidRequest(f"There is no user {name[:80]!r} on this host.") from None


def group_ids(names: Sequence[str]) -> frozenset[int]:
    """The gids of groups; one that does not exist has no members and is left out. Blocking."""
    found = set()
    for name in names:
        try:
            found.add(int(name) if name.isdigit() else grp.getgrnam(name).gr_gid)
        except KeyError:
            continue
    return frozenset(found)


class OpenMount(Struct, frozen=True, kw_only=True):
    """A mount whose source is open: what an engine binds is ``fd``, whatever ``source`` is now."""

    fd: int
    source: str
    target: str
    read_only: bool
    executable: bool
    """Whether the host lets programs in there be run."""
    directory: bool


class Volumes(Protocol):
    """Volumes that have names; :class:`~.docker_volumes.DockerVolumes`."""

    def open(self, name: str, identity: Identity) -> int:
        """A descriptor of a volume's directory."""

    def create(self, name: str, identity: Identity) -> None:
        """Make a volume that is not there yet."""

    def require(self, name: str) -> None:
        """Raise ``NotFound`` if there is none of that name."""


class PathOpener:
    """Opens and measures paths with a caller's rights; made once by the agent.

    ``volumes``: those that can be named instead; ``None`` if there are none.

    Its helper process starts with the first ordinary user who needs it, and ends with the agent.
    """

    def __init__(self, volumes: Volumes | None = None) -> None:
        self._volumes = volumes
        self._lock = threading.Lock()
        self._helper: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    @asynccontextmanager
    async def opened(
        self, identity: Identity, mounts: Sequence[Mount]
    ) -> AsyncIterator[list[OpenMount]]:
        """The mounts with their sources open, as long as the context lasts.

        Raises
        ------
        NotAllowed
            If the user may not read one.
        InvalidRequest
            If one does not exist, or is neither a directory nor a regular file.
        """
        found = await asyncio.to_thread(self._open_all, identity, mounts)
        try:
            yield found
        finally:
            for mount in found:
                os.close(mount.fd)

    def sizes(self, identity: Identity, paths: Sequence[str]) -> list[int | None]:
        """The files' sizes; ``None`` for one that the user cannot reach. Blocking."""
        if not paths:
            return []
        if identity.is_root:
            said = [_or_errno(opener.size_of, path) for path in paths]
        else:
            said, _ = self._ask(identity, "size", paths)
        return [size if size >= 0 else None for size in said]

    @property
    def volumes(self) -> Volumes:
        """Those that can be named. Raises ``InvalidRequest`` if the engine has none."""
        if self._volumes is None:
            raise InvalidRequest(
                "Volumes cannot be mounted by name here.",
                reason="They are Docker's, and this agent uses the embedded engine.",
                hint="Mount a directory of the host, by its path.",
            )
        return self._volumes

    def create_volumes(self, identity: Identity, mounts: Sequence[Mount]) -> None:
        """Make the volumes among the mounts that are not there yet. Blocking."""
        for mount in mounts:
            if mount.volume:
                self.volumes.create(mount.volume, identity)

    def close(self) -> None:
        """End the helper. Blocking."""
        with self._lock:
            self._stop()

    def _open_all(self, identity: Identity, mounts: Sequence[Mount]) -> list[OpenMount]:
        paths = [mount.source for mount in mounts if not mount.volume]
        codes, opened = self._open_paths(identity, paths)
        descriptors: list[int] = []
        try:
            for path, code in zip(paths, codes, strict=True):
                if code:
                    raise _refusal(identity, path, code)
            for mount in mounts:
                if mount.volume:
                    descriptors.append(self.volumes.open(mount.volume, identity))
                else:
                    descriptors.append(opened.pop(0))
            return [_open_mount(mount, fd) for mount, fd in zip(mounts, descriptors, strict=True)]
        except BaseException:
            for fd in descriptors + opened:
                os.close(fd)
            raise

    def _open_paths(self, identity: Identity, paths: Sequence[str]) -> tuple[list[int], list[int]]:
        """For each path 0 or an errno, and a descriptor of each that could be opened."""
        if not paths:
            return [], []
        if not identity.is_root:
            return self._ask(identity, "open", paths)
        codes: list[int] = []
        descriptors: list[int] = []
        for path in paths:
            try:
                descriptors.append(opener.open_path(path))
                codes.append(0)
            except OSError as error:
                codes.append(error.errno or errno.EIO)
        return codes, descriptors

    def _ask(
        self, identity: Identity, kind: Literal["open", "size"], paths: Sequence[str]
    ) -> tuple[list[int], list[int]]:
        """Let a child with the user's rights look: what it said, and what it opened."""
        question = {
            "uid": identity.uid,
            "gid": identity.gid,
            "groups": identity.groups,
            "kind": kind,
            "paths": list(paths),
        }
        ours, theirs = socket.socketpair()
        received: list[int] = []
        said = b""
        with ours:
            with theirs:
                self._send(theirs)
            # The child is ended when its time is up, which ends this wait, too.
            ours.settimeout(opener.PATIENCE + 5)
            try:
                ours.sendall(json.dumps(question).encode())
                ours.shutdown(socket.SHUT_WR)
                while True:
                    data, descriptors = opener.receive(ours, 1 << 16, len(paths))
                    received += descriptors
                    if not data:
                        break
                    said += data
                answers: list[int] = json.loads(said)
                if len(answers) != len(paths):
                    raise ValueError("an answer for each path was expected")
                return answers, received
            except (OSError, ValueError) as error:
                for fd in received:
                    os.close(fd)
                raise HostNotReady(
                    f"The paths could not be looked at for user {identity.uid}.",
                    reason="They may lie in a file system that does not answer."
                    if not said
                    else str(error),
                    hint="Try again; the agent's log may tell more.",
                ) from error

    def _send(self, end: socket.socket) -> None:
        with self._lock:
            for _ in range(2):
                if self._control is None:
                    self._start()
                assert self._control is not None
                try:
                    socket.send_fds(self._control, [b"\0"], [end.fileno()])
                    return
                except OSError:  # it was killed: the next one is as good
                    self._stop()
            raise CheckpointsError("The process that opens paths does not stay.")

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._helper = start_isolated(opener.__file__, theirs)
        self._control = ours

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._helper is not None:
            self._helper.kill()
            self._helper.wait()
            self._helper = None


def _open_mount(mount: Mount, fd: int) -> OpenMount:
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise InvalidRequest(
            f"{mount.source} cannot be mounted.",
            reason="It is neither a directory nor a regular file.",
        )
    # What the host has mounted read-only or without programs stays so inside.
    flags = os.statvfs(fd).f_flag
    return OpenMount(
        fd=fd,
        source=mount.source,
        target=mount.target,
        read_only=mount.read_only or bool(flags & os.ST_RDONLY),
        executable=not flags & os.ST_NOEXEC,
        directory=stat.S_ISDIR(mode),
    )


def _or_errno(look: Callable[[str], int], path: str) -> int:
    try:
        return look(path)
    except OSError as error:
        return -(error.errno or errno.EIO)


def _refusal(identity: Identity, path: str, code: int) -> CheckpointsError:
    if code in _FOREIGN:
        return NotAllowed(
            f"{path} cannot be mounted.",
            reason=f"User {identity.uid} may not read it.",
            hint="A kernel is shown what its user can open, and nothing else.",
        )
    if code == errno.ENOENT:
        return InvalidRequest(
            f"{path} cannot be mounted.", reason="It does not exist on this host."
        )
    return InvalidRequest(f"{path} cannot be mounted.", reason=os.strerror(code))
