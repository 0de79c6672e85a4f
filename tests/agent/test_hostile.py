"""What a hostile user may try on the host, on images, on others and on root; and does not get.

Each attempt ends in a clear error and in a line of the audit log. What a kernel's root may do in
its own container, and outside of it, is :mod:`.test_userns`' matter.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.errors import (
    CheckpointsError,
    Conflict,
    NotAllowed,
    QuotaExceeded,
)
from jupyter_checkpoints.models import (
    CopyRequest,
    Limits,
    Mount,
    SaveRequest,
    StartRequest,
)

from ..users import User, Users
from .agents import IMAGES, Agent
from .attacks import ask, refusals
from .cells import CellError
from .conftest import running_agent
from .kernels import KEY, python_kernel
from .launch import Launch

pytestmark = pytest.mark.anyio

GIB = 2**30


@pytest.fixture(scope="module")
def shared(default_image: None, users: Users) -> Iterator[Agent]:
    """An agent that serves both users, and lets them have little."""
    with running_agent(
        f"--AgentApp.allowed_groups={users.group}",
        "--AgentApp.allowed_images=python3",
        f"--AgentApp.mem_limit={GIB}",
        "--AgentApp.cpu_limit=2",
        "--AgentApp.pids_limit=500",
        "--AgentApp.user_kernels=3",
        f"--AgentApp.user_memory={2 * GIB}",
        f"--AgentApp.user_storage={GIB}",
    ) as agent:
        yield agent


@asynccontextmanager
async def _launch(agent: Agent, user: User) -> AsyncIterator[Launch]:
    async with AgentClient(agent.socket, user=user.name) as client:
        launch = Launch(client)
        try:
            yield launch
        finally:
            await launch.end()


@pytest.fixture
async def alice(shared: Agent, users: Users) -> AsyncIterator[Launch]:
    async with _launch(shared, users.alice) as launch:
        yield launch


@pytest.fixture
async def bob(shared: Agent, users: Users) -> AsyncIterator[Launch]:
    async with _launch(shared, users.bob) as launch:
        yield launch


def _small(user: User, **changes: Any) -> StartRequest:
    """A kernel with the user's home at ``/home``."""
    request = python_kernel(
        str(uuid.uuid4()),
        detached=True,
        mounts=[Mount(source=str(user.home), target="/home/me")],
        limits=Limits(memory=GIB // 2),
    )
    return StartRequest(
        **{**{f: getattr(request, f) for f in request.__struct_fields__}, **changes}
    )


def _shows(source: object, target: str = "/data", command: str = "true") -> dict[str, Any]:
    return {
        "kernel_id": str(uuid.uuid4()),
        "argv": ["sh", "-c", command],
        "key": KEY,
        "mounts": [{"source": str(source), "target": target}],
    }


# -- the host's files --------------------------------------------------------------------------


def test_directories_that_the_user_cannot_read(shared: Agent, users: Users) -> None:
    before = len(refusals(shared, users.alice))
    link = users.alice.home / "link"
    link.symlink_to("/root")
    paths = [
        *("/root", link, users.bob.home, "/etc/shadow", "/proc/1/root", "/proc/self/root"),
        *(shared.layout.data_dir, shared.layout.store, shared.layout.kernels, IMAGES),
        *(shared.socket, "/dev/mem", "/dev/null", "/nonexistent"),
    ]
    answers = ask(users.alice, shared, *[("POST", "/v1/kernels", _shows(p)) for p in paths])
    for path, answer in zip(paths, answers, strict=True):
        assert answer.code in ("NotAllowed", "InvalidRequest"), (path, answer)
        assert "cannot be mounted" in answer.body["message"], (path, answer)
    link.unlink()
    assert len(refusals(shared, users.alice)) == before + len(paths)
    assert shared.kernel_directories() == []


_SWAP = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
print(flush=True)
while os.getppid() != 1:
    if libc.renameat2(-100, os.fsencode(sys.argv[1]), -100, os.fsencode(sys.argv[2]), 2):
        raise OSError(ctypes.get_errno(), "renameat2")
"""


async def test_a_link_swapped_during_the_start_shows_nothing(shared: Agent, users: Users) -> None:
    """A directory and a link to root's change places while containers start with it."""
    secret = Path(tempfile.mkdtemp(prefix="jupyter-checkpoints-test-"))
    (secret / "secret of root").touch()
    own, link = users.alice.home / "own", users.alice.home / "other"
    own.mkdir()
    os.chown(own, users.alice.uid, users.alice.gid)
    (own / "mark").touch()
    link.symlink_to(secret)
    swapping = users.alice.popen(
        *(users.alice.python, "-c", _SWAP, str(own), str(link)), stdout=subprocess.PIPE
    )
    assert swapping.stdout is not None
    swapping.stdout.readline()
    seen = {"own": 0, "refused": 0}
    try:
        async with AgentClient(shared.socket, user=users.alice.name) as client:
            for _ in range(30):
                wanted = _shows(own, command="ls /data; sleep 30")
                request = StartRequest(
                    kernel_id=wanted["kernel_id"],
                    argv=wanted["argv"],
                    key=KEY,
                    mounts=[Mount(source=str(own), target="/data")],
                    limits=Limits(memory=GIB // 2),
                )
                try:
                    kernel = await client.start_kernel(request)
                except NotAllowed:
                    seen["refused"] += 1
                    continue
                seen["own"] += 1
                while not (said := await client.log_tail(kernel.id)):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                assert said.split("\n")[0] == "mark"
                await client.delete_kernel(kernel.id)
    finally:
        swapping.kill()
        swapping.communicate()
        shutil.rmtree(secret)
        for path in (own, link):
            path.unlink() if path.is_symlink() else shutil.rmtree(path)
    assert all(seen.values()), f"there was no race: {seen}"


async def test_nothing_with_privilege_is_left_on_the_host(
    shared: Agent, users: Users, alice: Launch
) -> None:
    """Root inside makes set-uid files and device nodes; on the host they are the user's, or not."""
    kernel = await alice.start(_small(users.alice))
    await kernel.run("import os, shutil; shutil.copy('/bin/cat', '/home/me/cat')")
    await kernel.run("os.chown('/home/me/cat', 0, 0); os.chmod('/home/me/cat', 0o6755)")
    await kernel.run("shutil.copy('/bin/cat', '/cat'); os.chmod('/cat', 0o6755)")
    for device in ("S_IFBLK", "S_IFCHR"):
        for place in ("/home/me/node", "/node"):
            with pytest.raises(CellError, match="PermissionError"):
                await kernel.run(
                    f"import stat; os.mknod('{place}', 0o666 | stat.{device}, os.makedev(8, 0))"
                )
    found = list(users.alice.home.rglob("*"))
    assert users.alice.home / "cat" in found
    for path in found:
        facts = path.lstat()
        assert facts.st_uid == users.alice.uid, path
        assert stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode) or path.is_symlink()
    # It has the rights of who made it, and nobody else of the host may run it in the layer.
    code = "import subprocess, sys; print(subprocess.run(sys.argv[1:]).returncode)"
    users.alice.home.chmod(0o711)
    assert users.bob.run(code, str(users.alice.home / "cat"), "/etc/shadow") == "1"
    users.alice.home.chmod(0o700)
    for directory in (shared.layout.data_dir, shared.layout.kernels, shared.layout.runc_root):
        listing = f"import os; os.listdir({str(directory)!r})"
        with pytest.raises(AssertionError, match="PermissionError"):
            users.bob.run(listing)
        with pytest.raises(AssertionError, match="PermissionError"):
            users.alice.run(listing)


async def test_images_and_checkpoints_are_not_written(
    shared: Agent, users: Users, alice: Launch, bob: Launch
) -> None:
    kernel = await alice.start(_small(users.alice))
    await kernel.run(
        "open('/usr/bin/planted', 'w').write('x'); open('/etc/passwd', 'a').write('#')"
    )
    saved = await kernel.save()
    other = await bob.start(_small(users.bob))
    assert await other.run("import os; print(os.path.exists('/usr/bin/planted'))") == "False"
    assert await other.run("print('#' in open('/etc/passwd').read())") == "False"
    digest = kernel.model.image_digest
    assert not (IMAGES / digest / "rootfs/usr/bin/planted").exists()
    for path in (shared.layout.store / saved.id / "manifest.json", IMAGES / digest / "image.json"):
        for user in (users.alice, users.bob):
            with pytest.raises(AssertionError, match="PermissionError"):
                user.run(f"open({str(path)!r}, 'a')")
    assert (await alice.agent.verify(saved.id)).ok


# -- others' -----------------------------------------------------------------------------------


async def test_what_is_anothers_does_not_exist(shared: Agent, users: Users, alice: Launch) -> None:
    """For every route with an id: 404, word for word as for what is not there at all."""
    kernel = await alice.start(_small(users.alice))
    saved = await kernel.save()
    before = len(refusals(shared, users.bob))

    def wishes(kernel_id: str, checkpoint_id: str) -> list[tuple[str, str, Any]]:
        return [
            ("GET", f"/v1/kernels/{kernel_id}", None),
            ("DELETE", f"/v1/kernels/{kernel_id}", None),
            ("PATCH", f"/v1/kernels/{kernel_id}", {"runtime": "mine"}),
            ("POST", f"/v1/kernels/{kernel_id}/signal", {"signum": 9}),
            ("GET", f"/v1/kernels/{kernel_id}/attach", None),
            ("GET", f"/v1/kernels/{kernel_id}/logs", None),
            ("GET", f"/v1/kernels/{kernel_id}/logs?follow=1", None),
            ("POST", f"/v1/kernels/{kernel_id}/checkpoints", {}),
            ("POST", f"/v1/kernels/{kernel_id}/resume", {"checkpoint": checkpoint_id}),
            ("GET", f"/v1/checkpoints/{checkpoint_id}", None),
            ("DELETE", f"/v1/checkpoints/{checkpoint_id}", None),
            ("PATCH", f"/v1/checkpoints/{checkpoint_id}", {"name": "mine"}),
            ("POST", f"/v1/checkpoints/{checkpoint_id}/copy", {"runtime": "mine"}),
            ("GET", f"/v1/checkpoints/{checkpoint_id}/preflight", None),
            ("POST", f"/v1/checkpoints/{checkpoint_id}/verify", None),
            ("GET", f"/v1/checkpoints/{checkpoint_id}/archive", None),
            ("PUT", f"/v1/checkpoints/{checkpoint_id}/shares/*", None),
            ("DELETE", f"/v1/checkpoints/{checkpoint_id}/shares/*", None),
            ("POST", "/v1/kernels", {"kernel_id": "new", "checkpoint": checkpoint_id}),
        ]

    real = wishes(kernel.model.id, saved.id)
    nowhere = str(uuid.uuid4())
    answers = ask(users.bob, shared, *real)
    for wish, answer, absent in zip(
        real, answers, ask(users.bob, shared, *wishes(nowhere, nowhere)), strict=True
    ):
        assert answer.status == 404, (wish, answer)
        for known in (kernel.model.id, saved.id):
            answer.text = answer.text.replace(known, nowhere)
        assert (answer.text, answer.status) == (absent.text, absent.status), wish
    noted = refusals(shared, users.bob)[before:]
    assert len([line for line in noted if line.get("owners") == [users.alice.uid]]) == len(real)
    lists = [f"/v1/{noun}" for noun in ("kernels", "checkpoints", "checkpoints?shared=1")]
    for answer in ask(users.bob, shared, *[("GET", path, None) for path in lists]):
        assert answer.body == []
    (usage,) = ask(users.bob, shared, ("GET", "/v1/usage", None))
    assert usage.body["total"] == 0
    assert await kernel.run("print('alive')") == "alive"


async def test_a_kernel_id_that_is_anothers_cannot_be_had(
    shared: Agent, users: Users, alice: Launch
) -> None:
    kernel = await alice.start(_small(users.alice))
    wish = ("POST", "/v1/kernels", {"kernel_id": kernel.model.id, "argv": ["true"], "key": KEY})
    (answer,) = ask(users.bob, shared, wish)
    assert answer.code == "Conflict"
    assert "taken" in answer.body["message"] and "running" not in answer.text
    assert await kernel.run("print('alive')") == "alive"


async def test_memory_and_logs_of_others_cannot_be_read(
    shared: Agent, users: Users, alice: Launch
) -> None:
    """Neither the files, nor the processes."""
    kernel = await alice.start(_small(users.alice))
    await kernel.run("import os; os.write(1, b'a line for the log')")
    saved = await kernel.save()
    images = shared.layout.store / saved.id
    log = shared.layout.kernel(kernel.model.id) / "log"
    for path in (images, images / "images", log, shared.layout.kernel(kernel.model.id)):
        with pytest.raises(AssertionError, match="PermissionError"):
            users.bob.run(f"import os; os.stat({str(path)!r}); os.listdir({str(path)!r})")
    for name in ("mem", "environ", "root", "fd"):
        place = f"/proc/{kernel.model.pid}/{name}"
        look = f"import os; os.listdir({place!r})" if name in ("root", "fd") else f"open({place!r})"
        with pytest.raises(AssertionError, match="PermissionError"):
            users.bob.run(look)


_REACH = """
import socket, sys
reached = []
for port in range(20001, 20006):
    try:
        socket.create_connection((sys.argv[1], port), timeout=2).close()
        reached.append(port)
    except OSError:
        pass
print(reached)
"""


async def test_another_users_kernel_is_out_of_reach(
    users: Users, alice: Launch, bob: Launch
) -> None:
    """From his kernels, and from his programs on the host."""
    kernel, other = await alice.start(_small(users.alice)), await bob.start(_small(users.bob))
    assert kernel.model.connection is not None
    address = kernel.model.connection.ip
    everything = str(list(range(20001, 20006)))
    assert users.alice.run(_REACH, address) == everything
    assert users.bob.run(_REACH, address) == "[]"
    code = _REACH.replace("sys.argv[1]", repr(address))
    assert await other.run(code) == "[]"
    assert await kernel.run("print('alive')") == "alive"


# -- more than one had -------------------------------------------------------------------------


async def test_a_resume_gives_no_more_than_there_was(
    shared: Agent, users: Users, alice: Launch
) -> None:
    """No other user, no capabilities, no further mounts; whatever the request says."""
    kernel = await alice.start(_small(users.alice))
    capabilities = "print([l for l in open('/proc/self/status') if l.startswith('Cap')])"
    had = await kernel.run(capabilities)
    saved = await kernel.save()
    await kernel.end()
    mounts = [{"source": str(users.alice.home), "target": "/home/me"}]
    for more in (
        {"uid": 0},
        {"identity": {"uid": 0, "gid": 0}},
        {"capabilities": ["CAP_SYS_ADMIN"]},
        {"devices": ["/dev/mem"]},
        {"privileged": True},
        {"annotations": {"org.criu.config": "/tmp/x"}},
        {"mounts": [*mounts, {"source": "/root", "target": "/data"}]},
        {"mounts": [*mounts, {"source": "/", "target": "/"}]},
        {"mounts": [*mounts, {"source": "/tmp", "target": "/proc"}]},
        {"limits": {"memory": 2 * GIB}},
        {"limits": {"pids": 5000}},
        {"limits": {"cpus": 64}},
    ):
        wish = {"kernel_id": str(uuid.uuid4()), "checkpoint": saved.id, "mounts": mounts, **more}
        before = len(refusals(shared, users.alice))
        (answer,) = ask(users.alice, shared, ("POST", "/v1/kernels", wish))
        assert answer.code in ("InvalidRequest", "NotAllowed"), (more, answer)
        assert len(refusals(shared, users.alice)) == before + 1, more
    second = Mount(source="/tmp", target="/data")
    request = StartRequest(
        kernel_id=str(uuid.uuid4()),
        checkpoint=saved.id,
        mounts=[*saved.mounts, second],
        limits=saved.limits,
        detached=True,
    )
    resumed = await alice.start(request)
    assert await resumed.run("import os; print(os.path.exists('/data'))") == "False"
    assert await resumed.run(capabilities) == had
    assert resumed.model.uid == users.alice.uid


async def test_root_resumes_a_users_checkpoint_as_the_user(
    shared: Agent, users: Users, alice: Launch
) -> None:
    """Whoever resumes it: processes of a user's making never get root's rights."""
    kernel = await alice.start(_small(users.alice))
    saved = await kernel.save()
    await kernel.end()
    async with AgentClient(shared.socket) as client:
        root = Launch(client)
        try:
            resumed = await root.resume(saved)
            assert resumed.model.uid == users.alice.uid
            pid = resumed.model.pid
            assert os.stat(f"/proc/{pid}").st_uid == users.alice.uid
            own = await root.start()
            with pytest.raises(Conflict, match=str(users.alice.uid)):
                await client.resume(own.model.id, saved.id)
        finally:
            await root.end()
    line = next(line for line in reversed(shared.audit()) if line["action"] == "POST /v1/kernels")
    assert (line["uid"], line["owners"], line["outcome"]) == (0, [users.alice.uid], "done")


async def test_roots_checkpoint_does_not_become_a_users_process(
    shared: Agent, users: Users, alice: Launch
) -> None:
    """A share of root's is of processes that had root's rights: it can be copied, not resumed."""
    async with AgentClient(shared.socket) as client:
        root = Launch(client)
        try:
            saved = await (await root.start()).save()
            await client.share(saved.id, users.alice.name)
            copy = await alice.agent.copy_checkpoint(saved.id, CopyRequest(runtime="r"))
            with pytest.raises(CheckpointsError):
                await alice.resume(copy)
            await alice.agent.delete_checkpoint(copy.id)
        finally:
            await root.end()


async def test_archives_that_were_changed(shared: Agent, users: Users, alice: Launch) -> None:
    """Another user, other mounts, another command: nothing of it is believed."""
    kernel = await alice.start(_small(users.alice))
    saved = await kernel.save()
    content = b"".join([part.data async for part in alice.agent.export(saved.id)])

    async def parts(data: bytes) -> AsyncIterator[bytes]:
        yield data

    for old, new in (
        (f'"uid":{users.alice.uid}', '"uid":0'.ljust(len(f'"uid":{users.alice.uid}'))),
        ('"target":"/home/me"', '"target":"/home/be"'),
        ("ipykernel_launcher", "ipykernel_lbuncher"),
    ):
        assert old.encode() in content
        changed = content.replace(old.encode(), new.encode())
        with pytest.raises(CheckpointsError):
            await alice.agent.import_archive(parts(changed), len(changed))
        with pytest.raises(NotAllowed, match="root"):
            await alice.agent.import_archive(parts(changed), len(changed), trusted=True)
    assert {c.id for c in await alice.agent.checkpoints()} == {saved.id}


# -- quotas ------------------------------------------------------------------------------------


async def test_kernels_and_their_memory_are_bounded(
    shared: Agent, users: Users, alice: Launch, bob: Launch
) -> None:
    quarter = Limits(memory=GIB // 4)
    before = len(refusals(shared, users.bob))
    kernels = [await alice.start(_small(users.alice, limits=quarter)) for _ in range(3)]
    with pytest.raises(QuotaExceeded, match="3 kernels, and may have 3"):
        await alice.start(_small(users.alice, limits=quarter))
    # One that sleeps does not count, and does not wake past the quota either.
    saved = await kernels[0].save(SaveRequest(stop=True))
    await alice.start(_small(users.alice, limits=quarter))
    with pytest.raises(QuotaExceeded):
        await alice.agent.resume(kernels[0].model.id, saved.id)
    # The other user has quotas of his own.
    whole = [await bob.start(_small(users.bob, limits=Limits())) for _ in range(2)]
    assert [kernel.model.limits.memory for kernel in whole] == [GIB, GIB]
    wish = {"kernel_id": str(uuid.uuid4()), "argv": ["true"], "key": KEY}
    (answer,) = ask(users.bob, shared, ("POST", "/v1/kernels", wish))
    assert answer.code == "QuotaExceeded"
    assert "2.0 GiB" in answer.body["message"] and answer.body["hint"]
    noted = refusals(shared, users.bob)[before:]
    assert [line["action"] for line in noted] == ["POST /v1/kernels"]


async def test_no_kernel_gets_more_than_a_kernel_may(shared: Agent, users: Users) -> None:
    for limits in ({"memory": GIB + 1}, {"cpus": 2.1}, {"pids": 501}):
        wish = {"kernel_id": str(uuid.uuid4()), "argv": ["true"], "key": KEY, "limits": limits}
        (answer,) = ask(users.alice, shared, ("POST", "/v1/kernels", wish))
        assert answer.code == "NotAllowed", (limits, answer)


async def test_images_that_are_not_for_users(shared: Agent, users: Users) -> None:
    from jupyter_checkpoints.agent.images import ImageStore

    others = {i.name for i in ImageStore(IMAGES).list()} - {"python3", ""}
    (answer,) = ask(users.alice, shared, ("GET", "/v1/images", None))
    assert {image["name"] for image in answer.body} == {"python3"}
    for name in others:
        wish = {"kernel_id": str(uuid.uuid4()), "argv": ["true"], "key": KEY, "image": name}
        (answer,) = ask(users.alice, shared, ("POST", "/v1/kernels", wish))
        assert answer.code == "NotAllowed", answer
        assert "allowed_images" in answer.body["hint"]


async def test_stored_bytes_are_bounded(shared: Agent, users: Users, alice: Launch) -> None:
    """A save that would not fit freezes nothing, and the kernel goes on."""
    request = _small(users.alice, limits=Limits(memory=GIB))
    kernel = await alice.start(request)
    await kernel.run("import os; held = os.urandom(600 * 2**20)")
    first = await kernel.save()
    before = len(refusals(shared, users.alice))
    save: tuple[str, str, Any] = ("POST", f"/v1/kernels/{kernel.model.id}/checkpoints", {})
    (refused,) = ask(users.alice, shared, save)
    used = (await alice.agent.usage()).total
    assert refused.code == "QuotaExceeded", (refused, used)
    assert "1.0 GiB" in refused.body["message"]
    assert "prune" in refused.body["hint"]
    assert len(refusals(shared, users.alice)) > before
    assert used <= GIB
    assert await kernel.run("print(len(held))") == str(600 * 2**20)
    for checkpoint in await alice.agent.checkpoints():
        await alice.agent.delete_checkpoint(checkpoint.id)
    assert first.id not in {c.id for c in await alice.agent.checkpoints()}
    again = await kernel.save()
    assert again.memory_size > 600 * 2**20
