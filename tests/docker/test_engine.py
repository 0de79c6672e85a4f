"""What every kernel's container is, with Docker Engine, too."""

from collections.abc import Iterator

import pytest

from tests.agent.agents import Agent
from tests.agent.conftest import running_agent
from tests.agent.test_engine import *  # noqa: F403
from tests.agent.test_engine import pytestmark as pytestmark

from .engine import DockerEngine


@pytest.fixture  # type: ignore[no-redef]
def strict_agent(default_image: None, docker_engine: DockerEngine) -> Iterator[Agent]:
    with running_agent(
        *docker_engine.options, "--AgentApp.orphan_grace=1", env=docker_engine.agent_env
    ) as agent:
        yield agent


@pytest.fixture  # type: ignore[no-redef]
def impatient_agent(default_image: None, docker_engine: DockerEngine) -> Iterator[Agent]:
    with running_agent(
        *docker_engine.options, "--AgentApp.criu_timeout=2", env=docker_engine.agent_env
    ) as agent:
        yield agent
