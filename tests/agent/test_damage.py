"""Damaged checkpoints are refused before anything is touched; a full disk costs one clear error."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.errors import (
    CheckpointDamaged,
    InsufficientResources,
    NotFound,
    ResumeFailed,
)
from jupyter_checkpoints.models import CheckpointModel, SaveRequest, StartRequest
from tests.unit.store.saving import flip

from .agents import Agent, wait_until
from .cells import run
from .conftest import running_agent
from .kernels import connected, python_kernel

pytestmark = pytest.mark.anyio


@pytest.fixture
async def saved(client: AgentClient) -> AsyncIterator[CheckpointModel]:
    """A checkpoint of a kernel that runs on, with a file of its own."""
    kernel_id = str(uuid.uuid4())
    model = await client.start_kernel(python_kernel(kernel_id, detached=True))
    async with connected(model) as channels:
        await run(channels, "open('/root/file', 'w').write('x' * 10000); y = 1")
        checkpoint = await client.save(kernel_id, SaveRequest())
        yield checkpoint
        # Whatever was tried with its checkpoint, the kernel itself knows nothing of it.
        assert await run(channels, "print(y)") == "1"
    await client.delete_kernel(kernel_id)
    await client.delete_checkpoint(checkpoint.id)


def _truncate(agent: Agent, checkpoint_id: str) -> None:
    os.truncate(agent.pack(checkpoint_id), 2**20)


def _flip_bit(agent: Agent, checkpoint_id: str) -> None:
    flip(agent.pack(checkpoint_id), 2**20)


def _remove(agent: Agent, checkpoint_id: str) -> None:
    agent.pack(checkpoint_id).unlink()


def _flip_memory(agent: Agent, checkpoint_id: str) -> None:
    agent.damage(checkpoint_id, "pages-2.img")


def _flip_map(agent: Agent, checkpoint_id: str) -> None:
    flip(agent.layout.store / checkpoint_id / "pages.map", 100)


_IN_MEMORY = (_flip_bit, _flip_memory)


async def _ends_by_damage(client: AgentClient, request: StartRequest) -> None:
    try:
        await client.start_kernel(request)
    except (CheckpointDamaged, ResumeFailed):
        return
    async with asyncio.timeout(60):
        async for kernel in client.attach(request.kernel_id):
            if kernel.state == "exited":
                break
    assert "not what was" in kernel.reason
    await client.delete_kernel(request.kernel_id)


@pytest.mark.parametrize("damage", [_truncate, _flip_bit, _remove, _flip_memory, _flip_map])
async def test_damaged_images(
    agent: Agent,
    client: AgentClient,
    saved: CheckpointModel,
    damage: Callable[[Agent, str], None],
) -> None:
    damage(agent, saved.id)
    assert not (await client.verify(saved.id)).ok
    before = agent.log.read_text()
    with pytest.raises(CheckpointDamaged) as caught:
        await client.resume(saved.kernel_id, saved.id)
    assert caught.value.reason and caught.value.hint
    clone = str(uuid.uuid4())
    request = StartRequest(kernel_id=clone, checkpoint=saved.id, detached=True)
    if damage in _IN_MEMORY:
        # Nothing else than the memory itself tells, and that comes after the kernel.
        await _ends_by_damage(client, request)
    else:
        with pytest.raises(CheckpointDamaged):
            await client.start_kernel(request)
        with pytest.raises(NotFound):
            await client.kernel(clone)
    # CRIU was not run: no container was even prepared.
    assert not [p for p in agent.layout.kernel(saved.kernel_id).iterdir() if p.name == "1"]
    assert "restore.log" not in agent.log.read_text()[len(before) :]


def _change_file(snapshot: Path) -> None:
    subprocess.run(["btrfs", "property", "set", snapshot, "ro", "false"], check=True)
    (snapshot / "upper/root/file").write_text("x" * 9999 + "y")
    subprocess.run(["btrfs", "property", "set", snapshot, "ro", "true"], check=True)


async def test_damaged_files(agent: Agent, client: AgentClient, saved: CheckpointModel) -> None:
    _change_file(agent.layout.pool / "snapshots" / saved.id)
    with pytest.raises(CheckpointDamaged, match="files of the container"):
        await client.resume(saved.kernel_id, saved.id)


async def test_damaged_manifest(agent: Agent, client: AgentClient, saved: CheckpointModel) -> None:
    path = agent.layout.store / saved.id / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"uid":0', '"uid":1', 1))
    try:
        with pytest.raises(CheckpointDamaged):
            await client.resume(saved.kernel_id, saved.id)
    finally:
        path.write_text(text)
    assert (await client.verify(saved.id)).ok


@contextmanager
def _small_disk(directory: Path, size: int) -> Iterator[Path]:
    """A file system of its own for an agent's data."""
    image, target = directory / "disk.img", directory / "disk"
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    target.mkdir()
    subprocess.run(["mount", "-o", "loop", image, target], check=True)
    try:
        yield target
    finally:
        # The loop device of the pool on it lets go of its file a moment after its own unmount.
        wait_until(lambda: subprocess.run(["umount", target], check=False).returncode == 0)


@pytest.fixture
def agent_on_small_disk(tmp_path: Path, default_image: None) -> Iterator[tuple[Agent, Path]]:
    with (
        _small_disk(tmp_path, 1200 * 2**20) as disk,
        running_agent(data_dir=disk / "data") as agent,
    ):
        yield agent, disk


async def test_a_full_disk_is_seen_before_the_freeze(
    agent_on_small_disk: tuple[Agent, Path],
) -> None:
    agent, _ = agent_on_small_disk
    kernel_id = str(uuid.uuid4())
    async with AgentClient(agent.socket) as client:
        kernel = await client.start_kernel(python_kernel(kernel_id, detached=True))
        async with connected(kernel) as channels:
            await run(channels, "import os; data = os.urandom(900 << 20)")
            with pytest.raises(InsufficientResources) as caught:
                await client.save(kernel_id, SaveRequest())
            assert "GiB" in str(caught.value) or "MiB" in str(caught.value)
            assert await run(channels, "print(len(data) >> 20)") == "900"
        assert await client.checkpoints() == []
        assert agent.staging() == []
        await client.delete_kernel(kernel_id)


@pytest.mark.parametrize("stop", [False, True])
async def test_a_disk_that_fills_up_during_the_dump(
    agent_on_small_disk: tuple[Agent, Path], stop: bool
) -> None:
    """One clear error; the kernel goes on, and nothing half written is left."""
    agent, disk = agent_on_small_disk
    kernel_id = str(uuid.uuid4())
    async with AgentClient(agent.socket) as client:
        kernel = await client.start_kernel(python_kernel(kernel_id, detached=True))
        async with connected(kernel) as channels:
            await run(channels, "import os; data = os.urandom(300 << 20)")
            ballast = disk / "ballast"
            over = threading.Event()
            filler = threading.Thread(target=_fill_when_dumping, args=(agent, ballast, over))
            filler.start()
            try:
                with pytest.raises(InsufficientResources) as caught:
                    await client.save(kernel_id, SaveRequest(stop=stop))
            finally:
                over.set()
                filler.join()
                ballast.unlink(missing_ok=True)
            assert "disk" in str(caught.value)
            assert await run(channels, "print(len(data) >> 20)") == "300"
            wait_until(lambda: agent.staging() == [], what="staging removed")
            assert await client.checkpoints() == []
            # With space again, the same save succeeds.
            saved = await client.save(kernel_id, SaveRequest())
            assert (await client.verify(saved.id)).ok
        await client.delete_kernel(kernel_id)
        await client.delete_checkpoint(saved.id)


def _fill_when_dumping(agent: Agent, ballast: Path, over: threading.Event) -> None:
    """Take all the space as soon as a save has begun to write."""
    while not over.is_set():
        if any(agent.layout.store.glob(".staging-*/images/*.img")):
            free = os.statvfs(ballast.parent)
            with ballast.open("wb") as file:
                size = free.f_bavail * free.f_frsize
                while size > 4096:
                    try:
                        os.posix_fallocate(file.fileno(), 0, size)
                        break
                    except OSError:
                        size -= 2**20
            return
