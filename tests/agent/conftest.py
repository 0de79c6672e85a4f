"""Fixtures for tests against a real agent, real CRIU and real kernels. They need root."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from jupyter_checkpoints.agent.images import ImageStore
from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.layout import SOCKET_ENV

from ..users import Users, two_users
from .agents import IMAGES, Agent
from .callers import CALLERS, ROOT, directory_of, for_a_user, for_all_callers


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Asynchronous tests carry ``pytest.mark.anyio``; Jupyter's clients need asyncio."""
    return "asyncio"


@pytest.fixture(scope="session")
def default_image() -> None:
    """The image most kernels run in; built if this host has none yet."""
    ImageStore(IMAGES).ensure_default(lambda stage, message: None)


@contextmanager
def running_agent(
    *options: str,
    data_dir: Path | None = None,
    subnet: str = "",
    env: Mapping[str, str] | None = None,
) -> Iterator[Agent]:
    """An agent with directories of its own; at its end nothing of any kernel may be left."""
    # Not one of pytest's own directories: a later session would delete it with what is mounted.
    root = Path(tempfile.mkdtemp(prefix="jupyter-checkpoints-test-"))
    root.chmod(0o711)  # as /run is: users get as far as the socket
    agent = Agent(root, *options, data_dir=data_dir, subnet=subnet)
    agent.env.update(env or {})
    agent.start()
    try:
        yield agent
        agent.assert_clean()
    finally:
        agent.purge()
        shutil.rmtree(root)


@pytest.fixture(scope="session")
def agent(default_image: None) -> Iterator[Agent]:
    """The agent that tests share, named by the environment for everything they start."""
    with running_agent() as agent, pytest.MonkeyPatch.context() as patch:
        patch.setenv(SOCKET_ENV, str(agent.socket))
        yield agent


@pytest.fixture
def private_agent(default_image: None) -> Iterator[Agent]:
    """An agent for one test, which may kill it."""
    with running_agent() as agent:
        yield agent


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "caller" in metafunc.fixturenames:
        if metafunc.definition.get_closest_marker(for_all_callers.name):
            metafunc.parametrize("caller", CALLERS, indirect=True)
        elif metafunc.definition.get_closest_marker(for_a_user.name):
            metafunc.parametrize("caller", CALLERS[1:], indirect=True)


@pytest.fixture
def caller(request: pytest.FixtureRequest) -> int:
    """The uid that ``client`` has: root's, but for tests with ``users.for_all_callers``."""
    return int(getattr(request, "param", ROOT))


@pytest.fixture
async def client(agent: Agent, caller: int) -> AsyncIterator[AgentClient]:
    async with AgentClient(agent.socket, user=caller or None) as client:
        yield client


@pytest.fixture(scope="session")
def users() -> Iterator[Users]:
    """Two ordinary users of this host, for this session."""
    with two_users() as users:
        yield users


@pytest.fixture
def notebooks(caller: int) -> Iterator[Path]:
    """A directory of the caller's own."""
    with directory_of(caller) as directory:
        yield directory
