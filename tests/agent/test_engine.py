"""What every kernel's container is: confined, limited, addressed, signalled, logged, cleaned up."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient

from jupyter_checkpoints.agent.cgroup import Cgroup
from jupyter_checkpoints.agent.seccomp import DEFAULT_CAPABILITIES
from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.errors import Conflict, NotFound, OperationTimeout, StartFailed
from jupyter_checkpoints.models import KernelModel, Limits, Mount, SaveRequest, StartRequest

from .agents import Agent, wait_until
from .callers import for_all_callers
from .cells import CellError, finish, run
from .conftest import running_agent
from .kernels import KEY, connected, python_kernel

pytestmark = [pytest.mark.anyio, for_all_callers]


class Kernel:
    def __init__(self, model: KernelModel, channels: AsyncKernelClient) -> None:
        self.model = model
        self.id = model.id
        self.channels = channels

    async def run(self, code: str) -> str:
        return await run(self.channels, code)


@pytest.fixture
async def kernel(client: AgentClient) -> AsyncIterator[Kernel]:
    model = await client.start_kernel(python_kernel(str(uuid.uuid4()), detached=True))
    async with connected(model) as channels:
        yield Kernel(model, channels)
    await client.delete_kernel(model.id)


async def _state(client: AgentClient, kernel_id: str, wanted: str) -> KernelModel:
    async with asyncio.timeout(30):
        async for model in client.attach(kernel_id):
            if model.state == wanted:
                return model
    raise AssertionError(f"never {wanted}")


# -- confinement -------------------------------------------------------------------------------


async def test_privileges(kernel: Kernel) -> None:
    status = await kernel.run("print(open('/proc/self/status').read())")
    facts = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    assert facts["NoNewPrivs"] == "1"
    assert facts["Seccomp"] == "2"
    allowed = int(facts["CapBnd"], 16)
    assert allowed.bit_count() == len(DEFAULT_CAPABILITIES)
    assert int(facts["CapEff"], 16) == allowed
    assert int(facts["CapInh"], 16) == int(facts["CapAmb"], 16) == 0


async def test_the_same_privileges_after_a_resume(client: AgentClient, kernel: Kernel) -> None:
    code = """
import re
text = open('/proc/self/status').read()
print(re.findall('(Cap|NoNew|Seccomp).*', text), re.findall('Cap.*|NoNew.*|Seccomp:.*', text))
import os
print(sorted(os.readlink(f'/proc/self/ns/{n}').split(':')[0] for n in os.listdir('/proc/self/ns')))
"""
    before = await kernel.run(code)
    saved = await client.save(kernel.id, SaveRequest())
    await client.resume(kernel.id, saved.id)
    assert await kernel.run(code) == before
    await client.delete_checkpoint(saved.id)


@pytest.mark.parametrize(
    "attempt",
    [
        "os.mknod('/root/sda', 0o600 | stat.S_IFBLK, os.makedev(254, 0)); open('/root/sda', 'rb')",
        "open('/proc/sysrq-trigger', 'w').write('h')",
        "open('/proc/sys/kernel/hostname', 'w').write('x')",
        "open('/sys/kernel/mm/transparent_hugepage/enabled', 'w').write('always')",
        "open('/run/jupyter/connection.json', 'w')",
        "open('/proc/kcore', 'rb').read(1) or 1/0",
        "syscall('mount', b'none', b'/mnt', b'tmpfs', 0, 0)",
        "syscall('unshare', 0x10000000)",
        "syscall('io_uring_setup', 1, 0)",
        "syscall('userfaultfd', 0)",
        "syscall('keyctl', 0, 0, 0)",
        "syscall('bpf', 0, 0, 0)",
        "syscall('perf_event_open', 0, 0, 0)",
        "syscall('init_module', 0, 0, 0)",
        "syscall('kexec_load', 0, 0, 0)",
        "syscall('settimeofday', 0, 0)",
        "syscall('setns', 0, 0)",
    ],
)
async def test_what_is_refused(kernel: Kernel, attempt: str) -> None:
    """Each of these would reach beyond the container, or make it impossible to save."""
    with pytest.raises(CellError, match=r"PermissionError|OSError|ZeroDivisionError"):
        await kernel.run(f"""
import ctypes, os, stat
NUMBERS = dict(mount=165, unshare=272, io_uring_setup=425, userfaultfd=323, keyctl=250, bpf=321,
               perf_event_open=298, init_module=175, kexec_load=246, settimeofday=164, setns=308)
libc = ctypes.CDLL(None, use_errno=True)
def syscall(name, *args):
    if libc.syscall(NUMBERS[name], *args) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
{attempt}
""")


async def test_namespaces_of_its_own(kernel: Kernel) -> None:
    inside = json.loads(
        await kernel.run(
            "import os, json; print(json.dumps({n: os.readlink(f'/proc/self/ns/{n}') "
            "for n in ('pid', 'mnt', 'net', 'uts', 'ipc', 'cgroup')}))"
        )
    )
    for name, link in inside.items():
        assert link != os.readlink(f"/proc/self/ns/{name}"), name


async def test_the_host_name_is_kept(client: AgentClient, kernel: Kernel) -> None:
    code = "import socket; print(socket.gethostname(), socket.gethostbyname(socket.gethostname()))"
    name = await kernel.run(code)
    saved = await client.save(kernel.id, SaveRequest())
    clone_id = str(uuid.uuid4())
    clone = await client.start_kernel(
        StartRequest(kernel_id=clone_id, checkpoint=saved.id, detached=True)
    )
    async with connected(clone) as channels:
        assert await run(channels, code) == name
    await client.delete_kernel(clone_id)
    await client.delete_checkpoint(saved.id)


async def test_the_host_s_environment_stays_outside(kernel: Kernel) -> None:
    names = set(
        json.loads(await kernel.run("import os, json; print(json.dumps(list(os.environ)))"))
    )
    assert "JUPYTER_CONNECTION_FILE" in names
    assert "JUPYTER_CHECKPOINTS_SOCKET" not in names
    assert "PYTEST_CURRENT_TEST" not in names


# -- addresses ---------------------------------------------------------------------------------


async def test_kernels_do_not_reach_each_other(client: AgentClient, kernel: Kernel) -> None:
    other = await client.start_kernel(python_kernel(str(uuid.uuid4()), detached=True))
    assert other.connection is not None and kernel.model.connection is not None
    assert other.connection.ip != kernel.model.connection.ip
    with pytest.raises(CellError, match=r"TimeoutError|timed out|OSError"):
        await kernel.run(
            "import socket; socket.create_connection("
            f"({other.connection.ip!r}, {other.connection.shell_port}), timeout=1)"
        )
    await client.delete_kernel(other.id)


# -- limits ------------------------------------------------------------------------------------


async def test_limits(client: AgentClient) -> None:
    limits = Limits(memory=300 * 2**20, cpus=0.5, pids=64)
    kernel_id = str(uuid.uuid4())
    model = await client.start_kernel(python_kernel(kernel_id, detached=True, limits=limits))
    assert model.limits == limits
    async with connected(model) as channels:
        saved = await client.save(kernel_id, SaveRequest())
        model = await client.resume(kernel_id, saved.id)  # limits hold after a resume too
        assert model.limits == limits
        with pytest.raises(CellError, match=r"BlockingIOError|RuntimeError"):
            await run(
                channels,
                "import subprocess\nchildren = []\nfor i in range(100):\n"
                "    children.append(subprocess.Popen(['sleep', '600']))",
            )
        await run(channels, "for child in children: child.kill(); child.wait()")
        channels.execute("data = bytearray(600 << 20)")
        ended = await _state(client, kernel_id, "exited")
    assert ended.exit_code == 128 + signal.SIGKILL
    await client.delete_kernel(kernel_id)
    await client.delete_checkpoint(saved.id)


# -- signals, processes, output ----------------------------------------------------------------


async def test_an_interrupt_reaches_the_whole_cell(client: AgentClient, kernel: Kernel) -> None:
    """The cell and the program it waits for, as with a kernel on the host."""
    # Python may lose sight of a program that is interrupted while it is being started, here as
    # on the host. So it runs before "now", and wherever the cell is after that, it is in `try`.
    # Nothing but the interrupt ends the program, for which the cell waits to the end.
    cell = kernel.channels.execute(
        "import subprocess\ntry:\n    program = subprocess.Popen(['sleep', '600'])\n"
        "    print('now', flush=True)\n    program.wait()\n"
        "except KeyboardInterrupt:\n    program.wait()\n    print('interrupted')"
    )
    await _printed(kernel.channels, cell, "now")
    await client.signal(kernel.id, signal.SIGINT)
    assert (await finish(kernel.channels, cell)).split()[-1] == "interrupted"


async def _printed(channels: AsyncKernelClient, cell: str, wanted: str) -> None:
    async with asyncio.timeout(30):
        while True:
            message = await channels.get_iopub_msg()
            text = message["content"].get("text", "")
            if message["parent_header"].get("msg_id") == cell and wanted in text:
                return


async def test_zombies_are_reaped(kernel: Kernel) -> None:
    """A grandchild whose parent has gone is PID 1's to reap."""
    code = """
import subprocess, time, pathlib
subprocess.run(['sh', '-c', 'sleep 0.05 & exit'])
def zombie(stat):
    try:
        return stat.read_text().rsplit(')', 1)[1].split()[0] == 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return False
def sleeping():
    return subprocess.run(['pgrep', 'sleep'], capture_output=True).returncode == 0
end = time.monotonic() + 20
while sleeping() or any(map(zombie, pathlib.Path('/proc').glob('[0-9]*/stat'))):
    assert time.monotonic() < end
print('reaped')
"""
    assert await kernel.run(code) == "reaped"
    assert await kernel.run("import os; print(os.getpid() != 1)") == "True"


@pytest.mark.parametrize(
    ("code", "expected"), [("os._exit(7)", 7), ("os.kill(os.getpid(), 9)", 137)]
)
async def test_its_end_is_told_at_once(
    client: AgentClient, kernel: Kernel, code: str, expected: int
) -> None:
    kernel.channels.execute(f"import os; {code}")
    model = await _state(client, kernel.id, "exited")
    assert model.exit_code == expected
    with pytest.raises(Conflict):
        await client.save(kernel.id, SaveRequest())


async def test_a_restart_is_fresh_at_the_same_address(client: AgentClient, kernel: Kernel) -> None:
    await kernel.run("x = 1; open('/root/left', 'w').write('x')")
    await client.signal(kernel.id, signal.SIGKILL)
    await _state(client, kernel.id, "exited")
    again = await client.start_kernel(python_kernel(kernel.id, detached=True))
    assert again.connection == kernel.model.connection
    await kernel.channels.wait_for_ready(timeout=30)
    look = "import os; print('x' in globals(), os.path.exists('/root/left'))"
    assert await kernel.run(look) == "False False"


async def _logged(client: AgentClient, kernel_id: str, text: str) -> None:
    async with asyncio.timeout(30), aclosing(client.follow_log(kernel_id, lines=20)) as parts:
        seen = ""
        async for part in parts:
            seen += part
            if text in seen:
                return


async def test_output_is_logged_and_rotated(client: AgentClient, kernel: Kernel) -> None:
    await kernel.run("import os; os.write(1, b'to stdout\\n'); os.write(2, b'to stderr\\n')")

    await _logged(client, kernel.id, "to stdout")
    await _logged(client, kernel.id, "to stderr")
    await kernel.run(
        "line = b'y' * 1023 + b'\\n'\nfor i in range(45 << 10): os.write(1, line)\n"
        "os.write(1, b'the end\\n')"
    )
    await _logged(client, kernel.id, "the end")
    whole = await client.log_tail(kernel.id, lines=10**9)
    assert 20 * 2**20 < len(whole) <= 31 * 2**20


async def test_output_goes_on_after_a_resume(client: AgentClient, kernel: Kernel) -> None:
    saved = await client.save(kernel.id, SaveRequest(stop=True))
    await client.resume(kernel.id, saved.id)
    await kernel.run("import os; os.write(1, b'after the resume\\n')")
    await _logged(client, kernel.id, "after the resume")
    await client.delete_checkpoint(saved.id)


async def test_a_failed_start_says_why(client: AgentClient) -> None:
    kernel_id = str(uuid.uuid4())
    with pytest.raises(StartFailed, match="no-such-directory") as caught:
        await client.start_kernel(
            StartRequest(kernel_id=kernel_id, argv=["x"], key=KEY, cwd="/proc/no-such-directory")
        )
    assert caught.value.hint
    with pytest.raises(NotFound):
        await client.kernel(kernel_id)


async def test_files_of_a_mount(client: AgentClient, notebooks: Path) -> None:
    """A mounted directory is the host's, at the path it was asked for."""
    (notebooks / "given").write_text("from the host")
    (notebooks / "given").chmod(0o644)
    kernel_id = str(uuid.uuid4())
    mount = Mount(source=str(notebooks), target="/data/notebooks")
    fixed = Mount(source=str(notebooks), target="/data/fixed", read_only=True)
    request = python_kernel(kernel_id, detached=True, mounts=[mount, fixed])
    model = await client.start_kernel(request)
    async with connected(model) as channels:
        assert await run(channels, "print(open('/data/notebooks/given').read())") == "from the host"
        await run(channels, "open('/data/notebooks/made', 'w').write('inside')")
        with pytest.raises(CellError, match="Read-only"):
            await run(channels, "open('/data/fixed/made', 'w')")
    assert (notebooks / "made").read_text() == "inside"
    await client.delete_kernel(kernel_id)


# -- the agent's own end -----------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_kernels_outlive_the_agent(private_agent: Agent, how: int) -> None:
    agent = private_agent
    kernel_id = str(uuid.uuid4())
    async with AgentClient(agent.socket) as client:
        model = await client.start_kernel(python_kernel(kernel_id, detached=True))
    async with connected(model) as channels:
        await run(channels, "x = 1")
        agent.end(how)
        assert await run(channels, "print(x)") == "1"
        agent.start()
        async with AgentClient(agent.socket) as client:
            again = await client.kernel(kernel_id)
            assert (again.state, again.pid, again.connection) == (
                "running",
                model.pid,
                model.connection,
            )
            # It is as much the new agent's as it was the old one's.
            saved = await client.save(kernel_id, SaveRequest())
            await run(channels, "x = 2")
            await client.resume(kernel_id, saved.id)
            assert await run(channels, "print(x)") == "1"
            channels.execute("import os; os._exit(3)")
            assert (await _state(client, kernel_id, "exited")).exit_code == 3
            await client.delete_kernel(kernel_id)
            await client.delete_checkpoint(saved.id)


async def test_an_end_while_no_agent_looks(private_agent: Agent) -> None:
    agent = private_agent
    kernel_id = str(uuid.uuid4())
    async with AgentClient(agent.socket) as client:
        model = await client.start_kernel(python_kernel(kernel_id, detached=True))
    async with connected(model) as channels:
        agent.end(signal.SIGKILL)
        channels.execute("import os; os._exit(5)")
        wait_until(lambda: not agent.processes(), what="the kernel's end")
    agent.start()
    async with AgentClient(agent.socket) as client:
        ended = await client.kernel(kernel_id)
        assert (ended.state, ended.exit_code) == ("exited", 5)
        await client.delete_kernel(kernel_id)


async def test_nothing_of_an_agent_outlives_it(private_agent: Agent) -> None:
    agent = private_agent
    async with AgentClient(agent.socket) as client:
        model = await client.start_kernel(python_kernel(str(uuid.uuid4()), detached=True))
        assert model.pid is not None
        group = Cgroup.of(model.pid)
        assert group.directories() and agent.interfaces() and agent.namespaces()
        # Docker has groups of its own, which are there before the agent and after it.
        embedded = (await client.status()).engine == "embedded"
        assert bool(agent.cgroup_roots()) == embedded
        await client.delete_kernel(model.id)
    agent.end()
    wait_until(lambda: not group.directories(), what="the end of the container's group")
    assert not agent.cgroup_roots()
    assert not agent.interfaces()
    assert not agent.namespaces()
    agent.start()


async def test_a_stopped_kernel_outlives_the_agent(private_agent: Agent) -> None:
    agent = private_agent
    kernel_id = str(uuid.uuid4())
    async with AgentClient(agent.socket) as client:
        model = await client.start_kernel(python_kernel(kernel_id, detached=True))
        async with connected(model) as channels:
            await run(channels, "x = 1")
            saved = await client.save(kernel_id, SaveRequest(stop=True))
            agent.restart(signal.SIGKILL)
            assert (await client.kernel(kernel_id)).state == "stopped"
            await client.resume(kernel_id, saved.id)
            assert await run(channels, "print(x)", 10) == "1"
        await client.delete_kernel(kernel_id)
        await client.delete_checkpoint(saved.id)


@pytest.fixture
def strict_agent(default_image: None) -> Iterator[Agent]:
    with running_agent("--AgentApp.orphan_grace=1") as agent:
        yield agent


async def test_orphans_are_ended(strict_agent: Agent) -> None:
    """A kernel whose client was killed does not run for ever; an attached one does."""
    agent = strict_agent
    async with AgentClient(agent.socket) as client:
        kept, orphan = str(uuid.uuid4()), str(uuid.uuid4())
        await client.start_kernel(python_kernel(kept))
        attached = client.attach(kept)
        assert (await anext(attached)).state == "running"
        await client.start_kernel(python_kernel(orphan))
        await asyncio.to_thread(
            wait_until, lambda: agent.kernel_directories() == [kept], what="the orphan's end"
        )
        await attached.aclose()
        await asyncio.to_thread(
            wait_until, lambda: agent.kernel_directories() == [], what="the other's end"
        )


@pytest.fixture
def impatient_agent(default_image: None) -> Iterator[Agent]:
    with running_agent("--AgentApp.criu_timeout=2") as agent:
        yield agent


async def test_what_would_never_end_is_ended(impatient_agent: Agent, tmp_path: Path) -> None:
    """A clone waits for a file lock that the original holds: CRIU alone would wait for ever."""
    agent = impatient_agent
    kernel_id, clone_id = str(uuid.uuid4()), str(uuid.uuid4())
    mounts = [Mount(source=str(tmp_path), target="/data")]
    async with AgentClient(agent.socket) as client:
        model = await client.start_kernel(python_kernel(kernel_id, detached=True, mounts=mounts))
        async with connected(model) as channels:
            await run(
                channels,
                "import fcntl; f = open('/data/locked', 'w'); fcntl.flock(f, fcntl.LOCK_EX)",
            )
            saved = await client.save(kernel_id, SaveRequest())
            with pytest.raises(OperationTimeout):
                await client.start_kernel(
                    StartRequest(kernel_id=clone_id, checkpoint=saved.id, mounts=mounts)
                )
            with pytest.raises(NotFound):
                await client.kernel(clone_id)
            assert await run(channels, "f.write('still mine'); f.flush(); print(1)") == "1"
            # Once the original has let go of it, the same checkpoint resumes.
            await run(channels, "f.truncate(0); f.seek(0); fcntl.flock(f, fcntl.LOCK_UN)")
            clone = await client.start_kernel(
                StartRequest(kernel_id=clone_id, checkpoint=saved.id, mounts=mounts, detached=True)
            )
            async with connected(clone) as others:
                assert await run(others, "print(f.name)") == "/data/locked"
        for kernel in (kernel_id, clone_id):
            await client.delete_kernel(kernel)
        await client.delete_checkpoint(saved.id)


async def test_two_agents_cannot_share_a_directory(private_agent: Agent) -> None:
    second = Agent(private_agent.layout.run_dir.parent)
    with pytest.raises(AssertionError, match="Another agent serves"):
        second.start()
    assert private_agent.process is not None and private_agent.process.poll() is None


async def test_addresses_in_use_are_refused(private_agent: Agent, tmp_path: Path) -> None:
    subnet = next(o for o in private_agent.options if o.startswith("--subnet")).partition("=")[2]
    kernel_id = str(uuid.uuid4())
    async with AgentClient(private_agent.socket) as client:
        await client.start_kernel(python_kernel(kernel_id, detached=True))
        with pytest.raises(AssertionError, match="in use on this host"):
            Agent(tmp_path, subnet=subnet).start()
        await client.delete_kernel(kernel_id)
