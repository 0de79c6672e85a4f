"""Kernels that go on while their memory is still arriving, with Docker Engine, too."""

from collections.abc import Iterator

import pytest

from tests.agent import test_lazy
from tests.agent.agents import Agent
from tests.agent.conftest import running_agent
from tests.agent.test_lazy import arriving as arriving
from tests.agent.test_lazy import client as client
from tests.agent.test_lazy import pytestmark as pytestmark
from tests.agent.test_lazy import saved as saved

from .engine import DockerEngine

test_clients_are_answered = test_lazy.test_clients_are_answered_before_the_memory_is_there
test_a_kernel_ends_while_its_memory_arrives = test_lazy.test_a_kernel_ends_while_its_memory_arrives
test_a_save_waits_for_the_memory = test_lazy.test_a_save_waits_for_the_memory
test_no_zeros_when_both_pagers_are_killed = test_lazy.test_no_zeros_when_both_pagers_are_killed
test_the_checkpoint_stays = test_lazy.test_the_checkpoint_stays_until_the_memory_is_there


@pytest.fixture(scope="module")
def agent(default_image: None, docker_engine: DockerEngine) -> Iterator[Agent]:
    with running_agent(*docker_engine.options) as agent:
        yield agent
