"""Containers of a network of Docker's are reached by kernels by name, as they come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest

from jupyter_checkpoints.agent.docker_network import DockerNetwork
from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.errors import HostNotReady
from tests.agent.agents import Agent
from tests.agent.cells import PATIENCE, run
from tests.agent.conftest import running_agent
from tests.agent.kernels import connected, python_kernel

from .engine import DockerEngine
from .test_kernels import docker as docker

pytestmark = pytest.mark.anyio

_SERVE = (
    "import http.server as h\n"
    "class H(h.BaseHTTPRequestHandler):\n"
    "    def do_GET(self): self.send_response(200); self.end_headers(); "
    "self.wfile.write(b'reached from ' + self.client_address[0].encode())\n"
    "h.HTTPServer(('', 8000), H).serve_forever()"
)


@contextmanager
def running_service(docker: Any, network: Any) -> Iterator[Any]:
    """A container in a network, there called ``database``, that answers; its port is private."""
    (image,) = docker.images.list("jupyter-checkpoints")
    service = docker.containers.create(
        image.tags[0], ["python", "-c", _SERVE], name=f"service-{uuid4()}", network="none"
    )
    try:
        docker.networks.get("none").disconnect(service)
        network.connect(service, aliases=["database"])
        service.start()
        service.reload()
        yield service
    finally:
        for left in docker.containers.list(all=True, filters={"id": service.id}):
            left.remove(force=True)


@pytest.fixture
def network(docker: Any) -> Iterator[Any]:
    made = docker.networks.create(f"net-{uuid4()}", driver="bridge")
    yield made
    made.remove()


@pytest.fixture
def agent(default_image: None, docker_engine: DockerEngine, network: Any) -> Iterator[Agent]:
    with running_agent(
        *docker_engine.options,
        f"--AgentApp.network_name={network.name}",
        env=docker_engine.agent_env,
    ) as agent:
        yield agent


async def eventually(channels: Any, code: str, wanted: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while (said := await run(channels, code)) != wanted:
            assert said, "the cell failed"
            await asyncio.sleep(0.1)


async def test_by_name(client: AgentClient, docker: Any, network: Any) -> None:
    model = await client.start_kernel(python_kernel(str(uuid4()), detached=True))
    known = "import socket\ntry: print(socket.gethostbyname('{0}'))\nexcept OSError: print('no')"
    async with connected(model) as channels:
        assert await run(channels, known.format("database")) == "no"
        with running_service(docker, network) as service:
            address = service.attrs["NetworkSettings"]["Networks"][network.name]["IPAddress"]
            await eventually(channels, known.format("database"), address)
            await eventually(channels, known.format(service.name), address)
            ask = (
                "import urllib.request as u\n"
                "try: print(u.urlopen('http://database:8000', timeout=5).read()[:12].decode())\n"
                "except OSError as e: print(e)"
            )
            await eventually(channels, ask, "reached from")
            saved = await client.save(model.id)
            service.remove(force=True)
            await eventually(channels, known.format("database"), "no")
            # What was known at the save is not what is known now.
            await client.resume(model.id, saved.id)
            await eventually(channels, known.format("database"), "no")
    await client.delete_kernel(model.id)
    await client.delete_checkpoint(saved.id)


def test_networks_that_cannot_be_used(docker: Any) -> None:
    with pytest.raises(HostNotReady, match="no network"):
        DockerNetwork(docker.api, "missing").subnets()
    with pytest.raises(HostNotReady, match="driver"):
        DockerNetwork(docker.api, "host").subnets()
