"""An ordinary user's kernel: root inside, the user outside, and nothing more."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.errors import PreflightBlocked, SaveFailed
from jupyter_checkpoints.models import CopyRequest, Mount, SaveRequest

from ..users import Users
from .agents import Agent
from .callers import OTHER, ROOT, USER, directory_of, for_a_user
from .cells import PATIENCE, CellError
from .conftest import running_agent
from .kernels import python_kernel
from .launch import Kernel, Launch
from .launch import launch as launch

pytestmark = [pytest.mark.anyio, for_a_user]


@pytest.fixture
async def kernel(launch: Launch, notebooks: Path) -> AsyncIterator[Kernel]:
    """A kernel with a directory of its caller's at ``/shown``."""
    mount = Mount(source=str(notebooks), target="/shown")
    yield await launch.start(python_kernel(str(uuid4()), mounts=[mount], detached=True))


async def test_it_is_the_user_outside(kernel: Kernel) -> None:
    assert await kernel.run("import os; print(os.getuid(), os.getgid())") == "0 0"
    assert kernel.model.pid is not None
    status = await asyncio.to_thread(Path(f"/proc/{kernel.model.pid}/status").read_text)
    facts = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    assert facts["Uid"].split() == facts["Gid"].split() == [str(USER)] * 4


async def test_what_it_writes_is_the_users(kernel: Kernel, notebooks: Path) -> None:
    """Through a save, and in the second kernel, too."""
    await kernel.run("import os; open('/shown/before', 'w').close(); f = open('/shown/open', 'w')")
    saved = await kernel.save(SaveRequest(stop=True))
    await kernel.agent.resume(kernel.model.id, saved.id)
    await kernel.run(
        "f.write('text'); f.close(); os.mkdir('/shown/after'); os.chmod('/shown', 0o755)"
    )
    for name in ("before", "open", "after", "."):
        found = (notebooks / name).stat()
        assert (found.st_uid, found.st_gid) == (USER, USER), name
    # Of another user inside it is nobody's outside.
    await kernel.run(
        "import subprocess\n"
        "subprocess.run(['touch', '/shown/other'], check=True, user=33, group=33) "
        "if os.chmod('/shown', 0o777) is None else 0"
    )
    assert (notebooks / "other").stat().st_uid > 2**30


async def test_it_may_what_the_users_groups_may(agent: Agent, users: Users) -> None:
    """The directory of a project is shared by a group; also after a resume."""
    async with AgentClient(agent.socket, user=users.alice.name) as alice:
        launch = Launch(alice)
        with directory_of(ROOT) as project:
            os.chown(project, ROOT, users.alice.groups[0])
            project.chmod(0o2770)
            mount = Mount(source=str(project), target="/project")
            try:
                kernel = await launch.start(
                    python_kernel(str(uuid4()), mounts=[mount], detached=True)
                )
                await kernel.run("import os; open('/project/before', 'w').close()")
                saved = await kernel.save(SaveRequest(stop=True))
                await alice.resume(kernel.model.id, saved.id)
                await kernel.run("open('/project/after', 'w').close()")
                found = {path.name: path.stat() for path in project.iterdir()}
                assert found.keys() == {"before", "after"}
                owners = {(info.st_uid, info.st_gid) for info in found.values()}
                assert owners == {(users.alice.uid, users.alice.groups[0])}
            finally:
                await launch.end()


async def test_what_the_user_may_not_it_may_not(kernel: Kernel, notebooks: Path) -> None:
    secret = notebooks / "of root"
    secret.write_text("secret")
    secret.chmod(0o600)
    readable = notebooks / "for all"
    readable.write_text("text")
    readable.chmod(0o644)
    assert await kernel.run("print(open('/shown/for all').read())") == "text"
    for attempt in (
        "open('/shown/of root').read()",
        "open('/shown/for all', 'a')",
        "os.chown('/shown/of root', 0, 0)",
        "os.chmod('/shown/of root', 0o777)",
        "os.setxattr('/shown/of root', 'user.x', b'x')",
    ):
        with pytest.raises(CellError, match="PermissionError"):
            await kernel.run("import os; " + attempt)
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "attempt",
    [
        "os.mknod('/shown/null', 0o666 | stat.S_IFCHR, os.makedev(1, 3))",
        "os.mknod('/root/null', 0o666 | stat.S_IFCHR, os.makedev(1, 3))",
        "os.mknod('/shown/disk', 0o666 | stat.S_IFBLK, os.makedev(254, 0))",
        "os.chown('/shown', 70000, 0)",
        "os.setuid(70000)",
        "subprocess.run(['unshare', '--user', 'true'], check=True)",
        "subprocess.run(['unshare', '--user', '--map-root-user', '--net', 'true'], check=True)",
        "libc.syscall(56, 0x10000011, 0, 0, 0, 0) >= 0 or fail()",
        "libc.syscall(250, 1, None) >= 0 or fail()",
        "libc.syscall(425, 8, ctypes.create_string_buffer(200)) >= 0 or fail()",
        "libc.syscall(323, 1) >= 0 or fail()",
        "libc.mount(b'none', b'/mnt', b'tmpfs', 0, None) == 0 or fail()",
        "libc.mount(b'none', b'/shown', None, 0x20 | 0x1000, None) == 0 or fail()",
        "open('/proc/sys/user/max_user_namespaces', 'w').write('100')",
        "os.write(os.open('/proc/1/uid_map', os.O_WRONLY), b'0 0 1')",
        "new = struct.pack('16sHH4s8s', b'eth0', socket.AF_INET, 0, b'0123', b'')\n"
        "fcntl.ioctl(socket.socket(), 0x8916, new)",
        "open('/proc/sys/net/ipv4/ip_forward', 'w').write('1')",
    ],
)
async def test_what_root_inside_may_not(kernel: Kernel, notebooks: Path, attempt: str) -> None:
    with pytest.raises(
        CellError, match=r"PermissionError|Invalid argument|Read-only|CalledProcess"
    ):
        await kernel.run(f"""
import ctypes, fcntl, os, socket, stat, struct, subprocess
libc = ctypes.CDLL(None, use_errno=True)
def fail():
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
{attempt}
""")
    assert os.listdir(notebooks) == []


async def test_a_set_uid_program_is_the_users(kernel: Kernel, notebooks: Path) -> None:
    """Made by root inside, run by another user outside: it is the caller's or nobody's."""
    await kernel.run(
        "import os, shutil\n"
        "for name, owner in (('mine', 0), ('other', 33)):\n"
        "    path = f'/shown/{name}'\n"
        "    shutil.copy('/usr/bin/id', path)\n"
        "    os.chown(path, owner, owner)\n"
        "    os.chmod(path, 0o6755)"
    )
    owners = {(notebooks / name).stat().st_uid for name in ("mine", "other")}
    assert USER in owners and all(uid == USER or uid > 2**30 for uid in owners)
    # In the container's own files they cannot be reached from outside at all: see below.
    capability = (
        "import os; os.setxattr('/shown/mine', 'security.capability', "
        "bytes.fromhex('0100000202000000000000000000000000000000'))"
    )
    await kernel.run(capability)
    value = os.getxattr(notebooks / "mine", "security.capability")
    # Of version 3, and good in namespaces of that root only.
    assert value[3] == 3 and int.from_bytes(value[20:24], "little") == USER


async def test_nobody_outside_gets_at_the_containers_files(agent: Agent, kernel: Kernel) -> None:
    await kernel.run("open('/root/file', 'w').close()")
    stages = list(agent.layout.stages.iterdir())
    assert stages and agent.layout.stages.stat().st_mode & 0o777 == 0o711
    program = (
        "import os, sys\n"
        f"os.setresuid({USER}, {USER}, {USER})\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n        os.stat(path + '/rootfs/usr'); print('reached')\n"
        "    except PermissionError:\n        print('refused')\n"
    )
    command = [sys.executable, "-c", program, *map(str, stages)]
    said = await asyncio.to_thread(subprocess.check_output, command, text=True)
    assert said.split() == ["refused"] * len(stages)
    paths = [agent.layout.kernels, agent.layout.pool, agent.layout.store]
    assert all(p.stat().st_mode & 0o077 == 0 and p.stat().st_uid == 0 for p in paths)


def _wheel(directory: Path) -> Path:
    path = directory / "little-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("little.py", "value = 42\n")
        meta = "Metadata-Version: 2.1\nName: little\nVersion: 1.0\n"
        wheel.writestr("little-1.0.dist-info/METADATA", meta)
        kind = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr("little-1.0.dist-info/WHEEL", kind)
        wheel.writestr("little-1.0.dist-info/RECORD", "")
    path.chmod(0o644)
    return path


async def test_it_installs_into_its_own_files(kernel: Kernel, notebooks: Path) -> None:
    """Python packages, and what packages of the distribution do; the image stays as it is."""
    await asyncio.to_thread(_wheel, notebooks)
    await kernel.run("%pip install --no-index --quiet /shown/little-1.0-py3-none-any.whl")
    await kernel.run(
        "import os, shutil, subprocess\n"
        "os.chown('/etc/issue', 33, 42); os.remove('/etc/debian_version')\n"
        "shutil.copy('/usr/bin/id', '/usr/local/bin/id33')\n"
        "os.chown('/usr/local/bin/id33', 33, 33); os.chmod('/usr/local/bin/id33', 0o6755)\n"
        "subprocess.run(['useradd', '--create-home', 'somebody'], check=True)"
    )
    clone = await Launch(kernel.agent).resume(await kernel.save())
    try:
        for side in (kernel, clone):
            assert await side.run("import little; print(little.value)") == "42"
            assert await side.run("s = os.stat('/etc/issue'); print(s.st_uid, s.st_gid)") == "33 42"
            assert await side.run("print(os.path.exists('/etc/debian_version'))") == "False"
            home = (
                "print(subprocess.check_output(['stat', '-c', '%U', '/home/somebody'], text=True))"
            )
            assert await side.run(home) == "somebody"
            mode = "print(oct(os.stat('/usr/local/bin/id33').st_mode), os.getuid())"
            assert await side.run(mode) == "0o106755 0"
    finally:
        await clone.end()


async def test_another_user_goes_on_from_a_copy(
    agent: Agent, kernel: Kernel, notebooks: Path
) -> None:
    """As himself: what the first kernel may, his may not, and the other way round."""
    await kernel.run("import os; x = 'saved'; f = open('/root/open', 'w'); os.mkdir('/shown/mine')")
    saved = await kernel.save()
    await kernel.agent.share(saved.id, OTHER)
    async with AgentClient(agent.socket, user=OTHER) as heir:
        with directory_of(OTHER) as home:
            mount = Mount(source=str(home), target="/shown")
            request = CopyRequest(runtime=str(uuid4()), mounts=[mount])
            copy = await heir.copy_checkpoint(saved.id, request)
            launch = Launch(heir)
            try:
                clone = await launch.resume(copy)
                code = "f.write(x); f.flush(); open('/shown/new', 'w').close(); print(os.getuid())"
                assert await clone.run(code) == "0"
                assert (home / "new").stat().st_uid == OTHER
                assert clone.model.pid is not None
                assert os.stat(f"/proc/{clone.model.pid}").st_uid == OTHER
                assert os.listdir(notebooks) == ["mine"]
                # And so it is with what the copy is saved to.
                again = await launch.resume(await clone.save())
                assert await again.run("print(open('/root/open').read())") == "saved"
            finally:
                await launch.end()


async def test_no_user_goes_on_with_roots_processes(agent: Agent) -> None:
    """Files he can be given; processes that were root of the host he cannot."""
    async with AgentClient(agent.socket) as root, AgentClient(agent.socket, user=USER) as user:
        launches = Launch(root), Launch(user)
        copies = []
        try:
            kernel = await launches[0].start()
            await kernel.run("open('/root/file', 'w').write('shared')")
            for request in (SaveRequest(), SaveRequest(mode="filesystem")):
                saved = await kernel.save(request)
                await root.share(saved.id, USER)
                copy = CopyRequest(runtime=str(uuid4()))
                copies.append(await user.copy_checkpoint(saved.id, copy))
            with pytest.raises(PreflightBlocked) as refused:
                await launches[1].resume(copies[0])
            assert [f["code"] for f in refused.value.findings] == ["rights"]
            resumed = await launches[1].resume(copies[1])
            await resumed.channels.wait_for_ready(timeout=PATIENCE)
            assert await resumed.run("print(open('/root/file').read())") == "shared"
            assert resumed.model.pid is not None
            assert os.stat(f"/proc/{resumed.model.pid}").st_uid == USER
        finally:
            for launch in launches:
                await launch.end()


async def test_root_goes_on_as_the_user(agent: Agent, kernel: Kernel) -> None:
    saved = await kernel.save()
    async with AgentClient(agent.socket) as root:
        launch = Launch(root)
        try:
            resumed = await launch.resume(saved)
            assert resumed.model.pid is not None
            assert os.stat(f"/proc/{resumed.model.pid}").st_uid == USER
        finally:
            for made in launch.kernels:
                await made.end()


async def test_the_image_is_nobodys(kernel: Kernel) -> None:
    """What a kernel changes is in its layer; on the disk it has the ids that it has inside."""
    await kernel.run(
        "open('/usr/bin/new', 'w').close(); import os; os.chown('/usr/bin/new', 33, 0)"
    )
    before = await kernel.agent.images()
    saved = await kernel.save()
    again = await kernel.agent.images()
    assert before == again and saved.image_digest in {image.digest for image in again}


# -- a host that cannot map ids ----------------------------------------------------------------


@pytest.fixture
def plain_agent(default_image: None) -> Iterator[Agent]:
    with running_agent("--AgentApp.user_namespaces=False") as agent:
        yield agent


def _may_dump_others() -> bool:
    """Whether CRIU can read the limits of another user's processes: CAP_SYS_RESOURCE."""
    status = Path("/proc/self/status").read_text()
    return bool(int(status.split("CapEff:")[1].split()[0], 16) >> 24 & 1)


async def test_without_user_namespaces(plain_agent: Agent, notebooks: Path) -> None:
    """The kernel is the user inside too, with nothing of root's, and the agent says so."""
    mount = Mount(source=str(notebooks), target="/shown")
    async with AgentClient(plain_agent.socket, user=USER) as client:
        findings = (await client.status()).problems
        assert [f.code for f in findings] == ["no-user-namespaces"]
        launch = Launch(client)
        try:
            kernel = await launch.start(python_kernel(str(uuid4()), mounts=[mount], detached=True))
            assert (
                await kernel.run("import os; print(os.getuid(), os.getgid())") == f"{USER} {USER}"
            )
            assert "CapEff:\t0000000000000000" in await kernel.run(
                "print(open('/proc/self/status').read())"
            )
            await kernel.run("open('/shown/new', 'w').close(); x = 42")
            assert (notebooks / "new").stat().st_uid == USER
            for attempt in ("open('/usr/bin/new', 'w')", "os.chown('/shown/new', 0, 0)"):
                with pytest.raises(CellError, match="PermissionError"):
                    await kernel.run(attempt)
            if _may_dump_others():
                saved = await kernel.save(SaveRequest(stop=True))
                await client.resume(kernel.model.id, saved.id)
            else:
                with pytest.raises(SaveFailed, match="CAP_SYS_RESOURCE"):
                    await kernel.save()
            assert await kernel.run("print(x)") == "42"
        finally:
            await launch.end()
