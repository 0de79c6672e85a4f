"""Control groups are ended, but never one's own."""

from __future__ import annotations

import os

import pytest

from jupyter_checkpoints.agent.cgroup import Cgroup


def test_nobody_ends_himself() -> None:
    own = Cgroup.of(os.getpid())
    assert os.getpid() in own.processes()
    with pytest.raises(ValueError, match="own control group"):
        own.kill()
