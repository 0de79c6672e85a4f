"""The fixtures that others' tests get, in a pytest of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = 'pytest_plugins = ["jupyter_checkpoints.pytest_plugin"]\n'
TEST = """
import asyncio, os
from jupyter_client.manager import start_new_async_kernel
from jupyter_checkpoints.client import connect

async def work(name):
    manager, channels = await start_new_async_kernel(kernel_name=name)
    async with connect() as agent:
        saved = await agent.save(manager.kernel_id)
        assert [c.id for c in await agent.checkpoints()] == [saved.id]
    channels.stop_channels()
    await manager.shutdown_kernel(now=True)

def test_save(checkpoints_agent, checkpoints_kernelspecs, checkpoints_clean):
    assert os.environ["JUPYTER_CHECKPOINTS_SOCKET"] == str(checkpoints_agent)
    asyncio.run(work(checkpoints_kernelspecs[0]))

def test_nothing_is_left(checkpoints_agent):
    async def look():
        async with connect() as agent:
            assert await agent.checkpoints() == []
    asyncio.run(look())
"""


@pytest.mark.usefixtures("default_image")
def test_in_a_pytest_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(TEST)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout
