"""Binds mounts that are open already to places of the agent's own, from where containers get them.

A path that a user has named is never given to runc or CRIU, which would resolve it as root: what
he puts in its place after it was checked would be mounted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from . import mounting
from .identity import OpenMount


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
    attributes = mounting.NOSUID | mounting.NODEV
    attributes |= mounting.RDONLY if mount.read_only else 0
    attributes |= 0 if mount.executable else mounting.NOEXEC
    mounting.bind(mount.fd, mount.source, os.fspath(place), attributes)
