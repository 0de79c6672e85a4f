"""A kernel is a container of Docker's: what Docker does to it is seen, what it needs is its own."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from jupyter_checkpoints.agent.engines.choice import choose
from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.errors import HostNotReady, NotFound
from jupyter_checkpoints.models import KernelModel, Limits, SaveRequest, StartRequest
from tests.agent.agents import Agent, wait_until
from tests.agent.cells import PATIENCE, run
from tests.agent.kernels import KEY, connected, python_kernel
from tests.agent.launch import Launch
from tests.agent.launch import launch as launch

from .engine import DockerEngine

pytestmark = pytest.mark.anyio

KERNEL = "org.jupyter.runtime-checkpoints.kernel"


@pytest.fixture
def docker(docker_engine: DockerEngine) -> Iterator[Any]:
    client = docker_engine.client()
    yield client
    client.close()


def container_of(docker: Any, kernel: KernelModel) -> Any:
    (found,) = docker.containers.list(filters={"label": f"{KERNEL}={kernel.id}"})
    return found


async def ended(client: AgentClient, kernel_id: str) -> KernelModel:
    async with asyncio.timeout(PATIENCE):
        async for model in client.attach(kernel_id):
            if model.state == "exited":
                return model
    raise AssertionError("the kernel is gone")


async def test_docker_s_own_commands(launch: Launch, agent: Agent, docker: Any) -> None:
    kernel = await launch.start(
        python_kernel(
            str(uuid4()),
            detached=True,
            limits=Limits(memory=512 * 2**20, cpus=0.75, pids=200),
        )
    )
    container = container_of(docker, kernel.model)
    limits = container.attrs["HostConfig"]
    assert (limits["Memory"], limits["CpuQuota"], limits["PidsLimit"]) == (2**29, 75_000, 200)
    await kernel.run("import os; os.makedirs('/root/a'); os.write(1, b'a line\\n')")
    await kernel.run("open('/root/a/file', 'w').write('of the kernel')")
    wait_until(lambda: b"a line" in container.logs(), what="docker logs")
    code, output = container.exec_run(["cat", "/root/a/file"])
    assert (code, output) == (0, b"of the kernel")
    copied, facts = container.get_archive("/root/a/file")
    assert facts["size"] == len("of the kernel") and b"of the kernel" in b"".join(copied)
    assert "ipykernel_launcher" in str(container.top()["Processes"])
    assert container.stats(stream=False)["memory_stats"]["usage"] > 0
    container.update(mem_limit=2**30, memswap_limit=2**30)
    container.pause()
    container.unpause()
    container.kill(signal="SIGINT")
    assert await kernel.run("open('/root/a/file').read()") == "'of the kernel'"

    copy = agent.layout.kernel(kernel.model.id) / "log"
    wait_until(lambda: "a line" in copy.read_text(), what="the kernel's own log")


@pytest.mark.parametrize(
    ("end", "code"),
    [
        pytest.param(lambda c: c.kill(), 128 + signal.SIGKILL, id="kill"),
        pytest.param(lambda c: c.stop(), 128 + signal.SIGTERM, id="stop"),
        pytest.param(lambda c: c.remove(force=True), 128 + signal.SIGKILL, id="rm"),
    ],
)
async def test_an_end_from_outside(
    launch: Launch, docker: Any, end: Callable[[Any], None], code: int
) -> None:
    kernel = await launch.start()
    await kernel.run("x = 1")
    saved = await kernel.save()
    watching = asyncio.ensure_future(ended(launch.agent, kernel.model.id))
    await asyncio.to_thread(end, container_of(docker, kernel.model))
    # At once: nothing that asks from time to time would be so quick.
    assert (await asyncio.wait_for(watching, 5)).exit_code == code
    clone = await launch.resume(saved)
    assert await clone.run("x") == "1"


async def test_its_own_end(launch: Launch) -> None:
    kernel = await launch.start()
    kernel.channels.execute("import os; os._exit(7)")
    assert (await ended(launch.agent, kernel.model.id)).exit_code == 7


async def test_a_stopped_kernel_leaves_no_container(launch: Launch, docker: Any) -> None:
    kernel = await launch.start()
    await kernel.run("x = 1")
    saved = await kernel.save(SaveRequest(stop=True))
    label = {"label": f"{KERNEL}={kernel.model.id}"}
    assert docker.containers.list(all=True, filters=label) == []
    await launch.agent.resume(kernel.model.id, saved.id)
    # In place, over the connections it had.
    assert await kernel.run("x") == "1"
    assert len(docker.containers.list(all=True, filters=label)) == 1


async def test_docker_is_restarted(launch: Launch, docker_engine: DockerEngine) -> None:
    kernel = await launch.start()
    await kernel.run("x = 1")
    docker_engine.stop_dockerd()
    await kernel.run("x += 1; print('while Docker is away')")
    docker_engine.start_dockerd()
    assert await kernel.run("x") == "2"
    saved = await kernel.save()
    await launch.agent.resume(kernel.model.id, saved.id)
    assert await kernel.run("x") == "2"


async def test_any_image_of_docker_s(launch: Launch, docker: Any, tmp_path: Any) -> None:
    """One that knows nothing of checkpoints, with layers and a working directory of its own."""
    await launch.start()  # Docker has the default image now
    (base,) = docker.images.list("jupyter-checkpoints")
    (tmp_path / "Dockerfile").write_text(
        f"FROM {base.tags[0]}\nRUN rm -r /.jupyter-checkpoints && echo layered > /layered\n"
        "RUN rm /layered && mkdir /made && echo second > /made/second\n"
        "ENV FLAVOUR=strange\nWORKDIR /made\n"
    )
    docker.images.build(
        path=str(tmp_path), tag="strange:1", network_mode="none", forcerm=True, labels={}
    )
    request = StartRequest(
        kernel_id=str(uuid4()),
        argv=python_kernel("x").argv,
        key=KEY,
        image="strange:1",
        detached=True,
    )
    kernel = await launch.start(request)
    code = (
        "import os; print(os.getcwd(), os.listdir(), os.environ['FLAVOUR'], "
        "os.path.exists('/layered'))"
    )
    before = await kernel.run(code)
    assert before == "/made ['second'] strange False"
    saved = await kernel.save()
    assert saved.image == "strange:1"
    clone = await launch.resume(saved)
    assert await clone.run(code) == before
    for one in (kernel, clone):
        await one.end()
    docker.images.remove("strange:1", force=True)
    report = await launch.agent.preflight(saved.id)
    assert not report.ok
    (finding,) = report.findings
    assert finding.code == "image-missing" and "strange:1" in finding.message
    with pytest.raises(NotFound, match="strange:1"):
        await launch.agent.start_kernel(request)


async def test_the_other_engine_goes_on(private_agent: Agent) -> None:
    """From Docker to the embedded engine, and back: the same image, the same checkpoint."""
    kernel_id = str(uuid4())
    async with AgentClient(private_agent.socket) as client:
        model = await client.start_kernel(python_kernel(kernel_id, detached=True))
        async with connected(model) as channels:
            await run(channels, "import os; x = 0; open('/root/file', 'w').write('of the first')")
            await run(channels, "os.rename('/root/file', '/root/renamed')")
        saved = await client.save(kernel_id)
        await client.delete_kernel(kernel_id)
    for number, engine in enumerate(("embedded", "docker", "docker", "embedded"), 1):
        _restart_with(private_agent, engine)
        async with AgentClient(private_agent.socket) as client:
            model = await client.start_kernel(
                StartRequest(kernel_id=kernel_id, checkpoint=saved.id, detached=True)
            )
            async with connected(model) as channels:
                assert await run(channels, "x += 1; x") == str(number)
                kept = await run(
                    channels, "open('/root/renamed').read(), os.path.exists('/root/file')"
                )
                assert kept == "('of the first', False)"
            saved = await client.save(kernel_id)
            assert saved.host.engine == engine
            await client.delete_kernel(kernel_id)
    async with AgentClient(private_agent.socket) as client:
        for checkpoint in await client.checkpoints():
            await client.delete_checkpoint(checkpoint.id)


async def test_kernels_stay_with_their_engine(private_agent: Agent) -> None:
    """Another engine could not take them over: an agent that is told to use it does not start."""
    kernel_id = str(uuid4())
    async with AgentClient(private_agent.socket) as client:
        await client.start_kernel(python_kernel(kernel_id, detached=True))
    with pytest.raises(AssertionError, match="were started by the docker engine"):
        _restart_with(private_agent, "embedded")
    with pytest.raises(HostNotReady, match="were started by the docker engine"):
        choose("embedded", "", private_agent.layout)
    (private_agent.layout.run_dir / "engine").unlink()
    with pytest.raises(HostNotReady, match="were started by the embedded engine"):
        choose("docker", "", private_agent.layout)
    (private_agent.layout.run_dir / "engine").write_text("docker\n")
    _restart_with(private_agent, "auto")
    async with AgentClient(private_agent.socket) as client:
        assert (await client.status()).engine == "docker"
        assert (await client.kernel(kernel_id)).state == "running"
        await client.delete_kernel(kernel_id)


def _restart_with(agent: Agent, engine: str) -> None:
    agent.end()
    agent.options = [o for o in agent.options if not o.startswith("--engine=")]
    agent.options.append(f"--engine={engine}")
    agent.start()
