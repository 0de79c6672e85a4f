"""Kernels reach a network of Docker's through the firewall that Docker keeps.

Docker and the agent are in a network namespace of their own, with rules of their own.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from jupyter_checkpoints.client import AgentClient
from tests.agent.agents import Agent, wait_until
from tests.agent.kernels import python_kernel

from . import newest
from .engine import DockerEngine, running_engine
from .own_network import own_network
from .test_kernels import container_of
from .test_kernels import docker as docker
from .test_network import network as network
from .test_network import running_service

pytestmark = pytest.mark.anyio

_SUBNET = "10.111.0.0/16"
_ASK = (
    "import urllib.request as u\n"
    "try: print(u.urlopen('http://database:8000', timeout=2).read()[:12].decode())\n"
    "except OSError as e: print(e)"
)


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    with own_network(tmp_path_factory.mktemp("spare")) as inside:
        yield inside


@pytest.fixture(scope="module")
def docker_engine(inside: list[str]) -> Iterator[DockerEngine]:
    with running_engine(newest.require(), network=inside) as engine:
        yield engine


@pytest.fixture
def agent(
    default_image: None, docker_engine: DockerEngine, network: Any, inside: list[str]
) -> Iterator[Agent]:
    """Not one that looks for what is left on the host: its mounts and interfaces are not there."""
    root = Path(tempfile.mkdtemp(prefix="jupyter-checkpoints-test-"))
    agent = Agent(
        root,
        *docker_engine.options,
        f"--AgentApp.network_name={network.name}",
        subnet=_SUBNET,
    )
    agent.runner = inside
    agent.env.update(docker_engine.agent_env)
    agent.start()
    try:
        yield agent
    finally:
        agent.purge()
        shutil.rmtree(root)


async def test_by_name(
    client: AgentClient, agent: Agent, docker: Any, network: Any, inside: list[str]
) -> None:
    kernel = await client.start_kernel(python_kernel(str(uuid4()), detached=True))
    # What it starts has the kernel's own network, names and addresses.
    container = container_of(docker, kernel)

    def asked() -> str:
        return str(container.exec_run(["python", "-c", _ASK]).output.decode().strip())

    with running_service(docker, network) as service:
        wait_until(lambda: asked() == "reached from", what="the way to it")
        # Docker drops early what comes to its containers from elsewhere, and only our rule, which
        # is before it, lets kernels through.
        address = service.attrs["NetworkSettings"]["Networks"][network.name]["IPAddress"]
        raw = _rules(inside, "--table=raw")
        (ours,) = [rule for rule in raw if _SUBNET in rule]
        (dropped,) = [rule for rule in raw if f"{address}/32" in rule and "-j DROP" in rule]
        assert raw.index(ours) < raw.index(dropped)
        _change(inside, "--delete", ours)
        assert "timed out" in asked()
        _change(inside, "--insert", ours)
        assert asked() == "reached from"
        # Rules of containers that come later are behind it as well.
        service.restart(timeout=0)
        wait_until(lambda: asked() == "reached from", what="the container that came back")
    await client.delete_kernel(kernel.id)
    agent.end()
    assert not [r for r in _rules(inside) + _rules(inside, "--table=raw") if _SUBNET in r]


def _rules(inside: list[str], *table: str) -> list[str]:
    found = subprocess.check_output([*inside, "iptables", "--wait", *table, "--list-rules"])
    return found.decode().splitlines()


def _change(inside: list[str], verb: str, rule: str) -> None:
    words = shlex.split(rule)[1:]
    subprocess.run([*inside, "iptables", "--wait", "--table=raw", verb, *words], check=True)
