"""Fixtures for tests on a real Jupyter Server with real kernels. They need root."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from jupyter_checkpoints import kernelspecs
from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.layout import SOCKET_ENV

from ..agent.agents import Agent
from ..agent.conftest import anyio_backend as anyio_backend
from ..agent.conftest import default_image as default_image
from ..agent.conftest import running_agent
from .servers import Server


@pytest.fixture(scope="package")
def agent(default_image: None) -> Iterator[Agent]:
    """The agent of these tests, named by the environment for everything they start."""
    with (
        running_agent("--AgentApp.orphan_grace=5") as agent,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv(SOCKET_ENV, str(agent.socket))
        yield agent


@pytest.fixture(scope="package")
def kernelspec_prefix(agent: Agent, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where our kernelspecs are, and no others."""
    prefix = tmp_path_factory.mktemp("prefix")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(prefix / "share" / "jupyter"))
        kernelspecs.add_defaults(prefix=str(prefix))
    return prefix


@pytest.fixture
async def client(agent: Agent) -> AsyncIterator[AgentClient]:
    async with AgentClient(agent.socket) as client:
        yield client


@pytest.fixture
def server(agent: Agent, kernelspec_prefix: Path, tmp_path: Path) -> Iterator[Server]:
    """A server that the test starts, with a user of its own; whatever is left is removed."""
    server = Server(tmp_path, kernelspec_prefix, agent.socket)
    try:
        yield server
    finally:
        server.kill()
        anyio.run(_delete_everything, agent)


async def _delete_everything(agent: Agent) -> None:
    async with AgentClient(agent.socket) as client:
        for kernel in await client.kernels():
            await client.delete_kernel(kernel.id)
        for checkpoint in await client.checkpoints():
            await client.delete_checkpoint(checkpoint.id)
