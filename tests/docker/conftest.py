"""Fixtures for kernels that Docker Engine holds. They need root and the package docker.io."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from jupyter_checkpoints.layout import SOCKET_ENV
from tests.agent.agents import Agent
from tests.agent.conftest import anyio_backend as anyio_backend
from tests.agent.conftest import caller as caller
from tests.agent.conftest import client as client
from tests.agent.conftest import default_image as default_image
from tests.agent.conftest import notebooks as notebooks
from tests.agent.conftest import pytest_generate_tests as pytest_generate_tests
from tests.agent.conftest import running_agent
from tests.agent.conftest import users as users

from . import newest
from .engine import DockerEngine, running_engine

#: Which Docker Engine is tested: the host's, or the newest with one of its image stores.
DOCKER = os.environ.get("TEST_DOCKER", "host")


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[DockerEngine]:
    if os.geteuid() != 0:
        pytest.skip("Docker Engine is run by root")
    programs = None if DOCKER == "host" else newest.require()
    with running_engine(programs, containerd_images=DOCKER == "newest-containerd") as engine:
        yield engine


@pytest.fixture(scope="session")
def agent(default_image: None, docker_engine: DockerEngine) -> Iterator[Agent]:
    """The agent that tests share, named by the environment for everything they start."""
    with (
        running_agent(*docker_engine.options, env=docker_engine.agent_env) as agent,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv(SOCKET_ENV, str(agent.socket))
        yield agent


@pytest.fixture
def private_agent(default_image: None, docker_engine: DockerEngine) -> Iterator[Agent]:
    with running_agent(*docker_engine.options, env=docker_engine.agent_env) as agent:
        yield agent
