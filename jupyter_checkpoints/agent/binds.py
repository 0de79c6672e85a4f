"""Binds mounts that are open already to places of the agent's own, from where containers get them.

A path that a user has named is never given to runc or CRIU, which would resolve it as root: what
he puts in its place after it was checked would be mounted.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from pathlib import Path

from .identity import OpenMount

# The same numbers everywhere.
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV, _ATTR_NOEXEC = 1, 2, 4, 8
_ATTR_IDMAP = 0x100000
_MS_PRIVATE = 1 << 18
_MNT_DETACH = 2
_LIBC = ctypes.CDLL(None, use_errno=True)


def stage(mounts: Sequence[OpenMount], directory: Path) -> None:
    """Bind each mount to ``directory / str(number)``: nosuid, nodev, private. Blocking.

    They are gone with ``unmount_below(directory)``. What is mounted below a source is not shown.
    Raises ``OSError``.
    """
    directory.mkdir(mode=0o700)
    for number, mount in enumerate(mounts):
        place = directory / str(number)
        if mount.directory:
            place.mkdir(mode=0o700)
        else:
            place.touch(mode=0o600)
        _bind(mount, place)


def _bind(mount: OpenMount, place: Path) -> None:
    attributes = _ATTR_NOSUID | _ATTR_NODEV
    attributes |= _ATTR_RDONLY if mount.read_only else 0
    attributes |= 0 if mount.executable else _ATTR_NOEXEC
    _attach(mount.fd, mount.source, place, attributes, 0)


def attach(source: Path, place: Path, namespace: int) -> None:
    """Mount a directory of the agent's own at ``place``, its ids mapped by a user namespace.

    Blocking. Raises ``OSError``: ``EINVAL`` where the file system cannot do it.
    """
    place.mkdir(mode=0o700)
    attributes = _ATTR_NOSUID | _ATTR_NODEV | _ATTR_IDMAP
    descriptor = os.open(source, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        _attach(descriptor, os.fspath(source), place, attributes, namespace)
    finally:
        os.close(descriptor)


def detach(place: Path) -> None:
    """Unmount what is mounted at ``place`` and below, if anything is. Blocking."""
    _LIBC.umount2(os.fsencode(place), _MNT_DETACH)


def _attach(source: int, name: str, place: Path, attributes: int, namespace: int) -> None:
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH
    tree = _call(_SYS_OPEN_TREE, name, source, b"", flags)
    try:
        # struct mount_attr: set, clear, propagation, user namespace
        wanted = struct.pack("QQQQ", attributes, 0, _MS_PRIVATE, namespace)
        size = ctypes.c_size_t(len(wanted))
        _call(_SYS_MOUNT_SETATTR, name, tree, b"", _AT_EMPTY_PATH, wanted, size)
        target = os.fsencode(place)
        flags = _MOVE_MOUNT_F_EMPTY_PATH
        _call(_SYS_MOVE_MOUNT, name, tree, b"", _AT_FDCWD, target, flags)
    finally:
        os.close(tree)


def _call(number: int, path: str, *arguments: object) -> int:
    result: int = _LIBC.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return result
