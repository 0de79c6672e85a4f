"""Kernels in containers under the programs people use: nothing in them knows of us."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import nbformat
import papermill
import pytest
from jupyter_client.manager import start_new_async_kernel
from nbclient import NotebookClient
from tornado.websocket import WebSocketClientConnection, websocket_connect

from jupyter_checkpoints.cli import connections
from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.models import SaveRequest, StartRequest

from .agents import Agent
from .cells import run
from .kernelspecs import jupyter_dirs as jupyter_dirs
from .kernelspecs import nothing_left as nothing_left

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("jupyter_dirs", "nothing_left")]

PYTHON = "checkpoints-python3"


# -- jupyter console ----------------------------------------------------------------------------


def console(text: str, *arguments: str) -> str:
    """What ``jupyter console`` prints when a person types ``text``."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "jupyter_console", "--simple-prompt"),
            *arguments,
        ],
        # The console does not wait until it hears its kernel: one that has answered the first
        # cell before that, in a container or not, leaves the console waiting for ever.
        input=f"import time; time.sleep(1)\n{text}",
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout


async def test_console(client: AgentClient) -> None:
    printed = await anyio.to_thread.run_sync(
        console, "x = 20\nprint('the answer is', x + 22)\n", f"--kernel={PYTHON}"
    )
    assert "the answer is 42" in printed
    # The console asks its kernel to end, and leaves without looking back.
    with anyio.fail_after(30):
        while any(k.state != "exited" for k in await client.kernels()):  # noqa: ASYNC110
            await anyio.sleep(0.05)


async def test_console_on_a_resumed_kernel(client: AgentClient, jupyter_dirs: Path) -> None:
    manager, channels = await start_new_async_kernel(kernel_name=PYTHON)
    await run(channels, "x = 20")
    channels.stop_channels()
    saved = await client.save(str(manager.kernel_id), SaveRequest())
    await manager.shutdown_kernel(now=True)
    request = StartRequest(
        kernel_id=str(uuid.uuid4()), checkpoint=saved.id, mounts=saved.mounts, detached=True
    )
    resumed = await client.start_kernel(request)
    file = connections.write(jupyter_dirs / "runtime", resumed)
    printed = await anyio.to_thread.run_sync(
        console, "print('the answer is', x + 22)\n", f"--existing={file}"
    )
    assert "the answer is 42" in printed


# -- notebooks run by programs ------------------------------------------------------------------


def notebook(*cells: str) -> nbformat.NotebookNode:
    made: nbformat.NotebookNode = nbformat.v4.new_notebook()  # type: ignore[no-untyped-call]
    made.metadata.kernelspec = {"name": PYTHON, "display_name": PYTHON, "language": "python"}
    new_cell: Any = nbformat.v4.new_code_cell
    made.cells = [new_cell(source) for source in cells]
    return made


def test_nbclient(agent: Agent, tmp_path: Path) -> None:
    made = notebook("x = 20", "open('result.txt', 'w').write(str(x + 22))", "print(x + 22)")
    NotebookClient(made, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert made.cells[2].outputs[0].text == "42\n"
    assert (tmp_path / "result.txt").read_text() == "42"
    assert agent.containers() == []


def test_papermill(agent: Agent, tmp_path: Path) -> None:
    made = notebook("x = 0", "print(x + 22)")
    made.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(made, tmp_path / "in.ipynb")  # type: ignore[no-untyped-call]
    papermill.execute_notebook(
        tmp_path / "in.ipynb",
        tmp_path / "out.ipynb",
        parameters={"x": 20},
        cwd=str(tmp_path),
        progress_bar=False,
    )
    done = nbformat.read(tmp_path / "out.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    assert done.cells[-1].outputs[0].text == "42\n"
    assert agent.containers() == []


# -- Jupyter Server -----------------------------------------------------------------------------


class Server:
    """A Jupyter Server of its own process, spoken to as a browser does."""

    def __init__(self, port: int, token: str) -> None:
        self.http = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}/api",
            headers={"Authorization": f"token {token}"},
            timeout=60,
            trust_env=False,
        )
        self.websockets = f"ws://127.0.0.1:{port}/api/kernels/{{}}/channels?token={token}"

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        response = await self.http.request(method, path, json=body)
        response.raise_for_status()
        return response.json() if response.content else None

    @asynccontextmanager
    async def page(self, kernel_id: str) -> AsyncIterator[Channels]:
        """A page that shows a notebook: one websocket to its kernel, opened once."""
        websocket = await websocket_connect(self.websockets.format(kernel_id))
        try:
            yield Channels(websocket)
        finally:
            websocket.close()
            while await websocket.read_message() is not None:
                pass


class Channels:
    """All channels of a kernel over one websocket."""

    def __init__(self, websocket: WebSocketClientConnection) -> None:
        self.websocket = websocket

    async def send(self, channel: str, kind: str, content: Any) -> str:
        identifier = uuid.uuid4().hex
        header = {
            "msg_id": identifier,
            "msg_type": kind,
            "username": "",
            "session": "test",
            "date": "",
            "version": "5.3",
        }
        message = {
            "header": header,
            "parent_header": {},
            "metadata": {},
            "content": content,
            "channel": channel,
            "buffers": [],
        }
        await self.websocket.write_message(json.dumps(message))
        return identifier

    async def next(self) -> dict[str, Any]:
        with anyio.fail_after(60):
            text = await self.websocket.read_message()
        assert isinstance(text, str), "the websocket was closed"
        message: dict[str, Any] = json.loads(text)
        return message

    async def status(self, wanted: str) -> None:
        """Wait until the server tells of this state of the kernel."""
        while True:
            message = await self.next()
            if message["msg_type"] == "status" and (
                message["content"]["execution_state"] == wanted
            ):
                return

    async def reply(self, identifier: str) -> dict[str, Any]:
        """Wait for the reply to a message; returns its content."""
        while True:
            message = await self.next()
            if message["channel"] == "shell" and (
                message["parent_header"].get("msg_id") == identifier
            ):
                content: dict[str, Any] = message["content"]
                return content

    async def ready(self) -> None:
        """Ask until both reply and status come: what a page does after a restart.

        Channels reconnect one by one, and what a kernel says before all of them have is lost.
        """
        with anyio.fail_after(60):
            while True:
                with anyio.move_on_after(1):
                    await self._exchange("kernel_info_request", {})
                    return

    async def run(self, code: str) -> str:
        """Run a cell; returns what it printed."""
        content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
        reply, printed = await self._exchange("execute_request", content)
        assert reply["status"] == "ok", reply
        return printed.strip()

    async def _exchange(self, kind: str, content: Any) -> tuple[dict[str, Any], str]:
        """Send a request; returns its reply and what was printed once both are complete."""
        identifier = await self.send("shell", kind, content)
        printed, idle = "", False
        reply: dict[str, Any] | None = None
        while reply is None or not idle:
            message = await self.next()
            if message["parent_header"].get("msg_id") != identifier:
                continue
            if message["channel"] == "shell":
                reply = message["content"]
            elif message["msg_type"] == "stream":
                printed += message["content"]["text"]
            elif message["msg_type"] == "status":
                idle = message["content"]["execution_state"] == "idle"
        return reply, printed


@asynccontextmanager
async def server(root: Path) -> AsyncIterator[Server]:
    """A server with ``root`` as its root directory; ended as Control-C ends it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    command = [
        *(sys.executable, "-m", "jupyter_server", "--allow-root", "--no-browser"),
        *(f"--port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"),
        *(f"--ServerApp.root_dir={root}", "--KernelRestarter.time_to_dead=0.3"),
        "--ServerApp.jpserver_extensions={}",
    ]
    log = root.with_suffix(".log")
    environment = {**os.environ, "AWS_SECRET_ACCESS_KEY": "secret"}
    with log.open("wb") as output:
        process = await anyio.open_process(
            command, cwd=root, env=environment, stdout=output, stderr=output
        )
    try:
        made = Server(port, token)
        async with made.http:
            with anyio.fail_after(60):
                while True:
                    try:
                        await made.ask("GET", "/status")
                        break
                    except httpx.ConnectError:
                        assert process.returncode is None, log.read_text()
                        await anyio.sleep(0.05)
            yield made
    finally:
        process.terminate()
        await process.wait()
        await process.aclose()


async def test_jupyter_server(agent: Agent, client: AgentClient, tmp_path: Path) -> None:
    root = tmp_path / "notebooks"
    (root / "deep").mkdir(parents=True)
    async with server(root) as jupyter:
        session = await jupyter.ask(
            "POST",
            "/sessions",
            {
                "path": "deep/n.ipynb",
                "name": "n.ipynb",
                "type": "notebook",
                "kernel": {"name": PYTHON},
            },
        )
        kernel_id = session["kernel"]["id"]

        async with jupyter.page(kernel_id) as page:
            # Where the notebook is, with nothing of the server's environment.
            assert await page.run("import os; print(os.getcwd())") == str(root / "deep")
            assert await page.run("print('AWS_SECRET_ACCESS_KEY' in os.environ)") == "False"
            notebook_path = await page.run("print(os.environ['JPY_SESSION_NAME'])")
            assert notebook_path == str(root / "deep" / "n.ipynb")

            # Saved, changed, and put back, under a page that stays connected.
            await page.run("x = 'saved'")
            saved = await client.save(kernel_id, SaveRequest())
            await page.run("x = 'changed'")
            await client.resume(kernel_id, saved.id)
            assert await page.run("print(x)") == "saved"

            # Stopped for a while: the server must not take it for dead.
            stopped = await client.save(kernel_id, SaveRequest(stop=True))
            await anyio.sleep(1.5)  # five times as long as it takes to be found dead
            await client.resume(kernel_id, stopped.id)
            assert await page.run("print(x)") == "saved"

            # Interrupted and restarted by the buttons.
            running = await page.send(
                "shell",
                "execute_request",
                # Not stopping, or the kernel may refuse the next cell, if it comes at once.
                {"code": "print('on')\nwhile True: pass", "stop_on_error": False},
            )
            while (await page.next())["msg_type"] != "stream":
                pass
            await jupyter.ask("POST", f"/kernels/{kernel_id}/interrupt")
            assert (await page.reply(running))["ename"] == "KeyboardInterrupt"
            assert await page.run("print(x)") == "saved"
            await jupyter.ask("POST", f"/kernels/{kernel_id}/restart")
            await page.ready()
            assert await page.run("print('x' in globals())") == "False"

            # It dies, and the server starts it again.
            await page.send("shell", "execute_request", {"code": "import os; os._exit(1)"})
            await page.status("restarting")
        async with jupyter.page(kernel_id) as page:
            assert await page.run("print('back')") == "back"

        await jupyter.ask("DELETE", f"/sessions/{session['id']}")
        assert await client.kernels() == []

        # What the server leaves running, it ends with itself.
        await jupyter.ask("POST", "/kernels", {"name": PYTHON})
    assert await client.kernels() == []
