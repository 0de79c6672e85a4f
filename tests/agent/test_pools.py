"""Every kind of pool on a file system that calls for it: layers, snapshots, clones, clean-up."""

from __future__ import annotations

import stat
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from jupyter_checkpoints.agent.rootfs import CopyPool, open_pool
from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.layout import Layout
from jupyter_checkpoints.models import SaveRequest, StartRequest

from .agents import Agent, wait_until
from .callers import for_all_callers
from .cells import CellError, run
from .conftest import running_agent
from .kernels import connected, python_kernel

pytestmark = pytest.mark.anyio

MAKE = {
    "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"],
    "btrfs": ["mkfs.btrfs", "-q"],
    "ext4": ["mkfs.ext4", "-q"],
}


@pytest.fixture
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of the kind that the test asks for."""
    image, target = tmp_path / "disk.img", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(3 * 2**30)
    subprocess.run([*MAKE[request.param], image], check=True)
    target.mkdir()
    subprocess.run(["mount", "-o", "loop", image, target], check=True)
    try:
        yield target
    finally:
        # The loop device of the pool on it lets go of its file a moment after its own unmount.
        wait_until(lambda: subprocess.run(["umount", target], check=False).returncode == 0)


@pytest.mark.parametrize(
    ("disk", "expected"),
    [("btrfs", "btrfs"), ("ext4", "btrfs"), ("xfs", "btrfs")],
    indirect=["disk"],
)
def test_what_is_chosen(disk: Path, expected: str) -> None:
    """btrfs where the kernel has it, on any disk; what was chosen first is kept."""
    layout = Layout(disk / "data", disk / "run")
    pool = open_pool(layout)
    try:
        assert pool.name == expected
        assert (layout.pool_file.exists()) == (disk_kind(disk) != "btrfs")
    finally:
        pool.close()
    again = open_pool(layout, "auto")
    again.close()
    assert again.name == expected


def test_a_saved_root_directory_stays_as_it_is(tmp_path: Path) -> None:
    """CRIU insists on the modes of directories that are open."""
    pool = CopyPool(tmp_path / "pool")
    pool.open()
    upper = pool.create("first") / "upper"
    assert stat.S_IMODE(upper.stat().st_mode) == 0o755
    upper.chmod(0o700)
    subprocess.run(["sh", "-c", pool.snapshot_script("first", "saved")], check=True)
    again = pool.create("second", "saved") / "upper"
    assert stat.S_IMODE(again.stat().st_mode) == 0o700


def disk_kind(disk: Path) -> str:
    return subprocess.check_output(["stat", "-f", "-c", "%T", disk], text=True).strip()


@pytest.fixture
def pool_agent(request: pytest.FixtureRequest, disk: Path, default_image: None) -> Iterator[Agent]:
    with running_agent(f"--pool={request.param}", data_dir=disk / "d") as agent:
        yield agent


@pytest.mark.parametrize(
    ("disk", "pool_agent", "keeps_inodes"),
    [
        ("ext4", "btrfs", True),
        ("btrfs", "btrfs", True),
        ("xfs", "reflink", True),
        ("btrfs", "reflink", True),
        ("ext4", "copy", False),
    ],
    indirect=["disk", "pool_agent"],
)
@for_all_callers
async def test_save_resume_clone(pool_agent: Agent, keeps_inodes: bool, caller: int) -> None:
    agent = pool_agent
    kernel_id, clone_id = str(uuid.uuid4()), str(uuid.uuid4())
    async with AgentClient(agent.socket, user=caller or None) as client:
        assert f"--pool={(await client.status()).pool}" in agent.options
        model = await client.start_kernel(python_kernel(kernel_id, detached=True))
        async with connected(model) as channels:
            await run(
                channels,
                "import os, sqlite3\n"
                "os.makedirs('/root/d/e'); open('/root/d/e/f', 'w').write('x' * 100000)\n"
                "os.link('/root/d/e/f', '/root/d/hard'); os.symlink('e/f', '/root/d/soft')\n"
                "os.unlink('/etc/issue')\n"
                "db = sqlite3.connect('/root/rollback.db')\n"
                "db.execute('create table t (x)'); db.execute('insert into t values (1)')\n"
                "db.commit()\n"
                "log = open('/root/log', 'w'); log.write('saved\\n'); log.flush()",
            )
            saved = await client.save(kernel_id, SaveRequest())
            assert (await client.verify(saved.id)).ok
            await run(channels, "log.write('original\\n'); log.flush(); os.unlink('/root/d/hard')")
            clone = await client.start_kernel(
                StartRequest(kernel_id=clone_id, checkpoint=saved.id, detached=True)
            )
            look = (
                # In one piece: others print as well.
                "print('{} {} {} {}'.format(open('/root/log').read().split(), "
                "os.path.exists('/etc/issue'), os.path.exists('/root/d/hard'), "
                "len(open('/root/d/soft').read())))"
            )
            async with connected(clone) as others:
                # Where inode numbers change, IPython says that its history is lost.
                assert "['saved'] False True 100000" in await run(others, look)
                await run(others, "log.write('clone\\n'); log.flush()")
                assert "['saved', 'clone']" in await run(others, look)
                write = "db.execute('insert into t values (2)'); db.commit(); print('written')"
                if keeps_inodes:
                    assert await run(others, write) == "written"
                else:
                    with pytest.raises(CellError, match="readonly"):
                        await run(others, write)
            assert await run(channels, look) == "['saved', 'original'] False False 100000"
            await client.resume(kernel_id, saved.id)
            assert "['saved'] False True 100000" in await run(channels, look)
            # Snapshots survive the agent; so do layers that are in use.
            agent.restart()
            await client.resume(kernel_id, saved.id)
            assert "['saved'] False True 100000" in await run(channels, look)
        for kernel in (kernel_id, clone_id):
            await client.delete_kernel(kernel)
        await client.delete_checkpoint(saved.id)
        assert agent.layers() == [] and agent.snapshots() == set()
