"""Who may use the agent, and what bad input gets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import stat
import traceback
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.errors import (
    CheckpointsError,
    Conflict,
    InvalidRequest,
    NotAllowed,
    NotFound,
)
from jupyter_checkpoints.models import Mount, SaveRequest, StartRequest

from .agents import Agent
from .conftest import running_agent
from .kernels import KEY, python_kernel

pytestmark = pytest.mark.anyio

NOBODY = 65534


def _as_user(uid: int, work: Callable[[], Awaitable[str]]) -> str:
    """Run ``work`` in a child process that is an ordinary user from its first line on."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)

            async def main() -> str:
                return await work()

            os.write(writer, asyncio.run(main()).encode())
        except BaseException:
            os.write(writer, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        said = file.read().decode()
    os.waitpid(child, 0)
    return said


async def _ask_for_everything(socket: Path) -> str:
    answers = []
    async with AgentClient(socket) as client:
        for question in (
            client.status(),
            client.kernels(),
            client.checkpoints(),
            client.images(),
            client.start_kernel(python_kernel(str(uuid.uuid4()))),
            client.save("kernel", SaveRequest()),
            client.delete_kernel("kernel"),
        ):
            try:
                answers.append({"code": repr(await question)})
            except CheckpointsError as error:
                answers.append(error.to_json())
    return json.dumps(answers)


def test_who_is_in_no_group_does_not_get_to_the_socket(agent: Agent) -> None:
    answers = json.loads(_as_user(NOBODY, lambda: _ask_for_everything(agent.socket)))
    assert [answer["code"] for answer in answers] == ["NotAllowed"] * 7
    assert all("administrator" in answer["hint"] for answer in answers)


def test_who_gets_to_the_socket_is_not_served_for_that(default_image: None) -> None:
    """With an error that says what an administrator can do, whatever is asked for."""
    with running_agent("--AgentApp.socket_mode=0666") as agent:
        assert stat.S_IMODE(agent.socket.stat().st_mode) == 0o666
        answers = json.loads(_as_user(NOBODY, lambda: _ask_for_everything(agent.socket)))
        assert [answer["code"] for answer in answers] == ["NotAllowed"] * 7
        for answer in answers:
            assert str(NOBODY) in answer["message"]
            assert "administrator" in answer["hint"]
        noted = agent.audit()
        assert len(noted) == 7
        assert {line["uid"] for line in noted} == {NOBODY}
        assert {line["outcome"] for line in noted} == {"refused"}


def test_files_are_private(agent: Agent) -> None:
    """Checkpoints hold secrets: nobody else gets past the first directory."""
    for directory in (
        agent.layout.data_dir,
        agent.layout.store,
        agent.layout.pool,
        agent.layout.kernels,
        agent.layout.runc_root,
    ):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700, directory

    async def look() -> str:
        try:
            os.listdir(agent.layout.kernels)
        except PermissionError:
            return "refused"
        return "read"

    assert _as_user(NOBODY, look) == "refused"


def test_the_socket_is_open_to_root_and_a_group(agent: Agent) -> None:
    found = agent.socket.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o660, 0)
    assert stat.S_IMODE(agent.layout.run_dir.stat().st_mode) == 0o711


BAD_IDS = ["..", "a/b", "a b", "x" * 65, "-x", "a\nb", "ab\n", "a\0b", "é", "%2e%2e", "."]


@pytest.mark.parametrize("bad", BAD_IDS)
async def test_bad_ids(client: AgentClient, bad: str) -> None:
    """A clear 4xx, and nothing is looked for on disk."""
    with pytest.raises((InvalidRequest, NotFound)):
        await client.kernel(bad)
    with pytest.raises((InvalidRequest, NotFound)):
        await client.checkpoint(bad)
    with pytest.raises(InvalidRequest):
        await client.start_kernel(StartRequest(kernel_id=bad, argv=["true"], key=KEY))


@pytest.mark.parametrize(
    "mount",
    [
        Mount(source="/tmp", target="/"),
        Mount(source="/tmp", target="/proc"),
        Mount(source="/tmp", target="/proc/sys"),
        Mount(source="/tmp", target="/etc"),
        Mount(source="/tmp", target="/run/jupyter"),
        Mount(source="/tmp", target="relative"),
        Mount(source="/tmp", target="/a/../b"),
        Mount(source="tmp", target="/data"),
        Mount(source="/no/such/directory", target="/data"),
        Mount(source="/tmp", target="/data/"),
        Mount(source="/tmp", target="/da\0ta"),
    ],
)
async def test_bad_mounts(client: AgentClient, agent: Agent, mount: Mount) -> None:
    kernel_id = str(uuid.uuid4())
    with pytest.raises(InvalidRequest):
        await client.start_kernel(python_kernel(kernel_id, mounts=[mount]))
    assert not agent.layout.kernel(kernel_id).exists()


@pytest.mark.parametrize(
    "env", [{"A=B": "x"}, {"": "x"}, {"A": "x\0y"}, {"A": "x" * 65000, "B": "y" * 65537}]
)
async def test_bad_environments(client: AgentClient, env: dict[str, str]) -> None:
    request = StartRequest(kernel_id=str(uuid.uuid4()), argv=["true"], key=KEY, env=env)
    with pytest.raises(InvalidRequest):
        await client.start_kernel(request)


async def test_bad_requests(client: AgentClient) -> None:
    with pytest.raises(InvalidRequest):
        await client.start_kernel(StartRequest(kernel_id=str(uuid.uuid4()), argv=[], key=KEY))
    with pytest.raises(InvalidRequest):
        await client.start_kernel(StartRequest(kernel_id=str(uuid.uuid4()), argv=["true"]))
    with pytest.raises(NotFound):
        request = StartRequest(kernel_id=str(uuid.uuid4()), argv=["true"], key=KEY, image="none")
        await client.start_kernel(request)
    with pytest.raises(NotFound):
        await client.save("no-such-kernel", SaveRequest())
    with pytest.raises(NotFound):
        await client.resume("no-such-kernel", "no-such-checkpoint")
    with pytest.raises(NotFound):
        request = StartRequest(kernel_id=str(uuid.uuid4()), checkpoint="no-such-checkpoint")
        await client.start_kernel(request)
    with pytest.raises(NotFound):
        await client.delete_checkpoint("no-such-checkpoint")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/kernels", b"{"),
        ("/v1/kernels", b"[]"),
        ("/v1/kernels", b'{"kernel_id": 5}'),
        ("/v1/kernels", b'{"kernel_id": "a", "no_such_field": 1}'),
        ("/v1/kernels/a/signal", b'{"signum": 65}'),
        ("/v1/kernels/a/signal", b'{"signum": "kill"}'),
        ("/v1/kernels/a/checkpoints", b'{"trigger": "whim"}'),
        ("/v1/kernels/a/resume", b"{}"),
        ("/v1/images", b'{"name": "a"}'),
    ],
)
async def test_bad_json(agent: Agent, path: str, body: bytes) -> None:
    transport = httpx.AsyncHTTPTransport(uds=str(agent.socket))
    async with httpx.AsyncClient(transport=transport, base_url="http://agent") as http:
        answer = await http.post(path, content=body)
    assert answer.status_code == 400
    said = answer.json()
    assert said["code"] == "InvalidRequest" and said["message"] and said["reason"] is not None


async def test_huge_bodies_and_unknown_paths(agent: Agent) -> None:
    transport = httpx.AsyncHTTPTransport(uds=str(agent.socket))
    async with httpx.AsyncClient(transport=transport, base_url="http://agent") as http:
        assert (await http.get("/v1/nothing")).status_code == 404
        assert (await http.get("/")).json()["code"] == "NotFound"
        assert (await http.put("/v1/kernels")).status_code == 405
        # It is not read to its end: the agent answers and hangs up, which may cut its answer off.
        with contextlib.suppress(httpx.ReadError, httpx.WriteError):
            answer = await http.post("/v1/kernels", content=b" " * (5 * 2**20))
            assert answer.status_code in (400, 413)
        assert (await http.get("/v1/status")).status_code == 200


async def test_ids_that_are_taken(client: AgentClient) -> None:
    kernel_id = str(uuid.uuid4())
    await client.start_kernel(python_kernel(kernel_id))
    with pytest.raises(Conflict):
        await client.start_kernel(python_kernel(kernel_id))
    await client.delete_kernel(kernel_id)


def test_only_root_runs_an_agent(agent: Agent) -> None:
    """Said plainly, not by a permission error from somewhere inside."""
    from jupyter_checkpoints.agent.app import AgentApp

    async def try_it() -> str:
        app = AgentApp(run_dir_path="/nowhere/run", data_dir_path="/nowhere/data")
        try:
            app.start()
        except SystemExit as end:
            return str(end.code)
        return "started"

    assert _as_user(NOBODY, try_it) == str(NotAllowed.exit_code)
    assert not Path("/nowhere").exists()
