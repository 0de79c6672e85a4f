"""Saving while the kernel runs: the pause is short, and what is saved is of one moment, exactly."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from jupyter_checkpoints.agent import dirty
from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.errors import SaveFailed
from jupyter_checkpoints.models import CheckpointModel, SaveRequest, StartRequest

from .agents import Agent
from .cells import run
from .conftest import running_agent
from .kernels import connected, python_kernel
from .test_lazy import agent as agent
from .test_lazy import client as client

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

watched = pytest.mark.skipif(
    os.geteuid() != 0 or not dirty.available(), reason="this kernel cannot tell what is written"
)
MIB = 2**20


async def resumed(client: AgentClient, saved: CheckpointModel, code: str) -> str:
    """What a cell prints in a clone, which is removed then."""
    request = StartRequest(kernel_id=str(uuid4()), checkpoint=saved.id, detached=True)
    clone = await client.start_kernel(request)
    try:
        async with connected(clone) as channels:
            return await run(channels, code)
    finally:
        await client.delete_kernel(clone.id)


def held(agent: Agent) -> int:
    return sum(path.stat().st_blocks * 512 for path in agent.layout.packs.iterdir())


@watched
async def test_the_second_save_of_an_idle_kernel_takes_next_to_nothing(
    agent: Agent, client: AgentClient
) -> None:
    kernel = await client.start_kernel(python_kernel(str(uuid4()), detached=True))
    async with connected(kernel) as channels:
        code = "import numpy; data = numpy.random.default_rng(1).bytes(512 << 20)"
        await run(channels, code)
        first = await client.save(kernel.id, SaveRequest())
        before = held(agent)
        second = await client.save(kernel.id, SaveRequest())
        assert held(agent) - before < MIB
        code = "import hashlib; hashlib.sha256(data).hexdigest()"
        digest = await run(channels, code)
    for saved in (first, second):
        assert (await client.verify(saved.id)).ok
        assert await resumed(client, saved, code) == digest


def written(agent: Agent) -> int:
    """Bytes that the agent itself has written into files."""
    assert agent.process is not None
    lines = Path(f"/proc/{agent.process.pid}/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["wchar"])


#: A thread writes the next number into the next page and into a file, faster than any save. Each
#: page must still have what was written into it one round before: then all are of one moment.
WRITER = """
import os, threading, numpy
pages = numpy.zeros((10_000, 512), numpy.int64)
log = os.open("/root/log", os.O_RDWR | os.O_CREAT | os.O_APPEND)
turn, wrong, stopped = 0, [], threading.Event()
def work():
    global turn
    while not stopped.is_set():
        turn += 1
        at = turn % len(pages)
        if pages[at, 0] != max(0, turn - len(pages)):
            wrong.append((turn, int(pages[at, 0])))
        pages[at, 0] = turn
        os.write(log, turn.to_bytes(8, "little"))
writer = threading.Thread(target=work, daemon=True)
writer.start()
"""
#: After two more rounds: what is wrong, and whether the file has each number once, in order.
INSPECT = """
import time
end = turn + 2 * len(pages)
while turn < end:
    time.sleep(0.01)
stopped.set()
writer.join()
numbers = numpy.fromfile("/root/log", numpy.int64)
print(wrong, len(numbers) == turn and (numpy.diff(numbers) == 1).all())
"""


async def test_memory_and_files_are_of_one_moment(client: AgentClient) -> None:
    """Of a kernel that never stops writing."""
    kernel = await client.start_kernel(python_kernel(str(uuid4()), detached=True))
    async with connected(kernel) as channels:
        await run(channels, WRITER)
        for _ in range(3):
            saved = await client.save(kernel.id, SaveRequest())
            assert await resumed(client, saved, INSPECT) == "[] True"
        assert await run(channels, INSPECT) == "[] True"


#: Memory of a kernel and of a child of it that is changed, moved, given back, and mapped anew.
MEMORY = """
import hashlib, mmap, os, random
chance = random.Random(1)
PAGE, PAGES = 4096, 8192

class Memory:
    def __init__(self):
        self.areas = [self.map(PAGES) for _ in range(3)]

    def map(self, pages):
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        area = mmap.mmap(-1, pages * PAGE, flags=flags)
        area[:] = chance.randbytes(len(area))
        return area

    def change(self):
        for area in self.areas:
            for _ in range(chance.randrange(300)):
                at = chance.randrange(len(area) - 200)
                area[at : at + 200] = chance.randbytes(200)
        at = chance.randrange(3)
        area = self.areas[at]
        what = chance.randrange(5)
        if what == 0:
            area.resize(chance.choice([PAGES // 2, PAGES, PAGES * 2]) * PAGE)
        elif what == 1:
            start = chance.randrange(len(area) // PAGE // 2) * PAGE
            area.madvise(mmap.MADV_DONTNEED, start, 500 * PAGE)
        elif what == 2:
            area.close()
            self.areas[at] = self.map(PAGES)

    def digest(self):
        whole = hashlib.blake2b()
        for area in self.areas:
            whole.update(area)
        return whole.hexdigest()

memory = Memory()
ask, asked = os.pipe()
tell, told = os.pipe()
if os.fork() == 0:
    while command := os.read(ask, 1):
        if command == b"c":
            memory.change()
        os.write(told, memory.digest().encode())
    os._exit(0)

def child(command):
    os.write(asked, command)
    return os.read(tell, 128).decode()
"""
DIGEST = "print(memory.digest(), child(b'd'))"


async def test_every_generation_is_exact(client: AgentClient) -> None:
    kernel = await client.start_kernel(python_kernel(str(uuid4()), detached=True))
    async with connected(kernel) as channels:
        await run(channels, MEMORY)
        digests: list[tuple[CheckpointModel, str]] = []
        for _ in range(20):
            digest = await run(channels, f"memory.change(); child(b'c'); {DIGEST}")
            digests.append((await client.save(kernel.id, SaveRequest()), digest))
            assert await run(channels, DIGEST) == digest
    # Every fifth one is looked at by the processes themselves, the last one among them.
    for saved, digest in digests[4::5]:
        assert (await client.verify(saved.id)).ok
        assert await resumed(client, saved, DIGEST) == digest


async def test_a_save_after_a_failed_one(agent: Agent, client: AgentClient) -> None:
    """What was not written since a window counts only if that window has become a checkpoint."""
    kernel = await client.start_kernel(python_kernel(str(uuid4()), detached=True))
    async with connected(kernel) as channels:
        await run(channels, MEMORY)
        await client.save(kernel.id, SaveRequest())
        await run(channels, "memory.change(); child(b'c')")
        code = "import ctypes; queue = ctypes.CDLL(None).mq_open(b'/q', 0o102, 0o600, None)"
        await run(channels, code)
        with pytest.raises(SaveFailed, match="path=/q"):
            await client.save(kernel.id, SaveRequest())
        await run(channels, "os.close(queue); ctypes.CDLL(None).mq_unlink(b'/q')")
        digest = await run(channels, DIGEST)
        saved = await client.save(kernel.id, SaveRequest())
        assert await resumed(client, saved, DIGEST) == digest
        # The next agent knows nothing of what was written.
        agent.restart(signal.SIGKILL)
    async with AgentClient(agent.socket) as other, connected(kernel) as channels:
        digest = await run(channels, f"memory.change(); child(b'c'); {DIGEST}")
        saved = await other.save(kernel.id, SaveRequest())
        assert await resumed(other, saved, DIGEST) == digest


async def _log_of_a_dump(agent: Agent) -> str:
    async with AgentClient(agent.socket) as client:
        kernel = await client.start_kernel(python_kernel(str(uuid4()), detached=True))
        async with connected(kernel):
            await client.save(kernel.id, SaveRequest())
        log = agent.layout.kernel(kernel.id) / "0" / "dump" / "dump.log"
        said = log.read_text(errors="replace")
        await client.delete_kernel(kernel.id)
    return said


async def test_a_kernel_does_not_wait_for_a_log(agent: Agent) -> None:
    """CRIU writes thousands of lines about each dump, if it is let."""
    lines = (await _log_of_a_dump(agent)).splitlines()
    assert [line for line in lines if "Error" not in line and "Warn" not in line] == []


@pytest.fixture
def telling_agent(default_image: None) -> Iterator[Agent]:
    """One whose CRIU tells all that it does."""
    with running_agent("--log-level=DEBUG") as agent:
        yield agent


async def test_nobody_else_can_ask_for_the_memory(telling_agent: Agent) -> None:
    """CRIU would serve it to whoever connects first, on all of the host's addresses."""
    log = await _log_of_a_dump(telling_agent)
    assert "Starting lazy pages server" in log
    assert "Reusing ps socket" in log
    assert "Listening" not in log and "Binding" not in log


async def test_more_memory_than_descriptors(private_agent: Agent) -> None:
    """A host that lets CRIU have few descriptors: the kernel is saved as without a window."""
    assert private_agent.process is not None
    resource.prlimit(private_agent.process.pid, resource.RLIMIT_NOFILE, (900, 900))
    async with AgentClient(private_agent.socket) as client:
        kernel = await client.start_kernel(python_kernel(str(uuid4()), detached=True))
        async with connected(kernel) as channels:
            await run(channels, "import hashlib; data = bytearray(b'x' * (480 << 20))")
            first = await client.save(kernel.id, SaveRequest())
            await run(channels, "data[::4096] = bytes(len(data) // 4096)")
            second = await client.save(kernel.id, SaveRequest())
            # Then it has little enough, and builds on that.
            await run(channels, "del data[64 << 20:]; data[5] = 9")
            third = await client.save(kernel.id, SaveRequest())
        code = "print(data[:4097].count(b'x'), data[5], len(data) >> 20)"
        assert await resumed(client, first, code) == "4097 120 480"
        assert await resumed(client, second, code) == "4095 120 480"
        assert await resumed(client, third, code) == "4094 9 64"
        await client.delete_kernel(kernel.id)


async def test_the_first_save_of_a_copy_writes_what_is_new(
    agent: Agent, client: AgentClient
) -> None:
    """Nobody knows what its processes have written: it is compared while it is read."""
    kernel = await client.start_kernel(python_kernel(str(uuid4()), detached=True))
    async with connected(kernel) as channels:
        code = "import hashlib, numpy; data = numpy.random.default_rng(1).bytes(512 << 20)"
        await run(channels, code)
        digest = await run(channels, "hashlib.sha256(data).hexdigest()")
        first = await client.save(kernel.id, SaveRequest())
    await client.delete_kernel(kernel.id)
    request = StartRequest(kernel_id=str(uuid4()), checkpoint=first.id, detached=True)
    clone = await client.start_kernel(request)
    async with connected(clone) as channels:
        # All of it is there then.
        assert await run(channels, "hashlib.sha256(data).hexdigest()") == digest
    before = written(agent)
    second = await client.save(clone.id, SaveRequest())
    assert written(agent) - before < 128 * MIB
    assert await resumed(client, second, "hashlib.sha256(data).hexdigest()") == digest


#: Children that share most of their memory with the kernel; CRIU has pipes for that of each.
CHILDREN = """
import os
ask, asked = os.pipe()
tell, told = os.pipe()
for number in range(12):
    if os.fork() == 0:
        while os.read(ask, 1):
            os.write(told, bytes([number]))
def answers():
    os.write(asked, bytes(100))
    return len(os.read(tell, 1)) and all(os.read(tell, 1) for _ in range(99))
"""


async def test_more_descriptors_than_thought(private_agent: Agent) -> None:
    """A window that was thought to be affordable turns out not to be."""
    assert private_agent.process is not None
    resource.prlimit(private_agent.process.pid, resource.RLIMIT_NOFILE, (900, 900))
    async with AgentClient(private_agent.socket) as client:
        kernel = await client.start_kernel(python_kernel(str(uuid4()), detached=True))
        async with connected(kernel) as channels:
            await run(channels, CHILDREN)
            saved = await client.save(kernel.id, SaveRequest())
            assert await run(channels, "answers()") == "True"
        assert await resumed(client, saved, "answers()") == "True"
        await client.delete_kernel(kernel.id)
