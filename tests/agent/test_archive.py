"""Archives of checkpoints: whole and resumable on the way out, suspicious on the way in."""

from __future__ import annotations

import io
import json
import tarfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import anyio
import pytest

from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.errors import CheckpointsError, NotAllowed
from jupyter_checkpoints.models import CheckpointModel, StartRequest

from .agents import Agent
from .cells import run
from .conftest import running_agent
from .kernels import connected, python_kernel
from .kernelspecs import nothing_left as nothing_left

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_left")]

FILES = """
import os, socket
os.makedirs('/data/deep')
with open('/data/deep/holes', 'wb') as f:
    f.seek(2**40); f.write(b'end')
open('/data/one', 'w').write('1'); os.link('/data/one', '/data/two')
os.symlink('one', '/data/link'); os.mkfifo('/data/pipe')
os.remove('/etc/hostname') if os.path.exists('/etc/hostname') else None
os.setxattr('/data/one', 'user.color', b'green'); os.chown('/data/one', 1000, 1000)
listening = socket.socket(socket.AF_UNIX); listening.bind('/data/socket')
x = 42
"""
LOOK = """
print(str((
    x, os.path.getsize('/data/deep/holes'), os.path.samefile('/data/one', '/data/two'),
    open('/data/link').read(), os.getxattr('/data/one', 'user.color'),
    os.stat('/data/one').st_uid, sorted(os.listdir('/data')),
)))
"""
EXPECTED = "(42, 1099511627779, True, '1', b'green', 1000, "
EXPECTED += "['deep', 'link', 'one', 'pipe', 'socket', 'two'])"


@pytest.fixture
async def saved(client: AgentClient) -> AsyncIterator[CheckpointModel]:
    """A checkpoint with every kind of file in it."""
    kernel_id = str(uuid.uuid4())
    model = await client.start_kernel(python_kernel(kernel_id, detached=True))
    async with connected(model) as channels:
        await run(channels, FILES)
    made = await client.save(kernel_id)
    await client.delete_kernel(kernel_id)
    yield made


async def download(
    client: AgentClient, checkpoint: str, start: int = 0, tag: str = ""
) -> tuple[bytes, int, str]:
    """What comes, how large the whole is, and its tag."""
    data, size, known = b"", 0, ""
    async for part in client.export(checkpoint, start, tag):
        data += part.data
        size, known = part.size or size, part.tag or known
    return data, size, known


async def upload(
    client: AgentClient, data: bytes, *, runtime: str = "", trusted: bool = False
) -> CheckpointModel:
    async def content() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 1 << 20):
            yield data[start : start + (1 << 20)]

    return await client.import_archive(content(), len(data), runtime=runtime, trusted=trusted)


async def resumed(client: AgentClient, checkpoint: str) -> str:
    kernel_id = str(uuid.uuid4())
    request = StartRequest(kernel_id=kernel_id, checkpoint=checkpoint, detached=True)
    async with connected(await client.start_kernel(request)) as channels:
        return await run(channels, LOOK)


async def test_out_and_in(client: AgentClient, saved: CheckpointModel) -> None:
    data, size, _ = await download(client, saved.id)
    assert len(data) == size
    await client.delete_checkpoint(saved.id)
    made = await upload(client, data, runtime="other")
    assert made.id != saved.id
    assert (made.runtime, made.trigger, made.parent) == ("other", "import", "")
    assert (await client.verify(made.id)).ok
    # IPython's history may say that its database has moved: inode numbers are new ones.
    assert EXPECTED in await resumed(client, made.id)


async def test_a_broken_download_is_resumed(client: AgentClient, saved: CheckpointModel) -> None:
    whole, size, tag = await download(client, saved.id)
    for start in (1, 12_345, size - 1):
        rest, of, same = await download(client, saved.id, start, tag)
        assert (rest, of, same) == (whole[start:], size, tag)
    # Another content: from the beginning.
    rest, of, _ = await download(client, saved.id, 100, '"other"')
    assert (rest, of) == (whole, size)
    with pytest.raises(CheckpointsError, match="cannot be sent"):
        await download(client, saved.id, size, tag)


@pytest.fixture
def other_agent(default_image: None) -> Iterator[Agent]:
    """The agent of another host, as it were."""
    with running_agent() as agent:
        yield agent


async def test_an_archive_of_another_store(
    client: AgentClient, saved: CheckpointModel, other_agent: Agent
) -> None:
    data, _, _ = await download(client, saved.id)
    async with AgentClient(other_agent.socket) as other:
        with pytest.raises(NotAllowed, match="own store"):
            await upload(other, data)
        assert await other.checkpoints() == []
        made = await upload(other, data, trusted=True)
        assert EXPECTED in await resumed(other, made.id)
        for kernel in await other.kernels():
            await other.delete_kernel(kernel.id)
        await other.delete_checkpoint(made.id)


Change = Callable[[tarfile.TarInfo, bytes], tuple[tarfile.TarInfo, bytes] | None]


def rewritten(data: bytes, change: Change, *more: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """The archive with entries changed, left out, added."""
    out = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as source,
        tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as target,
    ):
        for member in source:
            if "holes" in member.name:
                continue
            file = source.extractfile(member) if member.isreg() else None
            changed = change(member, file.read() if file else b"")
            if changed is not None:
                target.addfile(changed[0], io.BytesIO(changed[1]))
        for info, content in more:
            info.size = len(content)
            target.addfile(info, io.BytesIO(content))
    return out.getvalue()


def entry(name: str, content: bytes = b"", **attributes: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content


async def test_hostile_archives_leave_nothing(
    agent: Agent, client: AgentClient, saved: CheckpointModel, tmp_path: Path
) -> None:
    data, _, _ = await download(client, saved.id)
    before = agent.snapshots(), agent.checkpoints()
    outside = tmp_path / "outside"

    def same(info: tarfile.TarInfo, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
        return info, content

    def pages(info: tarfile.TarInfo, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
        if "/pages-" in info.name:
            content = bytes([content[0] ^ 1]) + content[1:]
        return info, content

    def manifest(info: tarfile.TarInfo, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
        if info.name == "checkpoint.json":
            content = content.replace(b'"uid":0', b'"uid":1', 1)
        return info, content

    def without_images(
        info: tarfile.TarInfo, content: bytes
    ) -> tuple[tarfile.TarInfo, bytes] | None:
        return None if info.name.startswith("images/core-") else (info, content)

    def future(info: tarfile.TarInfo, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
        if info.name == "checkpoint.json":
            content = json.dumps({**json.loads(content), "version": 99}).encode()
            info.size = len(content)
        return info, content

    hostile = {
        "nothing": b"",
        "no tar": b"x" * 20_000,
        "cut short": data[: len(data) // 2],
        "changed pages": rewritten(data, pages),
        "changed manifest": rewritten(data, manifest),
        "missing images": rewritten(data, without_images),
        "from the future": rewritten(data, future),
        "one file less": rewritten(data, same),
        "one file more": rewritten(data, same, entry("upper/data/more", b"x")),
        "leads out": rewritten(data, same, entry(f"upper/../../{outside}", b"x")),
        "behind a link": rewritten(
            data,
            same,
            entry("upper/out", type=tarfile.SYMTYPE, linkname=str(tmp_path)),
            entry("upper/out/outside", b"x"),
        ),
        "a device": rewritten(
            data, same, entry("upper/disk", type=tarfile.BLKTYPE, devmajor=8, devminor=0)
        ),
        "a link out": rewritten(
            data, same, entry("upper/passwd", type=tarfile.LNKTYPE, linkname="/etc/passwd")
        ),
    }
    for kind, content in hostile.items():
        for trusted in (False, True):
            if kind == "changed manifest" and trusted:
                continue  # then it is what root says it is
            with pytest.raises(CheckpointsError) as refused:
                await upload(client, content, trusted=trusted)
            assert refused.value.http_status < 500, (kind, trusted, refused.value)
    assert (agent.snapshots(), agent.checkpoints()) == before
    assert not outside.exists()
    assert agent.staging() == []
    assert list(agent.layout.incoming.iterdir()) == []


async def test_too_large(agent: Agent, client: AgentClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 20)

    with anyio.fail_after(10), pytest.raises(CheckpointsError, match="too large"):
        await client.import_archive(endless(), 1 << 50)
