"""The newest Docker Engine, with its own runc and with either of its image stores.

A selection: ``TEST_DOCKER=newest`` or ``TEST_DOCKER=newest-containerd`` has all of ``tests/docker``
run against it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from jupyter_checkpoints.client import AgentClient
from tests.agent.agents import Agent
from tests.agent.callers import USER
from tests.agent.cells import run
from tests.agent.conftest import running_agent
from tests.agent.states import STATES, State
from tests.agent.test_states import Kernels
from tests.agent.test_states import kernels as kernels

from . import newest
from .engine import DockerEngine, running_engine
from .test_kernels import docker as docker
from .test_kernels import launch as launch
from .test_kernels import pytestmark as pytestmark
from .test_kernels import (
    test_a_stopped_kernel_leaves_no_container as test_a_stopped_kernel_leaves_no_container,
)
from .test_kernels import test_an_end_from_outside as test_an_end_from_outside
from .test_kernels import test_any_image_of_docker_s as test_any_image_of_docker_s
from .test_kernels import test_docker_is_restarted as test_docker_is_restarted
from .test_kernels import test_the_other_engine_goes_on as test_the_other_engine_goes_on

STORES = {"overlay2": False, "overlayfs": True}


@pytest.fixture(scope="module", params=list(STORES))
def store(request: pytest.FixtureRequest) -> str:
    """The storage driver: Docker's own, or that of containerd's image store."""
    return str(request.param)


@pytest.fixture(scope="module")
def docker_engine(store: str) -> Iterator[DockerEngine]:
    with running_engine(newest.require(), containerd_images=STORES[store]) as engine:
        yield engine


@pytest.fixture(scope="module")
def agent(default_image: None, docker_engine: DockerEngine) -> Iterator[Agent]:
    with running_agent(*docker_engine.options, env=docker_engine.agent_env) as agent:
        yield agent


async def test_it_is_the_newest(agent: Agent, docker: Any, store: str) -> None:
    """With every part of it: otherwise the tests here would say nothing."""
    assert int(docker.version()["Version"].partition(".")[0]) >= 28
    assert docker.info()["Driver"] == store
    async with AgentClient(agent.socket) as client:
        status = await client.status()
    assert status.engine == "docker"
    # Not the host's, which may be older.
    assert newest.version_of("runc") == status.runc_version


# An ordinary user's: theirs ask more of runc. All users' are tested with the host's Engine.
@pytest.mark.parametrize("kernels", [pytest.param((USER, USER), id="user")], indirect=True)
@pytest.mark.parametrize("side", ["original", "clone"])
@pytest.mark.parametrize("state", [pytest.param(state, id=state.name) for state in STATES])
async def test_every_state_is_as_before(kernels: Kernels, state: State, side: str) -> None:
    await run(kernels[side], state.check)
