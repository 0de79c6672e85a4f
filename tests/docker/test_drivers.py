"""A Docker Engine that cannot hold kernels is refused, with the reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jupyter_checkpoints.agent.docker_client import connect
from jupyter_checkpoints.agent.engines.choice import choose
from jupyter_checkpoints.errors import HostNotReady
from jupyter_checkpoints.layout import Layout

from .engine import running_engine

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="Docker Engine is run by root")


def test_another_storage_driver_is_refused(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "data", tmp_path / "run")
    layout.kernels.mkdir(parents=True)
    with running_engine(storage_driver="vfs") as engine:
        with pytest.raises(HostNotReady, match="'vfs' is not supported") as refused:
            connect(engine.url)
        assert "overlay2" in refused.value.reason and "embedded engine" in refused.value.hint
        with pytest.raises(HostNotReady, match="'vfs' is not supported"):
            choose("docker", engine.url, layout)
        assert choose("auto", engine.url, layout) == ("embedded", None)
