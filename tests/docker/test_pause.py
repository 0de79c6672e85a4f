"""`docker pause` of a kernel: it is told, can be saved and ended, and stays what Docker says."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from jupyter_checkpoints.agent import dirty
from jupyter_checkpoints.agent.cgroup import Cgroup
from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.errors import Conflict
from jupyter_checkpoints.models import KernelModel, Limits, Mode, SaveRequest
from tests.agent.agents import Agent, wait_until
from tests.agent.cells import PATIENCE, run
from tests.agent.kernels import connected, python_kernel
from tests.agent.launch import Kernel, Launch
from tests.agent.launch import launch as launch

from .engine import DockerEngine
from .test_kernels import container_of, ended
from .test_kernels import docker as docker

pytestmark = pytest.mark.anyio


async def until(
    client: AgentClient, kernel_id: str, wanted: Callable[[KernelModel], bool]
) -> KernelModel:
    async with asyncio.timeout(PATIENCE):
        async for model in client.attach(kernel_id):
            if wanted(model):
                return model
    raise AssertionError("the kernel is gone")


async def pause(launch: Launch, kernel: Kernel, docker: Any) -> Any:
    """Its container, paused, which the agent knows."""
    container = container_of(docker, kernel.model)
    await asyncio.to_thread(container.pause)
    await until(launch.agent, kernel.model.id, lambda m: m.paused)
    return container


async def go_on(launch: Launch, kernel: Kernel, container: Any) -> None:
    await asyncio.to_thread(container.unpause)
    await until(launch.agent, kernel.model.id, lambda m: not m.paused)


def is_frozen(container: Any) -> bool:
    container.reload()
    return Cgroup.of(container.attrs["State"]["Pid"]).frozen()


@pytest.mark.parametrize("mode", ["process", "filesystem"])
async def test_saved_while_paused(launch: Launch, docker: Any, mode: Mode) -> None:
    kernel = await launch.start()
    await kernel.run("open('/root/file', 'w').write('kept')")
    await kernel.run("x = 1")
    first = await kernel.save(SaveRequest(mode=mode))
    container = await pause(launch, kernel, docker)
    for _ in range(2):
        saved = await kernel.save(SaveRequest(mode=mode))
        assert container_of(docker, kernel.model).status == "paused"
        assert is_frozen(container)
    assert saved.id != first.id
    with pytest.raises(Conflict, match="docker unpause"):
        await launch.agent.signal(kernel.model.id, signal.SIGINT)
    clone = await launch.resume(saved)
    assert not (await launch.agent.kernel(clone.model.id)).paused
    kept = mode == "process"
    if not kept:  # it has just begun
        await clone.channels.wait_for_ready(timeout=PATIENCE)
    assert await clone.run("'x' in globals()") == str(kept)
    assert await clone.run("open('/root/file').read()") == "'kept'"
    await go_on(launch, kernel, container)
    assert await kernel.run("x") == "1"


async def test_stopped_while_paused(launch: Launch, docker: Any) -> None:
    """As it is culled: saved, and ended at that state."""
    kernel = await launch.start()
    await kernel.run("x = 1")
    await pause(launch, kernel, docker)
    saved = await kernel.save(SaveRequest(stop=True))
    model = await launch.agent.kernel(kernel.model.id)
    assert (model.state, model.paused) == ("stopped", False)
    await launch.agent.resume(kernel.model.id, saved.id)
    assert await kernel.run("x") == "1"


async def test_put_back_while_paused(launch: Launch, docker: Any) -> None:
    kernel = await launch.start()
    await kernel.run("x = 1")
    saved = await kernel.save()
    await kernel.run("x = 2")
    await pause(launch, kernel, docker)
    model = await launch.agent.resume(kernel.model.id, saved.id)
    assert not model.paused
    assert await kernel.run("x") == "1"


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
async def test_ended_while_paused(launch: Launch, docker: Any, signum: int) -> None:
    kernel = await launch.start()
    container = await pause(launch, kernel, docker)
    watching = asyncio.ensure_future(ended(launch.agent, kernel.model.id))
    await launch.agent.signal(kernel.model.id, signum)
    if signum == signal.SIGTERM:  # it waits; who is in a hurry uses SIGKILL
        await go_on(launch, kernel, container)
    assert (await watching).exit_code == 128 + signum
    other = await launch.start()
    await pause(launch, other, docker)
    async with asyncio.timeout(PATIENCE):
        await launch.agent.delete_kernel(other.model.id)


async def test_told_again_to_the_next_agent(
    private_agent: Agent, docker_engine: DockerEngine, docker: Any
) -> None:
    """An agent, or a Docker Engine, that was away does not let a paused kernel run."""
    kernel_id = str(uuid4())
    async with AgentClient(private_agent.socket) as client:
        model = await client.start_kernel(python_kernel(kernel_id, detached=True))
        async with connected(model) as channels:
            await run(channels, "x = 1")
        container = container_of(docker, model)
        container.pause()
        await until(client, kernel_id, lambda m: m.paused)
    private_agent.restart(signal.SIGKILL)
    async with AgentClient(private_agent.socket) as client:
        assert (await client.kernel(kernel_id)).paused
        assert is_frozen(container)
        await client.save(kernel_id)
        docker_engine.stop_dockerd()
        docker_engine.start_dockerd()
        # The stream of events is a new one.
        container = container_of(docker, model)
        container.unpause()
        await until(client, kernel_id, lambda m: not m.paused)
        async with connected(model) as channels:
            assert await run(channels, "x") == "1"
        await client.delete_kernel(kernel_id)
        for checkpoint in await client.checkpoints():
            await client.delete_checkpoint(checkpoint.id)


async def test_why_it_ended(launch: Launch, docker: Any) -> None:
    kernel = await launch.start()
    watching = asyncio.ensure_future(ended(launch.agent, kernel.model.id))
    await asyncio.to_thread(container_of(docker, kernel.model).kill)
    assert "docker stop" in (await watching).reason
    greedy = await launch.start(
        python_kernel(str(uuid4()), detached=True, limits=Limits(memory=128 * 2**20))
    )
    greedy.channels.execute("b = bytearray(2**30)")
    assert "memory limit" in (await ended(launch.agent, greedy.model.id)).reason
    own = await launch.start()
    own.channels.execute("import os; os._exit(137)")
    assert (await ended(launch.agent, own.model.id)).reason == ""
    wait_until(lambda: not docker.containers.list(), what="containers to be removed")


@pytest.mark.skipif(not dirty.available(), reason="this kernel cannot tell what is written")
async def test_copied_ahead_of_a_save_but_not_while_paused(launch: Launch, docker: Any) -> None:
    kernel = await launch.start()
    await kernel.run("import os; data = os.urandom(64 << 20)")
    container = await pause(launch, kernel, docker)
    with pytest.raises(Conflict, match="paused"):
        await launch.agent.precopy(kernel.model.id)
    await go_on(launch, kernel, container)
    await launch.agent.precopy(kernel.model.id)
    assert (await launch.agent.usage()).precopies > 64 * 2**20
    saved = await launch.agent.save(kernel.model.id, SaveRequest())
    assert (await launch.agent.verify(saved.id)).ok
    assert (await launch.agent.usage()).precopies == 0
