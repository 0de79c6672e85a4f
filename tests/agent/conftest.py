"""Fixtures for tests against a real agent, real CRIU and real kernels. They need root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from jupyter_checkpoints.agent.images import ImageStore
from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.layout import SOCKET_ENV

from .agents import IMAGES, Agent


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Asynchronous tests carry ``pytest.mark.anyio``; Jupyter's clients need asyncio."""
    return "asyncio"


@pytest.fixture(scope="session")
def default_image() -> None:
    """The image most kernels run in; built if this host has none yet."""
    ImageStore(IMAGES).ensure_default(lambda stage, message: None)


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory, default_image: None) -> Iterator[Agent]:
    """The agent that tests share, named by the environment for everything they start.

    At its end nothing of any kernel may be left on the host.
    """
    agent = Agent(tmp_path_factory.mktemp("agent"), "10.214.0.0/16")
    agent.start()
    before = os.environ.get(SOCKET_ENV)
    os.environ[SOCKET_ENV] = str(agent.socket)
    yield agent
    if before is None:
        del os.environ[SOCKET_ENV]
    else:
        os.environ[SOCKET_ENV] = before
    try:
        agent.assert_clean()
    finally:
        agent.end()
        _unmount(agent)


@pytest.fixture
def private_agent(tmp_path: Path, default_image: None) -> Iterator[Agent]:
    """An agent for one test, which may kill it."""
    agent = Agent(tmp_path, "10.215.0.0/16")
    agent.start()
    yield agent
    try:
        agent.assert_clean()
    finally:
        if agent.process is not None:
            agent.end()
        _unmount(agent)


def _unmount(agent: Agent) -> None:
    if os.path.ismount(agent.layout.pool):
        subprocess.run(["umount", agent.layout.pool], check=True)


@pytest.fixture
async def client(agent: Agent) -> AsyncIterator[AgentClient]:
    async with AgentClient(agent.socket) as client:
        yield client
