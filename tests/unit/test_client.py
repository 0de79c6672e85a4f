"""The client's side of the protocol, against a server that speaks it on a real socket."""

from __future__ import annotations

import asyncio
import json
import os
import socket as sockets
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from blockbuster import blockbuster_ctx
from tornado import web
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_unix_socket

from jupyter_checkpoints import autostart, layout
from jupyter_checkpoints.client import AgentClient, connect
from jupyter_checkpoints.errors import (
    AgentUnavailable,
    CheckpointsError,
    Conflict,
    NotAllowed,
    NotFound,
    SaveFailed,
)
from jupyter_checkpoints.models import (
    ConnectionInfo,
    Event,
    KernelModel,
    SaveRequest,
    StartRequest,
)
from jupyter_checkpoints.watch import KernelWatch

pytestmark = pytest.mark.anyio

KERNEL = KernelModel(
    id="one",
    state="running",
    image="python3",
    image_digest="sha256:00",
    argv=["python"],
    mode="process",
    created="2026-11-24T12:00:00Z",
    uid=0,
    connection=ConnectionInfo(
        ip="10.0.0.2",
        shell_port=1,
        iopub_port=2,
        stdin_port=3,
        control_port=4,
        hb_port=5,
        key="k",
    ),
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def never_blocking() -> Iterator[None]:
    with blockbuster_ctx("jupyter_checkpoints"):
        yield


class Agent:
    """What the server was asked, and how it shall answer."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.requests: list[tuple[str, str, Any]] = []
        self.lines: list[bytes] = []
        self.more = asyncio.Event()
        self.status = 200
        self.body: Any = None
        self.server: HTTPServer | None = None

    def listen(self) -> None:
        self.server = HTTPServer(web.Application([(r"/.*", _Handler, {"agent": self})]))
        self.server.add_socket(bind_unix_socket(str(self.socket)))

    async def stop(self) -> None:
        if self.server is not None:
            self.server.stop()
            await self.server.close_all_connections()
            self.server = None


class _Handler(web.RequestHandler):
    def initialize(self, agent: Agent) -> None:
        self.agent = agent

    async def prepare(self) -> None:
        body = json.loads(self.request.body) if self.request.body else None
        self.agent.requests.append((self.request.method or "", self.request.uri or "", body))
        path = self.request.path
        self.set_status(self.agent.status)
        if self.agent.status >= 400:
            self.finish(msgspec.json.encode(self.agent.body))
        elif path.endswith("/attach"):
            await self._attach()
        elif self.agent.lines:
            for line in self.agent.lines:
                self.write(line + b"\n")
                await self.flush()
            self.finish()
        elif self.agent.body is not None:
            self.finish(msgspec.json.encode(self.agent.body))
        else:
            self.set_status(204)
            self.finish()

    async def _attach(self) -> None:
        """Every line there is, then those that come; ``b""`` in the list ends the answer."""
        sent = 0
        while True:
            while sent < len(self.agent.lines):
                line = self.agent.lines[sent]
                sent += 1
                if line == b"END":
                    self.finish()
                    return
                self.write(line + b"\n")
                await self.flush()
            self.agent.more.clear()
            await self.agent.more.wait()


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    agent = Agent(tmp_path / "agent.sock")
    agent.listen()
    yield agent
    await agent.stop()


def event(kind: str, **fields: Any) -> bytes:
    return msgspec.json.encode({"event": kind, **fields})


async def test_models_come_back_typed(agent: Agent) -> None:
    agent.body = [KERNEL]
    async with AgentClient(agent.socket) as client:
        assert await client.kernels() == [KERNEL]
    assert agent.requests == [("GET", "/v1/kernels", None)]


async def test_names_are_quoted(agent: Agent) -> None:
    async with AgentClient(agent.socket) as client:
        await client.remove_image("jupyter/scipy:1")
        await client.delete_kernel("../status")
    assert [uri for _, uri, _ in agent.requests] == [
        "/v1/images/jupyter%2Fscipy%3A1",
        "/v1/kernels/..%2Fstatus",
    ]


async def test_only_given_filters_are_sent(agent: Agent) -> None:
    agent.body = []
    async with AgentClient(agent.socket) as client:
        assert await client.checkpoints() == []
        assert await client.checkpoints(kernel="one") == []
    assert [uri for _, uri, _ in agent.requests] == [
        "/v1/checkpoints",
        "/v1/checkpoints?kernel=one",
    ]


async def test_a_stream_tells_its_progress_and_then_its_result(agent: Agent) -> None:
    agent.lines = [
        event("progress", stage="restore", done=1, total=2),
        b"",
        event("result", result=KERNEL),
    ]
    seen: list[Event] = []
    async with AgentClient(agent.socket) as client:
        request = StartRequest(kernel_id="one", argv=["python"])
        assert await client.start_kernel(request, seen.append) == KERNEL
    assert [(e.stage, e.done, e.total) for e in seen] == [("restore", 1, 2)]
    method, uri, body = agent.requests[0]
    assert (method, uri) == ("POST", "/v1/kernels")
    assert msgspec.convert(body, StartRequest) == request


async def test_an_error_in_a_stream_is_raised_as_the_class_it_was(agent: Agent) -> None:
    error = SaveFailed("The kernel could not be saved.", reason="io_uring", hint="Close it.")
    agent.lines = [event("progress", stage="dump"), event("error", error=error.to_json())]
    async with AgentClient(agent.socket) as client:
        with pytest.raises(SaveFailed) as raised:
            await client.save("one", SaveRequest(name="x"))
    assert raised.value.to_json() == error.to_json()


async def test_an_error_before_a_stream_is_raised_too(agent: Agent) -> None:
    error = Conflict("The kernel is being saved.")
    agent.status, agent.body = error.http_status, error.to_json()
    async with AgentClient(agent.socket) as client:
        with pytest.raises(Conflict, match="is being saved"):
            await client.save("one")


async def test_a_stream_that_ends_early_is_an_error(agent: Agent) -> None:
    agent.lines = [event("progress", stage="dump")]
    async with AgentClient(agent.socket) as client:
        with pytest.raises(AgentUnavailable, match="went away"):
            await client.save("one")


async def test_an_answer_of_another_version_is_an_error_with_a_hint(agent: Agent) -> None:
    agent.body = {"no": "status"}
    async with AgentClient(agent.socket) as client:
        with pytest.raises(CheckpointsError, match="restart the agent"):
            await client.status()


async def test_an_error_that_is_not_ours(agent: Agent) -> None:
    agent.status, agent.body = 502, "bad gateway"
    async with AgentClient(agent.socket) as client:
        with pytest.raises(CheckpointsError, match="HTTP 502"):
            await client.status()


async def test_attached_until_deleted(agent: Agent) -> None:
    exited = msgspec.structs.replace(KERNEL, state="exited", exit_code=3)
    agent.lines = [msgspec.json.encode(KERNEL), b"", msgspec.json.encode(exited), b"END"]
    async with AgentClient(agent.socket) as client, aclosing(client.attach("one")) as models:
        assert [model.state async for model in models] == ["running", "exited"]


@pytest.mark.parametrize("listening", [False, True])
async def test_nobody_answers_and_nothing_is_started_elsewhere(
    tmp_path: Path, listening: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "agent.sock"
    if listening:  # a socket file whose process is gone
        with sockets.socket(sockets.AF_UNIX) as dead:
            dead.bind(str(path))
    monkeypatch.setenv(layout.SOCKET_ENV, str(path))
    monkeypatch.setattr(autostart, "_spawn", lambda: pytest.fail("an agent was started"))
    async with connect() as client:
        with pytest.raises(AgentUnavailable) as raised:
            await client.status()
    assert layout.SOCKET_ENV in raised.value.hint
    assert raised.value.reason


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_a_socket_closed_to_the_user_is_a_refusal(tmp_path: Path) -> None:
    async def ask(path: Path) -> str:
        async with AgentClient(path) as client:
            with pytest.raises(NotAllowed) as raised:
                await client.status()
            return raised.value.hint

    tmp_path.chmod(0o700)
    child = os.fork()
    if child == 0:
        try:
            os.setuid(65534)
            assert "administrator" in anyio.run(ask, tmp_path / "agent.sock")
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


async def test_an_agent_that_cannot_start_is_told_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root starts agents")
    package = tmp_path / "path" / "jupyter_checkpoints"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "agent.py").write_text("raise SystemExit('no loop devices here')")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.delenv(layout.SOCKET_ENV, raising=False)
    monkeypatch.setattr(layout, "RUN_DIR", tmp_path / "run")
    monkeypatch.setattr(layout, "DATA_DIR", tmp_path / "data")
    monkeypatch.setattr(autostart, "_GRACE", 0.1)
    async with connect() as client:
        with pytest.raises(AgentUnavailable, match="no loop devices here"):
            await client.status()
    assert (tmp_path / "data" / "agent.log").stat().st_mode & 0o777 == 0o600


async def test_many_clients_at_once_get_the_one_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each starts an agent; the lock lets one live, as the real one does."""
    if os.geteuid() != 0:
        pytest.skip("only root starts agents")
    package = tmp_path / "path" / "jupyter_checkpoints"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "agent.py").write_text(_SMALL_AGENT.format(run=str(tmp_path / "run")))
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.delenv(layout.SOCKET_ENV, raising=False)
    monkeypatch.setattr(layout, "RUN_DIR", tmp_path / "run")
    monkeypatch.setattr(layout, "DATA_DIR", tmp_path / "data")
    pids = set()

    async def ask() -> None:
        async with connect() as client:
            pids.add((await client.status()).pid)

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(ask)
    (pid,) = pids
    os.kill(pid, 15)


_SMALL_AGENT = """
import asyncio, fcntl, os, sys
from tornado import web
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_unix_socket

run = {run!r}
os.makedirs(run, exist_ok=True)
lock = open(run + "/lock", "w")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(4)  # another agent runs

import time
time.sleep(1.5)  # longer than a client waits for one that has failed

class Handler(web.RequestHandler):
    def get(self):
        self.finish(dict(
            version="0", pid=os.getpid(), uid=0, engine="", pool="", criu_version="",
            runc_version="", kernels=0, checkpoints=0, problems=[]))

async def main():
    HTTPServer(web.Application([("/v1/status", Handler)])).add_socket(
        bind_unix_socket(run + "/agent.sock"))
    await asyncio.Event().wait()

asyncio.run(main())
"""


class Log:
    """Collects what a watch says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def info(self, message: str, *args: object) -> None:
        self.said.append(message % args)

    warning = info


def is_alive(watch: KernelWatch) -> bool:
    return watch.exit_code is None


async def until(condition: Any) -> None:
    with anyio.fail_after(10):
        while not condition():  # noqa: ASYNC110  (told by another thread)
            await anyio.sleep(0.01)


async def test_a_watch_follows_through_an_agents_restart(agent: Agent) -> None:
    log = Log()
    watch = KernelWatch(agent.socket, KERNEL, log)  # type: ignore[arg-type]
    await anyio.to_thread.run_sync(watch.open)
    try:
        await until(lambda: agent.requests)
        assert is_alive(watch)

        stopped = msgspec.structs.replace(KERNEL, state="stopped")
        agent.lines.append(msgspec.json.encode(stopped))
        agent.more.set()
        await until(lambda: watch.state == "stopped")
        assert is_alive(watch)

        await agent.stop()
        await until(lambda: any("Lost sight" in line for line in log.said))
        assert is_alive(watch)

        agent.socket.unlink(missing_ok=True)
        exited = msgspec.structs.replace(KERNEL, state="exited", exit_code=137)
        agent.lines[:] = [msgspec.json.encode(exited)]
        agent.listen()
        await until(lambda: watch.state == "exited")
        assert watch.exit_code == 137
        assert any("answers again" in line for line in log.said)
    finally:
        await anyio.to_thread.run_sync(watch.close)


async def test_a_deleted_kernel_has_ended(agent: Agent) -> None:
    error = NotFound("No such kernel.")
    agent.status, agent.body = 404, error.to_json()
    watch = KernelWatch(agent.socket, KERNEL, Log())  # type: ignore[arg-type]
    await anyio.to_thread.run_sync(watch.open)
    try:
        await until(lambda: watch.state == "exited")
        assert watch.exit_code == 1
    finally:
        await anyio.to_thread.run_sync(watch.close)
