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


@pytest.mark.parametrize(
    ("configured", "path"),
    [
        ("/docker/0123", "/docker/0123"),
        ("system.slice:docker:0123", "/system.slice/docker-0123.scope"),
        ("a-b.slice:docker:0123", "/a.slice/a-b.slice/docker-0123.scope"),
    ],
)
def test_as_configured(configured: str, path: str) -> None:
    assert Cgroup.of_configuration(configured).path == path
