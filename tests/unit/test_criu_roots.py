"""What killed restores of CRIU leave behind is removed, and nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from jupyter_checkpoints.agent.criu import remove_roots

DAYS_AGO = time.time() - 3 * 24 * 3600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a directory another user's")
def test_what_killed_restores_have_left(tmp_path: Path) -> None:
    old, new, full, anothers, other = (
        tmp_path / name
        for name in (*(f".criu.mntns.{n}" for n in ("old", "new", "full", "anothers")), "other")
    )
    for path in (old, new, full, anothers, other):
        path.mkdir()
    (full / "file").touch()
    os.chown(anothers, 65534, 65534)
    link = tmp_path / ".criu.mntns.link"
    link.symlink_to(other)
    for path in (old, full, anothers, other, link):
        os.utime(path, (DAYS_AGO, DAYS_AGO), follow_symlinks=False)
    remove_roots(tmp_path)
    assert set(tmp_path.iterdir()) == {new, full, anothers, other, link}
