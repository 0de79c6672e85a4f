"""Volumes of Docker's that kernels are given by name: which, to whom, and where they are.

A volume is no part of a checkpoint: it is what a kernel shares with later states of its own, with
other kernels, and with other containers.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import pwd
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest, NotAllowed, NotFound
from . import opener
from .docker_client import DockerMissing, told
from .identity import Identity

_LABELS = {"org.jupyter.runtime-checkpoints.volume": ""}


class DockerVolumes:
    """See the module. All methods block; any number of threads may use them.

    Parameters
    ----------
    api:
        Docker's client.
    allowed:
        Patterns of the names that ordinary users may use, where ``{username}`` is whoever asks.
        Root may use all.
    """

    def __init__(self, api: Any, allowed: Sequence[str]) -> None:
        self._api = api
        self._allowed = allowed

    def open(self, name: str, identity: Identity) -> int:
        """A descriptor of a volume's directory, for its user.

        Raises
        ------
        NotAllowed
            If it is not for this user.
        NotFound
            If there is no such volume.
        InvalidRequest
            If it is of a kind that has no directory as long as Docker has not mounted it.
        """
        self._check(name, identity)
        return opener.open_path(str(self._directory(name)))

    def create(self, name: str, identity: Identity) -> None:
        """Make a volume that is not there yet, as ``docker run`` does; it is its user's then.

        Called when a kernel is started afresh. Raises as :meth:`open`.
        """
        self._check(name, identity)
        try:
            self._directory(name)
        except NotFound:
            with told():
                self._api.create_volume(name, driver="local", labels=_LABELS)
            os.chown(self._directory(name), identity.uid, identity.gid)

    def require(self, name: str) -> None:
        """Raise ``NotFound`` if there is no such volume. For preflight."""
        self._directory(name)

    def _check(self, name: str, identity: Identity) -> None:
        if identity.is_root:
            return
        try:
            user = pwd.getpwuid(identity.uid).pw_name
        except KeyError:
            user = str(identity.uid)
        if not any(
            fnmatch.fnmatchcase(name, pattern.replace("{username}", glob.escape(user)))
            for pattern in self._allowed
        ):
            raise NotAllowed(
                f"The volume {name} is not for user {user}.",
                reason=f"Allowed are: {', '.join(self._allowed) or 'none'}.",
                hint="An administrator decides that with the agent's `allowed_volumes`.",
            )

    def _directory(self, name: str) -> Path:
        try:
            with told():
                found = self._api.inspect_volume(name)
        except DockerMissing:
            raise NotFound(
                f"There is no volume {name} in Docker.",
                hint=f"`docker volume create {name}` makes an empty one.",
            ) from None
        if found["Driver"] != "local" or found.get("Options"):
            raise InvalidRequest(
                f"The volume {name} cannot be given to kernels.",
                reason="Docker mounts it for its own containers only: its driver is "
                f"{found['Driver']}, or it has options.",
                hint="Mount it on the host, and show the directory to the kernel.",
            )
        return Path(found["Mountpoint"])
