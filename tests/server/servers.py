"""A Jupyter Server of its own process, spoken to as a browser does."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import nbformat
from jupyter_server.services.kernels.connection.base import (
    deserialize_msg_from_ws_v1,
    serialize_msg_to_ws_v1,
)
from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from jupyter_checkpoints.layout import SOCKET_ENV

from ..users import User

PYTHON = "checkpoints-python3"
#: Seconds for anything a test waits for; generous, because machines that test are busy.
PATIENCE = 90.0
_V1 = "v1.kernel.websocket.jupyter.org"


class Server:
    """One user's server: directories that stay, processes that come and go.

    Its processes are ``user``'s, or root's.
    """

    def __init__(
        self, home: Path, prefix: Path, agent_socket: Path, user: User | None = None
    ) -> None:
        self.home = home
        self.user = user
        self.root = home / "notebooks"
        self._make(self.root)
        self.log = home / "server.log"
        self.token = secrets.token_hex(16)
        self.process: subprocess.Popen[bytes] | None = None
        self.environment = {
            **(os.environ if user is None else user.environment),
            SOCKET_ENV: str(agent_socket),
            "JUPYTER_PATH": str(prefix / "share" / "jupyter"),
            "JUPYTER_DATA_DIR": str(home / "data"),
            "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
            "JUPYTER_CONFIG_DIR": str(home / "config"),
            "IPYTHONDIR": str(home / "ipython"),
        }
        self._make(home / "config")

    @property
    def data(self) -> Path:
        return self.home / "data"

    async def start(self, *options: str, env: dict[str, str] | None = None) -> Jupyter:
        """Start a process; returns when it answers."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [
            # Tests may run where a shell has their interrupts ignored: in its background.
            *("env", "--default-signal=INT"),
            *(self.user.python if self.user else sys.executable, "-m", "jupyter_server"),
            *(["--no-browser"] if self.user else ["--no-browser", "--allow-root"]),
            *(f"--port={port}", "--ServerApp.port_retries=0"),
            *(f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={self.root}"),
            *options,
        ]
        with self.log.open("ab") as output:
            child: dict[str, Any] = {
                "cwd": self.root,
                "env": {**self.environment, **(env or {})},
                "stdin": subprocess.DEVNULL,
                "stdout": output,
                "stderr": output,
            }
            process = (
                subprocess.Popen(command, **child)  # noqa: ASYNC220  (a millisecond)
                if self.user is None
                else self.user.popen(*command, **child)
            )
        self.process = process
        jupyter = Jupyter(f"127.0.0.1:{port}", self.token, self)
        with anyio.fail_after(PATIENCE):
            while True:
                try:
                    await jupyter.get("/api")
                    return jupyter
                except httpx.ConnectError:
                    assert process.poll() is None, self.log.read_text()
                    await anyio.sleep(0.05)

    async def stop(self, signum: int = signal.SIGTERM) -> str:
        """Stop the process; returns what the log says."""
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(signum)
        await anyio.to_thread.run_sync(process.wait, PATIENCE)
        return self.log.read_text()

    def kill(self) -> None:
        """End the process, whatever it does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _make(self, directory: Path) -> None:
        directory.mkdir()
        self._give(directory)

    def _give(self, path: Path) -> None:
        if self.user is not None:
            os.chown(path, self.user.uid, self.user.gid)

    # -- files --------------------------------------------------------------------------------

    def write(
        self, name: str, *cells: str, kernel: str = PYTHON, settings: Any = ..., tags: Any = ()
    ) -> str:
        """Make a notebook that has runtime checkpoints switched on, if not said otherwise."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_notebook(path, *cells, kernel=kernel, settings=settings, tags=tags)
        self._give(path)
        return name

    def metadata(self, name: str) -> dict[str, Any]:
        """What a notebook's file says of runtime checkpoints."""
        content = json.loads((self.root / name).read_text())
        value: dict[str, Any] = content["metadata"].get("runtime_checkpoints", {})
        return value

    async def logged(self, text: str) -> None:
        """Wait until the log contains ``text``."""
        with anyio.fail_after(PATIENCE):
            while text not in self.log.read_text():  # noqa: ASYNC110  (another process's)
                await anyio.sleep(0.05)


def write_notebook(
    path: Path, *cells: str, kernel: str = PYTHON, settings: Any = ..., tags: Any = ()
) -> None:
    """Write a notebook that has runtime checkpoints switched on, if not said otherwise."""
    made: nbformat.NotebookNode = nbformat.v4.new_notebook()  # type: ignore[no-untyped-call]
    made.metadata["kernelspec"] = {"name": kernel, "display_name": kernel}
    if settings is ...:
        settings = {"enabled": True, "autosave": True}
    if settings is not None:
        made.metadata["runtime_checkpoints"] = settings
    new_cell: Any = nbformat.v4.new_code_cell
    made.cells = [new_cell(source, metadata={"tags": list(tags)}) for source in cells]
    nbformat.write(made, path)  # type: ignore[no-untyped-call]


class Jupyter:
    """One process of a server."""

    def __init__(self, address: str, token: str, server: Server | None = None) -> None:
        """``address``: with a port, and a path if it is not at the root of it."""
        self._server = server
        self.address = address
        self.token = token

    @property
    def server(self) -> Server:
        """Whose process it is."""
        assert self._server is not None
        return self._server

    async def request(
        self, method: str, path: str, body: Any = None, token: str | None = None
    ) -> httpx.Response:
        """Whatever it answers."""
        async with httpx.AsyncClient(
            base_url=f"http://{self.address}", timeout=PATIENCE, trust_env=False
        ) as http:
            return await http.request(
                method,
                path,
                json=body,
                headers={"Authorization": f"token {self.token if token is None else token}"},
            )

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """What it answers, which must be no error."""
        response = await self.request(method, path, body)
        assert response.is_success, f"{method} {path}: {response.status_code} {response.text}"
        return response.json() if response.content else None

    async def get(self, path: str) -> Any:
        return await self.ask("GET", path)

    async def ours(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the extension."""
        return await self.ask(method, f"/jupyter-checkpoints/{path}", body)

    async def finished(self, operation: dict[str, Any]) -> dict[str, Any]:
        """Wait until an operation has ended; returns it."""
        with anyio.fail_after(PATIENCE):
            while operation["state"] == "running":
                await anyio.sleep(0.02)
                operation = await self.ours("GET", f"operations/{operation['id']}")
        return operation

    async def save(self, kernel_id: str, **body: Any) -> dict[str, Any]:
        """Save a kernel by hand; returns the checkpoint."""
        started = await self.ours("POST", "checkpoints", {"kernel_id": kernel_id, **body})
        ended = await self.finished(started)
        assert ended["state"] == "done", str(ended["error"])
        result: dict[str, Any] = ended["result"]
        return result

    async def checkpoints(self, notebook: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]]
        found = await self.ours("GET", f"checkpoints?notebook={notebook}")
        return found

    async def open(self, notebook: str, kernel: str = PYTHON) -> str:
        """Start the notebook's session as a front end does; returns the kernel's id."""
        session = await self.ask(
            "POST",
            "/api/sessions",
            {
                "path": notebook,
                "name": notebook.rpartition("/")[2],
                "type": "notebook",
                "kernel": {"name": kernel},
            },
        )
        return str(session["kernel"]["id"])

    async def kernels(self) -> list[str]:
        return [k["id"] for k in await self.get("/api/kernels")]

    async def gone(self, *kernel_ids: str) -> None:
        """Wait until these kernels have been shut down."""
        with anyio.fail_after(PATIENCE):
            while set(kernel_ids) & set(await self.kernels()):  # noqa: ASYNC110
                await anyio.sleep(0.1)

    @asynccontextmanager
    async def page(self, kernel_id: str) -> AsyncIterator[Page]:
        """A page that is connected to a kernel."""
        url = f"ws://{self.address}/api/kernels/{kernel_id}/channels"
        url += f"?session_id={uuid.uuid4().hex}"
        request = HTTPRequest(url, headers={"Authorization": f"token {self.token}"})
        page = Page(await websocket_connect(request, subprotocols=[_V1]))
        try:
            yield page
        finally:
            await _close(page.websocket)

    async def run(self, kernel_id: str, code: str) -> str:
        """Run one cell on a page of its own."""
        async with self.page(kernel_id) as page:
            return await page.run(code)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[Events]:
        """All events from now on."""
        url = f"ws://{self.address}/api/events/subscribe?token={self.token}"
        events = Events(await websocket_connect(url))
        try:
            yield events
        finally:
            await _close(events.websocket)


class Page:
    """One websocket of a notebook page, opened once; speaks the protocol that JupyterLab does."""

    def __init__(self, websocket: WebSocketClientConnection) -> None:
        self.websocket = websocket

    async def send(self, channel: str, kind: str, content: Any) -> str:
        identifier = uuid.uuid4().hex
        message = {
            "header": {
                "msg_id": identifier,
                "msg_type": kind,
                "username": "",
                "session": "test",
                "date": "2026-11-24T00:00:00Z",
                "version": "5.4",
            },
            "parent_header": {},
            "metadata": {},
            "content": content,
        }
        data = serialize_msg_to_ws_v1(  # type: ignore[no-untyped-call]
            message, channel, lambda part: json.dumps(part).encode()
        )
        await self.websocket.write_message(data, binary=True)
        return identifier

    async def next(self) -> tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]:
        """The next message: channel, header, parent header, content."""
        with anyio.fail_after(PATIENCE):
            data = await self.websocket.read_message()
        assert isinstance(data, bytes), "the websocket was closed"
        channel, parts = deserialize_msg_from_ws_v1(data)  # type: ignore[no-untyped-call]
        return channel, json.loads(parts[0]), json.loads(parts[1]), json.loads(parts[3])

    async def ready(self) -> None:
        """Ask until both reply and status come: what a page does after a restart.

        Channels reconnect one by one, and what a kernel says before all of them have is lost.
        """
        with anyio.fail_after(PATIENCE):
            while True:
                with anyio.move_on_after(1):
                    await self.finish(await self.send("shell", "kernel_info_request", {}))
                    return

    async def reply(self, identifier: str) -> dict[str, Any]:
        while True:
            channel, _, parent, content = await self.next()
            if channel == "shell" and parent.get("msg_id") == identifier:
                return content

    async def begin(self, code: str) -> str:
        """Send a cell, as a page does when somebody presses shift and enter."""
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
        return await self.send("shell", "execute_request", content)

    async def run(self, code: str) -> str:
        """Run a cell; returns what it printed. There must be a reply, and all of the output."""
        return await self.finish(await self.begin(code))

    async def finish(self, identifier: str) -> str:
        printed, replied, idle = "", False, False
        while not (replied and idle):
            _, header, parent, content = await self.next()
            if parent.get("msg_id") != identifier:
                continue
            match header["msg_type"]:
                case "stream":
                    printed += content["text"]
                case "execute_reply" | "kernel_info_reply":
                    assert content["status"] == "ok", content
                    replied = True
                case "status":
                    idle = content["execution_state"] == "idle"
        return printed.strip()


class Events:
    """The server's event stream."""

    def __init__(self, websocket: WebSocketClientConnection) -> None:
        self.websocket = websocket
        self.seen: list[dict[str, Any]] = []

    async def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait for an event of ours."""
        with anyio.fail_after(PATIENCE):
            while True:
                text = await self.websocket.read_message()
                assert isinstance(text, str), "the websocket was closed"
                event: dict[str, Any] = json.loads(text)
                self.seen.append(event)
                if "jupyter_checkpoints" in event["schema_id"] and wanted(event):
                    return event

    async def action(self, action: str) -> dict[str, Any]:
        return await self.until(lambda event: event.get("action") == action)


async def _close(websocket: WebSocketClientConnection) -> None:
    websocket.close()
    while await websocket.read_message() is not None:
        pass
