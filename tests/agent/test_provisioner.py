"""Kernels in containers, driven by jupyter_client's own managers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager, KernelManager
from jupyter_client.provisioning.factory import KernelProvisionerFactory

from jupyter_checkpoints import kernelspecs
from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.errors import CheckpointsError, Conflict
from jupyter_checkpoints.layout import SOCKET_ENV
from jupyter_checkpoints.provisioner import ContainerProvisioner

from .agents import Agent
from .cells import run
from .kernelspecs import jupyter_dirs as jupyter_dirs
from .kernelspecs import nothing_left as nothing_left

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("jupyter_dirs", "nothing_left")]

PYTHON = "checkpoints-python3"


class Kernel:
    """A manager and a client that stays connected."""

    def __init__(self, manager: AsyncKernelManager, client: AsyncKernelClient) -> None:
        self.manager = manager
        self.client = client

    @property
    def provisioner(self) -> ContainerProvisioner:
        assert isinstance(self.manager.provisioner, ContainerProvisioner)
        return self.manager.provisioner

    async def run(self, code: str) -> str:
        return await run(self.client, code)

    async def reconnect(self) -> None:
        """New channels, as after a restart."""
        self.client.stop_channels()
        self.client = await connected(self.manager)


async def connected(manager: AsyncKernelManager) -> AsyncKernelClient:
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=60)
    except BaseException:
        client.stop_channels()
        raise
    return client


@asynccontextmanager
async def started(name: str = PYTHON, **arguments: Any) -> AsyncIterator[Kernel]:
    manager = AsyncKernelManager(kernel_name=name)
    await manager.start_kernel(**arguments)
    try:
        kernel = Kernel(manager, await connected(manager))
        try:
            yield kernel
        finally:
            kernel.client.stop_channels()
    finally:
        await manager.shutdown_kernel(now=True)


async def until(condition: Any, seconds: float = 30) -> None:
    """Wait until the coroutine function ``condition`` returns something true."""
    with anyio.fail_after(seconds):
        while not await condition():  # noqa: ASYNC110  (a kernel's state, not an event of ours)
            await anyio.sleep(0.02)


async def test_a_kernels_whole_life(agent: Agent, client: AgentClient, tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("from the host")
    async with started(cwd=str(tmp_path)) as kernel:
        (model,) = await client.kernels()
        assert (model.id, model.state) == (kernel.manager.kernel_id, "running")
        assert model.connection is not None
        assert kernel.manager.ip == model.connection.ip

        # The notebook's directory is there, at its own path.
        assert await kernel.run("open('data.txt').read()") == "'from the host'"
        await kernel.run("open('result.txt', 'w').write('from the kernel')")
        assert (tmp_path / "result.txt").read_text() == "from the kernel"

        # An interrupt reaches the running cell.
        message = kernel.client.execute(
            "import time\nprint('began')\ntime.sleep(600)",
            stop_on_error=False,  # or the kernel may refuse the next cell, if it comes at once
        )
        while True:
            heard = await kernel.client.get_iopub_msg(timeout=30)
            if heard["msg_type"] == "stream" and heard["parent_header"]["msg_id"] == message:
                break
        await kernel.manager.interrupt_kernel()
        while (await kernel.client.get_shell_msg(timeout=30))["parent_header"]["msg_id"] != message:
            pass
        assert await kernel.run("1 + 1") == "2"

        # A restart is fresh, at the same address.
        await kernel.run("x = 1")
        address = kernel.manager.ip
        await kernel.manager.restart_kernel()
        await kernel.reconnect()
        assert kernel.manager.ip == address
        assert await kernel.run("'x' in globals()") == "False"
        assert await kernel.manager.is_alive()
    assert not await kernel.manager.is_alive()
    assert await client.kernels() == []


async def test_nothing_of_the_servers_environment_gets_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("LC_TIME", "C.UTF-8")
    environment = {**os.environ, "JPY_SESSION_NAME": "/n.ipynb"}
    async with started(env=environment) as kernel:
        await kernel.run("import os")
        assert await kernel.run("print('AWS_SECRET_ACCESS_KEY' in os.environ)") == "False"
        assert await kernel.run("print(os.environ['LC_TIME'])") == "C.UTF-8"
        assert await kernel.run("print(os.environ['JPY_SESSION_NAME'])") == "/n.ipynb"
        assert await kernel.run("print('JPY_PARENT_PID' in os.environ)") == "False"


async def test_a_graceful_shutdown_lets_the_kernel_end_itself(
    client: AgentClient, tmp_path: Path
) -> None:
    manager = AsyncKernelManager(kernel_name=PYTHON)
    await manager.start_kernel(cwd=str(tmp_path))
    kernel = Kernel(manager, await connected(manager))
    await kernel.run("import atexit; atexit.register(lambda: open('ended', 'w').close())")
    kernel.client.stop_channels()
    await kernel.manager.shutdown_kernel()
    assert (tmp_path / "ended").exists()
    assert await client.kernels() == []


async def test_an_end_is_noticed_and_told_with_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with started() as kernel:
        manager = kernel.manager
        kernel.client.execute(
            # Past ipykernel, which sends what goes to the descriptor to its clients.
            "import os, sys\n"
            "os.write(sys.stderr._original_stdstream_copy, b'the last words\\n')\n"
            "os._exit(3)",
            store_history=False,
        )

        async def ended() -> bool:
            return not await manager.is_alive()

        await until(ended)
        assert await kernel.provisioner.poll() == 3
        assert "exit code 3" in caplog.text
        assert "the last words" in caplog.text
        # And it can be started again, as an autorestarter does.
        await manager.restart_kernel(now=True)
        await kernel.reconnect()
        assert await kernel.run("'back'") == "'back'"


def test_a_blocking_manager_sees_an_end_while_its_loop_does_not_run(
    agent: Agent, jupyter_dirs: Path
) -> None:
    manager = KernelManager(kernel_name=PYTHON)
    manager.start_kernel()
    try:
        client = manager.client()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=60)
            assert manager.is_alive()
            client.execute("import os; os._exit(0)", store_history=False)
            deadline = time.monotonic() + 30
            # No call into the manager, and so no event loop of it, runs in between.
            while agent.containers() and time.monotonic() < deadline:
                time.sleep(0.02)
            while manager.is_alive() and time.monotonic() < deadline:
                time.sleep(0.02)
            assert not manager.is_alive()
            manager.restart_kernel(now=True)
            client.wait_for_ready(timeout=60)
            manager.interrupt_kernel()
            assert manager.is_alive()
        finally:
            client.stop_channels()
    finally:
        manager.shutdown_kernel(now=True)
    assert not manager.is_alive()


async def test_a_checkpoint_is_resumed_once_and_a_restart_is_fresh(client: AgentClient) -> None:
    async with started() as original:
        await original.run("x = 'kept'")
        saved = await original.provisioner.save(name="one")
        await original.run("x = 'changed'")
        async with started(restore_from=saved.id) as clone:
            assert await clone.run("x") == "'kept'"
            assert await original.run("x") == "'changed'"
            assert clone.manager.ip != original.manager.ip
            await clone.manager.restart_kernel(now=True)
            await clone.reconnect()
            assert await clone.run("'x' in globals()") == "False"
    await client.delete_checkpoint(saved.id)


async def test_back_to_a_checkpoint_in_place(client: AgentClient) -> None:
    async with started() as kernel:
        await kernel.run("x = 1")
        stages: list[str] = []
        first = await kernel.provisioner.save(name="first")
        await kernel.run("x = 2")
        await kernel.provisioner.resume_in_place(first.id, lambda e: stages.append(e.stage))
        assert await kernel.run("x") == "1"
        assert "restore" in stages
        await kernel.run("x = 3")
        second = await kernel.provisioner.save(stop=True)
        # Asleep is alive: an autorestarter must let it be.
        assert await kernel.manager.is_alive()
        with pytest.raises(Conflict):
            await kernel.manager.interrupt_kernel()
        await kernel.provisioner.resume_in_place(second.id)
        assert await kernel.run("x") == "3"
    for checkpoint in (first, second):
        await client.delete_checkpoint(checkpoint.id)


@pytest.mark.parametrize("now", [False, True])
async def test_a_stopped_kernel_can_be_shut_down(client: AgentClient, now: bool) -> None:
    async with started() as kernel:
        saved = await kernel.provisioner.save(stop=True)
        kernel.client.stop_channels()
        await kernel.manager.shutdown_kernel(now=now)
        assert await client.kernels() == []
    # Nothing of the shutdown is in the checkpoint.
    async with started(restore_from=saved.id) as clone:
        assert await clone.run("1 + 1") == "2"
    await client.delete_checkpoint(saved.id)


async def test_a_restart_into_a_checkpoint(client: AgentClient) -> None:
    async with started() as kernel:
        await kernel.run("x = 1")
        saved = await kernel.provisioner.save()
        await kernel.run("x = 2")
        await kernel.manager.restart_kernel(now=True, restore_from=saved.id)
        await kernel.reconnect()
        assert await kernel.run("x") == "1"
        await kernel.manager.restart_kernel(now=True)
        await kernel.reconnect()
        assert await kernel.run("'x' in globals()") == "False"
    await client.delete_checkpoint(saved.id)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["python", "-m", "no_such_module"], "No module named no_such_module"),
        (["no-such-program"], "no-such-program"),
    ],
)
async def test_a_kernel_that_fails_at_its_start_says_why(
    client: AgentClient,
    jupyter_dirs: Path,
    caplog: pytest.LogCaptureFixture,
    argv: list[str],
    said: str,
) -> None:
    kernelspecs.add(
        "failing",
        image="python3",
        argv=[*argv, "{connection_file}"],
        prefix=str(jupyter_dirs / "prefix"),
        replace=True,
    )
    manager = AsyncKernelManager(kernel_name="failing")
    await manager.start_kernel()
    try:
        with pytest.raises(RuntimeError, match="died"):
            await connected(manager)
        assert said in caplog.text
    finally:
        await manager.shutdown_kernel(now=True)
    assert await client.kernels() == []


async def test_an_image_that_does_not_exist(client: AgentClient, jupyter_dirs: Path) -> None:
    kernelspecs.add(
        "no-image",
        image="no/such-image",
        argv=["python", "{connection_file}"],
        prefix=str(jupyter_dirs / "prefix"),
    )
    manager = AsyncKernelManager(kernel_name="no-image")
    with pytest.raises(CheckpointsError, match="no/such-image"):
        await manager.start_kernel()
    assert await client.kernels() == []


async def test_another_process_takes_a_kernel_over() -> None:
    async with started() as kernel:
        await kernel.run("x = 1")
        info = await kernel.provisioner.get_provisioner_info()
        spec = KernelSpecManager().get_kernel_spec(PYTHON)
        taken = KernelProvisionerFactory.instance().create_provisioner_instance(
            info["kernel_id"], spec, parent=AsyncKernelManager(kernel_name=PYTHON)
        )
        assert isinstance(taken, ContainerProvisioner)
        await taken.load_provisioner_info(info)
        assert taken.has_process
        assert await taken.poll() is None
        assert taken.connection_info == kernel.provisioner.connection_info
        await taken.send_signal(signal.SIGKILL)
        assert await taken.wait()
        await taken.cleanup()


async def test_a_kernel_outlives_its_agent(
    private_agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SOCKET_ENV, str(private_agent.socket))
    async with started() as kernel:
        await kernel.run("x = 1")
        private_agent.end(signal.SIGKILL)
        assert await kernel.manager.is_alive()
        assert await kernel.run("x") == "1"
        private_agent.start()
        assert await kernel.run("x") == "1"

        async def noticed() -> bool:
            return not await kernel.manager.is_alive()

        async with AgentClient(private_agent.socket) as client:
            await client.signal(str(kernel.manager.kernel_id), signal.SIGKILL)
        await until(noticed)


def test_a_kernel_whose_client_was_killed_can_be_found(agent: Agent, jupyter_dirs: Path) -> None:
    """kill -9 of what started a kernel leaves the kernel for a while, for `ps` to show."""
    program = (
        "from jupyter_client.manager import start_new_kernel\n"
        f"start_new_kernel(kernel_name={PYTHON!r})\n"
        "print('started', flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as starter:
        assert starter.stdout is not None
        try:
            assert starter.stdout.readline() == b"started\n"
        finally:
            starter.kill()

    async def find_and_delete() -> None:
        async with AgentClient(agent.socket) as client:
            (model,) = await client.kernels()
            assert model.state == "running"
            await client.delete_kernel(model.id)

    anyio.run(find_and_delete)
