"""Docker is told of the runtime, and of its removal, without being restarted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jupyter_checkpoints.agent.docker_client import connect, is_ready
from jupyter_checkpoints.agent.docker_setup import RUNTIME, register, unregister
from jupyter_checkpoints.errors import HostNotReady
from tests.agent.agents import wait_until

from .engine import DockerEngine


def quiet(line: str) -> None:
    pass


def test_registered_while_docker_runs(docker_engine: DockerEngine) -> None:
    assert docker_engine.dockerd is not None
    pid = docker_engine.dockerd.pid
    paths: tuple[Path, Path, Path] = (
        docker_engine.daemon_json,
        docker_engine.root / "docker.pid",
        docker_engine.root / "runtime",
    )
    client = docker_engine.client()

    def known() -> bool:
        return RUNTIME in client.info()["Runtimes"]

    before = json.loads(docker_engine.daemon_json.read_text())
    assert is_ready(docker_engine.url)
    try:
        changed, said = unregister(quiet, *paths)
        assert changed and "Docker has read it" in said
        wait_until(lambda: not known(), what="the reload")
        after = json.loads(docker_engine.daemon_json.read_text())
        assert after == {**before, "runtimes": {}}
        assert not paths[2].exists()
        assert not is_ready(docker_engine.url)
        with pytest.raises(HostNotReady, match="setup --engine docker"):
            connect(docker_engine.url)
        assert unregister(quiet, *paths) == (False, "it was not registered")
    finally:
        changed, _ = register(quiet, *paths)
    assert changed
    wait_until(known, what="the reload")
    assert json.loads(docker_engine.daemon_json.read_text()) == before
    assert register(quiet, *paths)[0] is False
    backup = docker_engine.daemon_json.with_name("daemon.json.before-jupyter-checkpoints")
    assert json.loads(backup.read_text()) == after
    assert docker_engine.dockerd.poll() is None and docker_engine.dockerd.pid == pid
    client.close()


@pytest.mark.parametrize("text", ["{not json", "[]", '{"runtimes": []}'])
def test_a_configuration_that_is_wrong_is_left_alone(tmp_path: Path, text: str) -> None:
    daemon_json = tmp_path / "daemon.json"
    daemon_json.write_text(text)
    with pytest.raises(HostNotReady):
        register(quiet, daemon_json, tmp_path / "pid", tmp_path / "runtime")
    assert daemon_json.read_text() == text
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("daemon")] == ["daemon.json"]


def test_without_a_configuration(tmp_path: Path) -> None:
    """Docker does not need one, and need not run."""
    paths = (tmp_path / "etc" / "daemon.json", tmp_path / "pid", tmp_path / "runtime")
    changed, said = register(quiet, *paths)
    assert changed and "when it starts" in said
    configuration: dict[str, Any] = json.loads(paths[0].read_text())
    assert configuration == {"runtimes": {RUNTIME: {"path": str(paths[2] / "runtime")}}}
    assert all(p.stat().st_uid == 0 and not p.stat().st_mode & 0o022 for p in paths[2].iterdir())
