"""Volumes by name, and what an administrator sets of kernels' containers besides."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from docker.errors import APIError
from msgspec.structs import replace

from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.errors import NotAllowed, NotFound
from jupyter_checkpoints.models import Mount, StartRequest
from tests.agent.agents import Agent
from tests.agent.cells import run
from tests.agent.conftest import running_agent
from tests.agent.kernels import connected, python_kernel
from tests.agent.launch import Launch
from tests.agent.launch import launch as launch
from tests.users import Users

from .engine import DockerEngine
from .test_kernels import docker as docker

pytestmark = pytest.mark.anyio

_CONFIG = {
    "shm_size": "64m",
    "ulimits": [{"name": "core", "soft": 0, "hard": 4096}],
    "extra_hosts": {"database.example": "192.0.2.7"},
    "dns": ["192.0.2.53"],
    "dns_search": ["example"],
}


def with_volume(name: str) -> StartRequest:
    request = python_kernel(str(uuid4()), detached=True)
    return replace(request, mounts=[Mount(source=name, target="/data")])


@pytest.fixture
def volume(docker: Any) -> Iterator[str]:
    name = f"volume-{uuid4()}"
    yield name
    for found in docker.volumes.list():
        if found.name == name:
            found.remove(force=True)


async def test_a_volume_is_no_part_of_a_checkpoint(
    launch: Launch, docker: Any, volume: str
) -> None:
    kernel = await launch.start(with_volume(volume))
    await kernel.run("file = open('/data/file', 'w+'); _ = file.write('first'); file.flush()")
    saved = await kernel.save()
    await kernel.run("_ = open('/data/other', 'w').write('second')")
    with pytest.raises(APIError, match="in use"):
        docker.volumes.get(volume).remove()
    clone = await launch.resume(saved)
    assert await clone.run("file.seek(0); file.read()") == "'first'"
    assert await clone.run("open('/data/other').read()") == "'second'"
    for one in (kernel, clone):
        await one.end()
    docker.volumes.get(volume).remove()
    report = await launch.agent.preflight(saved.id)
    [finding] = [f for f in report.findings if f.severity == "block"]
    assert finding.code == "volume-missing" and volume in finding.message
    with pytest.raises(NotFound, match=volume):
        await launch.resume(saved)
    assert not [v for v in docker.volumes.list() if v.name == volume]


@pytest.fixture
def configured(
    default_image: None, docker_engine: DockerEngine, tmp_path: Path, users: Users
) -> Iterator[Agent]:
    """An agent that an administrator has configured."""
    path = tmp_path / "agent_config.py"
    path.write_text(
        f"c.AgentApp.extra_host_config = {json.dumps(_CONFIG)}\n"
        "c.AgentApp.allowed_volumes = ['of-{username}-*']\n"
        f"c.AgentApp.allowed_uids = [{users.alice.uid}]\n"
    )
    with running_agent(
        *docker_engine.options, f"--config={path}", env=docker_engine.agent_env
    ) as agent:
        yield agent


async def test_a_user_s_own_volumes(configured: Agent, docker: Any, users: Users) -> None:
    name = f"of-{users.alice.name}-{uuid4()}"
    async with AgentClient(configured.socket, user=users.alice.uid) as client:
        with pytest.raises(NotAllowed, match="allowed_volumes"):
            await client.start_kernel(with_volume(f"of-{users.bob.name}-1"))
        model = await client.start_kernel(with_volume(name))
        try:
            async with connected(model) as channels:
                await run(channels, "_ = open('/data/file', 'w').write('his own')")
            place = docker.volumes.get(name).attrs["Mountpoint"]
            assert os.stat(f"{place}/file").st_uid == users.alice.uid
        finally:
            await client.delete_kernel(model.id)
            docker.volumes.get(name).remove()
    assert not [v for v in docker.volumes.list() if v.name.startswith(f"of-{users.bob.name}")]


async def test_extra_host_config(configured: Agent) -> None:
    look = (
        "import os, resource; s = os.statvfs('/dev/shm'); "
        "s.f_blocks * s.f_frsize, resource.getrlimit(resource.RLIMIT_CORE), "
        "'192.0.2.7 database.example' in open('/etc/hosts').read(), "
        "open('/etc/resolv.conf').read().count('nameserver'), "
        "'nameserver 192.0.2.53' in open('/etc/resolv.conf').read()"
    )
    wanted = str((64 * 2**20, (0, 4096), True, 1, True))
    async with AgentClient(configured.socket) as client:
        model = await client.start_kernel(python_kernel(str(uuid4()), detached=True))
        async with connected(model) as channels:
            assert await run(channels, look) == wanted
        saved = await client.save(model.id)
        await asyncio.wait_for(client.resume(model.id, saved.id), 60)
        async with connected(await client.kernel(model.id)) as channels:
            assert await run(channels, look) == wanted
        await client.delete_kernel(model.id)
        await client.delete_checkpoint(saved.id)
