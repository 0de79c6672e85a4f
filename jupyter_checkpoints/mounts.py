"""Which of the host's directories a kernel's container shows, and where.

The agent checks every mount again with the caller's rights; what is refused here would only make
a kernel useless: an image's own ``/usr`` hidden behind the host's, for instance.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from . import layout
from .errors import InvalidRequest
from .models import Mount, is_volume

#: Belong to the image or the system, with everything below them.
_TREES = (
    *("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/run"),
    *("/sbin", "/sys", "/usr", "/var/run"),
    str(layout.DATA_DIR),
)
#: Belong to the image or the system themselves; what users keep below them may be shown.
_DIRECTORIES = ("/", "/opt", "/tmp", "/var", "/var/lib", "/var/tmp")


def is_refused(path: str | os.PathLike[str]) -> bool:
    """Whether a directory of the host must not appear at its own path in a container."""
    pure = PurePosixPath(path)
    return str(pure) in _DIRECTORIES or any(pure.is_relative_to(tree) for tree in _TREES)


def own_path_mount(directory: str | os.PathLike[str]) -> Mount | None:
    """Show ``directory`` at its own path; ``None`` if it is refused or is no directory.

    A symbolic link is shown under its own name, with the content it points to.
    """
    target = os.path.abspath(os.path.expanduser(directory))
    source = os.path.realpath(target)
    if is_refused(target) or is_refused(source) or not os.path.isdir(source):
        return None
    return Mount(source=source, target=target)


def volume_mounts(volumes: Mapping[str, Any], *, read_only: bool = False) -> list[Mount]:
    """``{host path: container path}``, or ``{host path: {"bind": path, "mode": "ro"}}``.

    The vocabulary is dockerspawner's ``volumes`` and ``read_only_volumes``: in place of a host
    path there may be the name of a volume of Docker's, and ``{username}`` in either.

    Raises
    ------
    InvalidRequest
        If a path is not absolute or an entry has another shape.
    """
    mounts = []
    user = getpass.getuser()
    for host, where in volumes.items():
        target = where.get("bind") if isinstance(where, Mapping) else where
        mode = where.get("mode", "rw") if isinstance(where, Mapping) else "rw"
        source = os.path.expanduser(host.replace("{username}", user))
        if not isinstance(target, str) or mode not in {"rw", "ro"}:
            raise InvalidRequest(
                f"The volume {host!r} cannot be read: {where!r}.",
                hint='Write {"/host/path": "/container/path"} or '
                '{"/host/path": {"bind": "/container/path", "mode": "ro"}}.',
            )
        if not (os.path.isabs(source) or is_volume(source)) or not os.path.isabs(target):
            raise InvalidRequest(
                f"The volume {host!r} → {target!r} is not absolute on both sides.",
                hint="What can be mounted are host directories by absolute path, and with Docker "
                "Engine volumes by name.",
            )
        mounts.append(
            Mount(
                source=source if is_volume(source) else os.path.realpath(source),
                target=os.path.normpath(target),
                read_only=read_only or mode == "ro",
            )
        )
    return mounts


def in_place_of(others: list[Mount], directory: str | os.PathLike[str]) -> list[Mount]:
    """A directory in the place of those that another user's kernel had at their own paths."""
    source = os.path.realpath(directory)
    return [
        Mount(source=source, target=mount.target, read_only=mount.read_only)
        for mount in others
        if mount.source == mount.target
    ]


def covers(mounts: list[Mount], directory: str | os.PathLike[str]) -> bool:
    """Whether ``directory`` exists in a container with these mounts, at its own path."""
    path = Path(directory)
    return any(
        path.is_relative_to(mount.target)
        and not mount.volume
        and (Path(mount.source) / path.relative_to(mount.target)).is_dir()
        for mount in mounts
    )
