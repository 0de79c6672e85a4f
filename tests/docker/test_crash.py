"""kill -9 at random moments, with Docker Engine, too: nothing is lost, nothing is left."""

from __future__ import annotations

from typing import Any

import pytest

from tests.agent import test_crash
from tests.agent.agents import Agent

from .engine import DockerEngine

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]


@pytest.mark.parametrize("victim", ["agent", "criu", "client", "kernel"])
async def test_kill_9(
    private_agent: Agent,
    docker_engine: DockerEngine,
    victim: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(test_crash, "ROUNDS", 10)
    await test_crash.test_kill_9(private_agent, victim, 0)
    client = docker_engine.client()
    label = f"org.jupyter.runtime-checkpoints.agent={private_agent.layout.run_dir}"
    left: list[Any] = client.containers.list(all=True, filters={"label": label})
    client.close()
    assert left == []
