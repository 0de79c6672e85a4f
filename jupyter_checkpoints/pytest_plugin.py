"""Fixtures for tests of programs that use runtime checkpoints.

Ask for them in ``conftest.py``::

    pytest_plugins = ["jupyter_checkpoints.pytest_plugin"]

They run a real agent, so they need root and a host that is set up (``jupyter checkpoints setup``);
elsewhere the tests that ask for them are skipped, and say why. ::

    def test_my_program(checkpoints_agent, checkpoints_kernelspecs):
        subprocess.run(["my-program", "--kernel", "checkpoints-python3"], check=True)
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import kernelspecs, layout
from .agent.subnets import free_subnet
from .client import AgentClient
from .errors import AgentUnavailable
from .models import Status

_START_SECONDS = 60.0


@pytest.fixture(scope="session")
def checkpoints_agent() -> Iterator[Path]:
    """An agent of the tests' own; its socket. Named by the environment for all that is started.

    It has the host's images, and nothing else of the host's agent. At the end all its kernels and
    checkpoints are removed.
    """
    if os.geteuid() != 0:
        pytest.skip("runtime checkpoints need root")
    images = layout.DATA_DIR / "images"
    if not images.is_dir():
        pytest.skip("this host has no images: run `jupyter checkpoints setup`")
    # Not below pytest's own directories, which are deleted with what is mounted in them.
    root = Path(tempfile.mkdtemp(prefix="jupyter-checkpoints-pytest-"))
    root.chmod(0o711)
    paths = layout.Layout(root / "data", root / "run", images)
    with (root / "agent.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyter_checkpoints.agent"),
                *(f"--data-dir={paths.data_dir}", f"--run-dir={paths.run_dir}"),
                *(f"--images-dir={images}", f"--subnet={free_subnet()}"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        _wait(process, paths.socket, root / "agent.log")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(layout.SOCKET_ENV, str(paths.socket))
            yield paths.socket
        asyncio.run(_delete_everything(paths.socket))
    finally:
        process.terminate()
        process.wait()
        if os.path.ismount(paths.pool):
            subprocess.run(["umount", paths.pool], check=True)
        shutil.rmtree(root)


@pytest.fixture(scope="session")
def checkpoints_kernelspecs(
    checkpoints_agent: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[str]]:
    """Kernelspecs whose kernels can be saved, found by all that is started; their names."""
    prefix = tmp_path_factory.mktemp("checkpoints-prefix")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(prefix / "share" / "jupyter"), prepend=os.pathsep)
        yield [path.name for path in kernelspecs.add_defaults(prefix=str(prefix))]


@pytest.fixture
def checkpoints_clean(checkpoints_agent: Path) -> Iterator[None]:
    """Remove all kernels and checkpoints after the test."""
    yield
    asyncio.run(_delete_everything(checkpoints_agent))


def _wait(process: subprocess.Popen[bytes], socket: Path, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            asyncio.run(_status(socket))
            return
        except AgentUnavailable:
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the agent did not start:\n{log.read_text()}", pytrace=False)
            time.sleep(0.05)


async def _status(socket: Path) -> Status:
    async with AgentClient(socket, autostart=False) as agent:
        return await agent.status()


async def _delete_everything(socket: Path) -> None:
    async with AgentClient(socket, autostart=False) as agent:
        for kernel in await agent.kernels():
            await agent.delete_kernel(kernel.id)
        for checkpoint in await agent.checkpoints():
            await agent.delete_checkpoint(checkpoint.id)
