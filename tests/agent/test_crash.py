"""kill -9 of anything, at random moments of saves and resumes.

The moments are random on purpose; the seed is printed, and what must hold holds at every moment:
no committed checkpoint is damaged, the kernel is still there, and nothing is left on the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from jupyter_checkpoints.agent import process
from jupyter_checkpoints.agent.cgroup import Cgroup
from jupyter_checkpoints.agent.process import MARK
from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.errors import CheckpointsError, SaveFailed
from jupyter_checkpoints.layout import SOCKET_ENV
from jupyter_checkpoints.models import CheckpointModel, KernelModel, SaveRequest, StartRequest

from .agents import Agent
from .callers import for_all_callers
from .cells import run
from .kernels import connected, python_kernel

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(900)]

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "50"))
VERBS = ["save", "stop", "resume", "clone"]
#: What may end processes that CRIU has left in the midst of a call of its own.
_INJECTED = (signal.SIGTRAP, signal.SIGSEGV, signal.SIGILL, signal.SIGBUS)
#: About as long as the longest operation takes on an idle machine.
SPAN = 0.45

_CLIENT = """
import asyncio, sys
from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.models import SaveRequest, StartRequest

async def main(user, verb, kernel, checkpoint, clone):
    async with AgentClient(user=user or None) as client:
        print("now", flush=True)
        if verb in ("save", "stop"):
            await client.save(kernel, SaveRequest(stop=verb == "stop"))
        elif verb == "resume":
            await client.resume(kernel, checkpoint)
        else:
            request = StartRequest(kernel_id=clone, checkpoint=checkpoint, detached=True)
            await client.start_kernel(request)

asyncio.run(main(*sys.argv[1:]))
"""


#: Kills the CRIU processes of one agent; a process of its own, for it must be quick.
_KILLER = """
import os, signal, sys, time
mark, delay = os.fsencode(sys.argv[1]), float(sys.argv[2])

def ours(pid):
    # A dump or a restore overwrites its own environment with its title: its runc has one.
    while pid > 1:
        if mark in open(f"/proc/{pid}/environ", "rb").read():
            return True
        pid = int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
    return False

def criu():
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and open(f"/proc/{name}/comm").read() == "criu\\n":
                if ours(int(name)):
                    yield int(name)
        except OSError:
            pass

print("ready", flush=True)
while not list(criu()):
    pass
time.sleep(delay)
killed = 0
for pid in criu():
    try:
        os.kill(pid, signal.SIGKILL)
        killed += 1
    except ProcessLookupError:
        pass
print(killed, flush=True)
"""


@asynccontextmanager
async def _criu_killer(agent: Agent, delay: float) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
    """Kills CRIU ``delay`` seconds after it is first seen; whether it did is asked afterwards."""
    killer = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _KILLER, f"{MARK}={agent.layout.instance}/", str(delay)),
        stdout=subprocess.PIPE,
    )
    assert killer.stdout is not None
    await killer.stdout.readline()

    async def killed() -> bool:
        assert killer.stdout is not None
        try:
            async with asyncio.timeout(1):
                return int(await killer.stdout.readline() or b"0") > 0
        except TimeoutError:
            return False  # no CRIU was ever seen

    try:
        yield killed
    finally:
        if killer.returncode is None:
            killer.kill()
        await killer.wait()


async def settled(client: AgentClient, kernel_id: str) -> KernelModel:
    """The kernel when nothing works on it any more."""
    async for model in client.attach(kernel_id):
        if model.state in ("running", "stopped", "exited"):
            return model
    raise AssertionError("the kernel is gone")


async def saved_kernel(client: AgentClient, kernel_id: str) -> tuple[str, CheckpointModel]:
    """Start a kernel and save it; what :func:`check_kernel` compares, and the checkpoint."""
    kernel = await client.start_kernel(python_kernel(kernel_id, detached=True))
    async with connected(kernel) as channels:
        await run(channels, "import os, hashlib; count = 0; data = os.urandom(20 << 20)")
        digest = await run(channels, "print(hashlib.sha256(data).hexdigest())")
    return digest, await client.save(kernel_id, SaveRequest(name="base"))


async def told(client: AgentClient, kernel_id: str) -> KernelModel:
    """The kernel when nothing works on it any more; if it has ended, that is known."""
    while True:
        kernel = await settled(client, kernel_id)
        if kernel.state != "running" or process.start_time(kernel.pid or 0) is not None:
            return kernel
        await asyncio.sleep(0.05)


async def check_kernel(kernel: KernelModel, digest: str) -> None:
    async with connected(kernel) as channels:
        await run(channels, "count += 1")
        assert await run(channels, "print(hashlib.sha256(data).hexdigest())") == digest


async def check_all(client: AgentClient, keep: str) -> int:
    """Every checkpoint that is listed is whole; all but ``keep`` are then deleted."""
    listed = await client.checkpoints()
    for checkpoint in listed:
        report = await client.verify(checkpoint.id)
        assert report.ok, report
        if checkpoint.id != keep:
            await client.delete_checkpoint(checkpoint.id)
    return len(listed)


@pytest.mark.parametrize("victim", ["agent", "criu", "client", "kernel"])
@for_all_callers
async def test_kill_9(private_agent: Agent, victim: str, caller: int) -> None:
    seed = int(os.environ.get("CRASH_SEED", random.randrange(10**6)))
    print(f"CRASH_SEED={seed}")  # noqa: T201 - to repeat a failure
    choose = random.Random(f"{victim} {seed}")
    agent = private_agent
    kernel_id = str(uuid.uuid4())
    async with AgentClient(agent.socket, user=caller or None) as client:
        digest, base = await saved_kernel(client, kernel_id)
        kernel = await client.kernel(kernel_id)
    hits = rounds = 0
    # A run in which hardly anything was ever hit would prove nothing.
    while rounds < ROUNDS or hits < ROUNDS // 2:
        rounds += 1
        assert rounds <= 4 * ROUNDS, hits
        verb = choose.choice(VERBS)
        hits += await _hit(agent, caller, victim, verb, kernel, base, choose)
        if agent.process is None:
            agent.start()
        async with AgentClient(agent.socket) as client:
            kernel = await told(client, kernel_id)
            if victim == "criu" and kernel.state != "stopped":
                kernel = await _after_criu_s_end(client, kernel, base)
            if victim == "kernel" and kernel.state == "exited":
                assert kernel.exit_code == 128 + signal.SIGKILL, kernel
                kernel = await client.resume(kernel_id, base.id)
            # Whatever else was hit, its state is not lost: it runs, or is saved and stopped.
            assert kernel.state in ("running", "stopped"), (verb, kernel)
            if kernel.state == "stopped":
                kernel = await client.resume(kernel_id, kernel.checkpoint)
            try:
                await check_kernel(kernel, digest)
            except TimeoutError:
                # What the client had sent may be read only after it is gone; and a kernel that is
                # put back in the midst of a question has never heard it.
                if victim != "client":
                    raise
                await check_kernel(await settled(client, kernel_id), digest)
            for other in await client.kernels():
                if other.id != kernel_id:
                    await client.delete_kernel(other.id)
            assert await check_all(client, base.id) in (1, 2)
    async with AgentClient(agent.socket) as client:
        await client.delete_kernel(kernel_id)
        await client.delete_checkpoint(base.id)
    agent.assert_clean()


async def _after_criu_s_end(
    client: AgentClient, kernel: KernelModel, base: CheckpointModel
) -> KernelModel:
    """The kernel, which may have to be resumed.

    For moments CRIU has a kernel's processes run calls of its own: with its death they end.
    """
    if kernel.state == "running":
        try:
            async with connected(kernel):
                return kernel
        except RuntimeError:  # it does not answer
            kernel = await told(client, kernel.id)
    assert (kernel.state, kernel.exit_code) in [("exited", 128 + n) for n in _INJECTED], kernel
    return await client.resume(kernel.id, base.id)


async def _hit(
    agent: Agent,
    caller: int,
    victim: str,
    verb: str,
    kernel: KernelModel,
    base: CheckpointModel,
    choose: random.Random,
) -> bool:
    """Begin one operation and kill the victim in the midst of it; whether it was in time."""
    kernel_id = kernel.id
    delay = choose.random() * SPAN
    clone = str(uuid.uuid4())
    if victim == "client":
        program = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _CLIENT, str(caller or ""), verb, kernel_id, base.id, clone),
            env={**os.environ, SOCKET_ENV: str(agent.socket)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert program.stdout is not None
        # Most of its life it only imports: the moments count from its request on.
        await program.stdout.readline()
        await asyncio.sleep(delay)
        if program.returncode is None:
            program.kill()
        return await program.wait() == -signal.SIGKILL
    async with AgentClient(agent.socket, user=caller or None) as client:
        if victim != "criu":
            first, *others = Cgroup.of(kernel.pid or 0).processes()
            operation = asyncio.ensure_future(begin(verb, client, kernel_id, base, clone))
            await asyncio.sleep(delay)
            in_time = not operation.done()
            if victim == "agent":
                agent.end(signal.SIGKILL)
            else:
                _kill_all(others if choose.random() < 0.5 else [first, *others])
            # It is noticed, not waited for until the time of the operation is up.
            async with asyncio.timeout(30):
                await outcome(operation)
                if victim == "kernel":
                    await _over([first])
            return in_time
        async with _criu_killer(agent, delay / 4) as killed:
            async with asyncio.timeout(30):
                await outcome(begin(verb, client, kernel_id, base, clone))
            return await killed()


def _kill_all(pids: list[int]) -> None:
    """What is short of memory does so, or whoever ends a container from outside."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def _over(pids: list[int]) -> None:
    """They have ended."""
    while any(map(process.start_time, pids)):  # noqa: ASYNC110 - nobody is told of it
        await asyncio.sleep(0.01)


async def begin(
    verb: str, client: AgentClient, kernel_id: str, base: CheckpointModel, clone: str
) -> object:
    """One of the operations that are hit; ``clone`` is the id of a kernel that it may make."""
    match verb:
        case "save":
            return await client.save(kernel_id, SaveRequest())
        case "stop":
            return await client.save(kernel_id, SaveRequest(stop=True))
        case "resume":
            return await client.resume(kernel_id, base.id)
    return await client.start_kernel(
        StartRequest(kernel_id=clone, checkpoint=base.id, detached=True)
    )


async def outcome(operation: Awaitable[object]) -> None:
    """It may fail; then with an error that says what happened."""
    try:
        await operation
    except CheckpointsError as error:
        assert error.message, error


@pytest.mark.parametrize("stop", [False, True])
@for_all_callers
async def test_a_kernel_that_has_ended_is_not_saved(client: AgentClient, stop: bool) -> None:
    """Its container lives on for a moment; here it is held in that moment."""
    kernel = await client.start_kernel(python_kernel(str(uuid.uuid4()), detached=True))
    async with connected(kernel):
        pass
    first, *others = Cgroup.of(kernel.pid or 0).processes()
    os.kill(first, signal.SIGSTOP)
    try:
        _kill_all(others)
        await _over(others)
        with pytest.raises(SaveFailed, match="has ended"):
            await client.save(kernel.id, SaveRequest(stop=stop))
    finally:
        os.kill(first, signal.SIGCONT)
    await _over([first])
    ended = await told(client, kernel.id)
    assert (ended.state, ended.exit_code) == ("exited", 128 + signal.SIGKILL)
    assert await client.checkpoints() == []
    await client.delete_kernel(kernel.id)


@asynccontextmanager
async def _held_dump(
    client: AgentClient, kernel: KernelModel
) -> AsyncIterator[tuple[int, asyncio.Future[CheckpointModel]]]:
    """A save whose CRIU, which has the kernel, stands still."""
    pid = kernel.pid or 0
    while True:
        saving = asyncio.ensure_future(client.save(kernel.id, SaveRequest()))
        while not (criu := process.dump_of(pid)) and not saving.done():  # noqa: ASYNC110
            await asyncio.sleep(0)
        if criu:
            os.kill(criu, signal.SIGSTOP)
            if process.dump_of(pid) == criu:
                break
            os.kill(criu, signal.SIGCONT)  # it was done already
        await saving
    try:
        yield criu, saving
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(criu, signal.SIGCONT)


@for_all_callers
async def test_criu_outlives_the_agent(private_agent: Agent, caller: int) -> None:
    """It leaves the kernel frozen, as it has found it: the next agent has to wait for that."""
    agent = private_agent
    async with AgentClient(agent.socket, user=caller or None) as client:
        kernel = await client.start_kernel(python_kernel(str(uuid.uuid4()), detached=True))
        async with connected(kernel) as channels:
            await run(channels, "x = 1")
        async with _held_dump(client, kernel) as (_, saving):
            agent.end(signal.SIGKILL)
            await outcome(saving)
            started = asyncio.ensure_future(asyncio.to_thread(agent.start))
            while f"CRIU still has kernel {kernel.id}" not in agent.log.read_text():
                assert not started.done()
                await asyncio.sleep(0.01)
        await started
    async with AgentClient(agent.socket, user=caller or None) as client:
        async with connected(await client.kernel(kernel.id)) as channels:
            assert await run(channels, "print(x)") == "1"
        await client.save(kernel.id, SaveRequest(stop=True))
        await client.delete_kernel(kernel.id)
        for checkpoint in await client.checkpoints():
            await client.delete_checkpoint(checkpoint.id)


@for_all_callers
async def test_the_end_of_criu_is_told(private_agent: Agent, caller: int) -> None:
    async with AgentClient(private_agent.socket, user=caller or None) as client:
        kernel = await client.start_kernel(python_kernel(str(uuid.uuid4()), detached=True))
        async with connected(kernel):
            pass
        async with _held_dump(client, kernel) as (criu, saving):
            os.kill(criu, signal.SIGKILL)
            # In some moments the kernel ends with it.
            with pytest.raises(SaveFailed, match=r"CRIU was ended by SIGKILL|has ended"):
                await saving
        await client.delete_kernel(kernel.id)
        for checkpoint in await client.checkpoints():
            await client.delete_checkpoint(checkpoint.id)
