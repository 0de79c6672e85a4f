"""A Jupyter Server whose kernels Docker Engine holds: saved, woken, put back, copied, and ended."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest

from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.layout import SOCKET_ENV
from tests.agent.agents import Agent
from tests.agent.conftest import running_agent
from tests.server import test_cull, test_remix
from tests.server.conftest import kernelspec_prefix as kernelspec_prefix
from tests.server.conftest import server as server
from tests.server.servers import PATIENCE, Server
from tests.server.test_cull import CULLING

from .engine import DockerEngine
from .test_kernels import KERNEL
from .test_kernels import docker as docker

pytestmark = pytest.mark.anyio

test_a_culled_kernel_goes_on = test_cull.test_a_culled_kernel_goes_on_with_the_next_cell
test_copied_by_the_file_browser = test_remix.test_copied_by_the_file_browser


@pytest.fixture(scope="package")
def agent(default_image: None, docker_engine: DockerEngine) -> Iterator[Agent]:
    with (
        running_agent(
            *docker_engine.options, "--AgentApp.orphan_grace=5", env=docker_engine.agent_env
        ) as agent,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv(SOCKET_ENV, str(agent.socket))
        yield agent


def containers(docker: Any, kernel_id: str) -> list[Any]:
    found: list[Any] = docker.containers.list(all=True, filters={"label": f"{KERNEL}={kernel_id}"})
    return found


async def test_saved_put_back_and_woken_by_the_next_server(
    server: Server, client: AgentClient, docker: Any
) -> None:
    notebook = server.write("n.ipynb")
    jupyter = await server.start()
    first = await jupyter.open(notebook)
    assert len(containers(docker, first)) == 1
    async with jupyter.page(first) as page:
        await page.run("x = 'saved'")
        saved = await jupyter.save(first)
        await page.run("x = 'later'")
        operation = await jupyter.ours(
            "POST", f"checkpoints/{saved['id']}/resume", {"kernel_id": first}
        )
        ended = await jupyter.finished(operation)
        assert ended["state"] == "done", ended
        # The page stays connected to the kernel, which is another container now.
        assert await page.run("print(x); x = 'last'") == "saved"
    await server.stop(signal.SIGTERM)
    assert (await client.status()).engine == "docker"
    assert await client.kernels() == [] and containers(docker, first) == []
    assert {c.trigger for c in await client.checkpoints()} == {"manual", "shutdown"}

    jupyter = await server.start()
    assert await jupyter.run(await jupyter.open(notebook), "print(x)") == "last"


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(lambda c: c.kill(), id="kill"),
        pytest.param(lambda c: c.stop(), id="stop"),
        pytest.param(lambda c: c.remove(force=True), id="rm"),
    ],
)
async def test_ended_from_outside(server: Server, docker: Any, end: Callable[[Any], None]) -> None:
    """To Jupyter it is a kernel that died: it tells its pages, and starts another in its place."""
    notebook = server.write("n.ipynb")
    jupyter = await server.start()
    kernel_id = await jupyter.open(notebook)
    async with jupyter.page(kernel_id) as page:
        await page.run("x = 1")
        [container] = containers(docker, kernel_id)
        await anyio.to_thread.run_sync(end, container)
        with anyio.fail_after(PATIENCE):
            state = ""
            while state not in ("restarting", "autorestarting"):
                _, header, _, content = await page.next()
                if header["msg_type"] == "status":
                    state = content["execution_state"]
        await page.ready()
        assert await page.run("print('x' in globals())") == "False"
    [fresh] = containers(docker, kernel_id)
    assert fresh.id != container.id


async def test_nothing_revives_a_kernel_that_was_culled(
    server: Server, docker: Any, client: AgentClient
) -> None:
    """Saved and ended: neither Jupyter's restarter nor Docker starts it again."""
    notebook = server.write("n.ipynb")
    jupyter = await server.start(*CULLING)
    began = int(time.time())
    async with jupyter.events() as events:
        kernel_id = await jupyter.open(notebook)
        [container] = containers(docker, kernel_id)
        assert container.attrs["HostConfig"]["RestartPolicy"]["Name"] in ("", "no")
        await jupyter.run(kernel_id, "x = 1")
        await events.action("culled")
        await jupyter.gone(kernel_id)
    assert containers(docker, kernel_id) == [] and await client.kernels() == []
    await server.stop(signal.SIGTERM)
    filters = {"label": f"{KERNEL}={kernel_id}", "event": "start"}
    # Docker tells seconds: until the next one all of this one is in.
    until = int(time.time()) + 1
    started = list(docker.events(since=began, until=until, filters=filters, decode=True))
    assert [event["id"] for event in started] == [container.id]


async def test_paused_from_outside(server: Server, docker: Any) -> None:
    """Its page is told; it cannot be interrupted then, but saved, put to sleep, and ended."""
    notebook = server.write("n.ipynb")
    jupyter = await server.start()
    async with jupyter.events() as events:
        kernel_id = await jupyter.open(notebook)
        await jupyter.run(kernel_id, "x = 1")
        [container] = containers(docker, kernel_id)
        await anyio.to_thread.run_sync(container.pause)
        told = await events.action("paused")
        assert told["kernel_id"] == kernel_id and told["notebook"] == notebook
        [runtime] = await jupyter.ours("GET", "runtimes")
        assert runtime["kernels"] == runtime["paused"] == [kernel_id]
        saved = await jupyter.save(kernel_id)
        await anyio.to_thread.run_sync(container.unpause)
        await events.action("unpaused")
        assert await jupyter.run(kernel_id, "print(x)") == "1"
        await anyio.to_thread.run_sync(container.pause)
        await events.action("paused")
    # Its state is saved for the shutdown, although it cannot answer a request.
    with anyio.fail_after(PATIENCE):
        await server.stop(signal.SIGTERM)
    assert containers(docker, kernel_id) == []
    jupyter = await server.start()
    kernel_id = await jupyter.open(notebook)
    assert await jupyter.run(kernel_id, "print(x)") == "1"
    newest = (await jupyter.ours("GET", "checkpoints"))[0]
    assert newest["id"] != saved["id"] and newest["trigger"] == "shutdown"


async def test_culled_while_paused(server: Server, docker: Any) -> None:
    notebook = server.write("n.ipynb")
    jupyter = await server.start(*CULLING)
    async with jupyter.events() as events:
        kernel_id = await jupyter.open(notebook)
        await jupyter.run(kernel_id, "x = 1")
        [container] = containers(docker, kernel_id)
        await anyio.to_thread.run_sync(container.pause)
        await events.action("culled")
        await jupyter.gone(kernel_id)
    assert containers(docker, kernel_id) == []
