"""What the agent writes down of each kernel, and the checks every request passes first."""

from __future__ import annotations

import datetime
import errno
import os

from msgspec import Struct, field

from ..errors import CheckpointsError, InsufficientResources, InvalidRequest, SaveFailed
from ..models import (
    PORTS,
    ConnectionInfo,
    KernelState,
    Limits,
    Mount,
    StartRequest,
)
from .identity import ROOT, Identity

#: What a mount may never hide or show: the container's own, and the agent's.
_RESERVED = ("/proc", "/sys", "/dev", "/run/jupyter", "/.jupyter-checkpoints", "/etc")


class Caller(Struct):
    """For whom a request is: who asks, as the kernel says (SO_PEERCRED), or whom root names."""

    uid: int
    identity: Identity = ROOT
    """What his kernels run as."""
    owners: set[int] = field(default_factory=set)
    """Others whose kernels or checkpoints this request has named, for the audit log."""

    def owns(self, uid: int) -> bool:
        """Whether he sees what belongs to ``uid``, in a list for instance."""
        return self.uid in (0, uid)

    def reaches(self, uid: int) -> bool:
        """As :meth:`owns`, for one object that the request names."""
        if uid != self.uid:
            self.owners.add(uid)
        return self.owns(uid)


class Record(Struct, kw_only=True):
    """What is known of one kernel; ``record.json`` in its directory."""

    request: StartRequest
    uid: int
    created: str
    image: str
    image_digest: str
    argv: list[str]
    env: dict[str, str]
    cwd: str
    hostname: str
    machine_id: str = ""
    """Content of /etc/machine-id; empty for kernels of earlier agents, which have none."""
    limits: Limits
    mounts: list[Mount]
    connection: ConnectionInfo
    identity: Identity = ROOT
    """What it runs as. Kernels from before this was written down run as root."""
    state: KernelState = "starting"
    checkpoint: str = ""
    parent: str = ""
    """The checkpoint that the next one descends from."""
    exit_code: int | None = None
    reason: str = ""
    """Why it was ended, if it was because it could not go on."""


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def hostname_of(kernel_id: str) -> str:
    return f"kernel-{kernel_id[:12]}"


def connection_of(key: str, kernel_name: str) -> ConnectionInfo:
    return ConnectionInfo(ip="", key=key, kernel_name=kernel_name, **PORTS)  # type: ignore[arg-type]


def ports_of(connection: ConnectionInfo) -> tuple[int, ...]:
    return tuple(getattr(connection, name) for name in PORTS)


def checked_argv(argv: list[str]) -> list[str]:
    if any("\0" in argument for argument in argv):
        raise InvalidRequest("An argument of the kernel's command holds a NUL character.")
    if sum(map(len, argv)) > 128 * 1024:
        raise InvalidRequest("The kernel's command is longer than 128 KiB.")
    return argv


def checked_env(env: dict[str, str]) -> dict[str, str]:
    for name, value in env.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise InvalidRequest(f"{name!r} cannot be the name of an environment variable.")
    # Bytes, as the kernel counts them.
    if sum(len(n.encode()) + len(v.encode()) for n, v in env.items()) > 512 * 1024:
        raise InvalidRequest("The environment is larger than 512 KiB.")
    return env


def checked_mounts(mounts: list[Mount]) -> list[Mount]:
    """Absolute, plain, and not where the container or the agent has its own."""
    targets = set()
    for mount in mounts:
        for path in (mount.source, mount.target):
            plain = path.isprintable() and os.path.isabs(path) and os.path.normpath(path) == path
            if (not plain or path.startswith("//")) and (
                path != mount.volume or path == mount.target
            ):
                raise InvalidRequest(
                    f"{path[:200]!r} cannot be mounted.",
                    reason="A mount needs absolute paths without `.`, `..`, a slash at the end, "
                    "or characters that cannot be printed, or the name of a volume.",
                )
        if mount.target == "/" or any(
            mount.target == r or mount.target.startswith(r + "/") for r in _RESERVED
        ):
            raise InvalidRequest(f"Nothing can be mounted at {mount.target}.")
        if mount.target in targets:
            raise InvalidRequest(f"Two mounts have the same target: {mount.target}.")
        targets.add(mount.target)
    return mounts


def from_os_error(
    error: OSError, message: str = "The kernel could not be saved; it goes on running."
) -> CheckpointsError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InsufficientResources(
            message,
            reason="The disk is full.",
            hint="Free some space, or delete checkpoints.",
        )
    return SaveFailed(message, reason=str(error))
