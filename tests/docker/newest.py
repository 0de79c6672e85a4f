"""The newest Docker Engine that Debian has, beside the host's own.

``scripts/test-tools.sh`` installs it (``python -m tests.docker.newest``): packages are unpacked
into the environment's own directory and run from there; nothing of the host changes. Without it
the tests that need it are skipped.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from jupyter_checkpoints.agent import debian, own_libraries
from jupyter_checkpoints.agent.tools import program_version
from jupyter_checkpoints.errors import CheckpointsError

SUITE = "sid"
PREFIX = Path(sys.prefix) / "share" / "docker-engine"
_LINKS = PREFIX / "programs"
_PROGRAMS = (
    "usr/bin/containerd",
    "usr/bin/containerd-shim-runc-v2",
    "usr/bin/docker",
    "usr/sbin/dockerd",
    "usr/sbin/runc",
)
_SECONDS = 600


def require() -> Path:
    """A directory with its programs and nothing else; without it the test is skipped."""
    if not _LINKS.is_dir():
        pytest.skip("the newest Docker Engine is not there: `sh scripts/test-tools.sh` gets it")
    return _LINKS


def version_of(program: str) -> str:
    return program_version(_LINKS / program)


def install() -> None:
    """Install it into :data:`PREFIX`, unless it is there. Takes about ten seconds, and 250 MB.

    Raises
    ------
    CheckpointsError
        If the packages cannot be had.
    """
    if _LINKS.is_dir():
        return
    shutil.rmtree(PREFIX, ignore_errors=True)
    PREFIX.parent.mkdir(exist_ok=True)
    try:
        debian.bootstrap(
            PREFIX,
            suite=SUITE,
            include=["docker.io", "docker-cli"],
            variant="extract",
            tell=lambda line: None,
            timeout=_SECONDS,
        )
        own_libraries.bind(PREFIX, [PREFIX / name for name in _PROGRAMS])
        for entry in PREFIX.iterdir():  # apt's state and lists
            if not entry.is_symlink() and entry.name not in ("usr", "lib", "lib64"):
                shutil.rmtree(entry)
        # Complete when it has its name.
        made = PREFIX / "programs.new"
        made.mkdir()
        for name in _PROGRAMS:
            (made / Path(name).name).symlink_to(PREFIX / name)
        made.rename(_LINKS)
    except BaseException:
        shutil.rmtree(PREFIX, ignore_errors=True)
        raise


if __name__ == "__main__":
    try:
        install()
    except CheckpointsError as error:
        sys.exit(f"The newest Docker Engine cannot be had; its tests will be skipped. {error}")
