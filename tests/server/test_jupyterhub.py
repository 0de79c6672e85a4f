"""A real JupyterHub: two users, each with a server under their own uid; as docs/jupyterhub.md."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from jupyter_checkpoints import kernelspecs
from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.layout import SOCKET_ENV

from ..agent.agents import Agent
from ..agent.conftest import running_agent
from ..agent.conftest import users as users
from ..users import User, Users
from .conftest import _delete_everything
from .servers import PATIENCE, Jupyter, write_notebook

pytestmark = pytest.mark.anyio

#: As docs/jupyterhub.md says, but for what only a test needs.
_CONFIG = """
import os

c.JupyterHub.bind_url = "http://127.0.0.1:{port}"
c.JupyterHub.hub_bind_url = "http://127.0.0.1:{hub_port}"
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{proxy_port}"
c.JupyterHub.db_url = "sqlite:///{root}/hub.sqlite"
c.JupyterHub.cookie_secret_file = "{root}/cookie_secret"
c.ConfigurableHTTPProxy.pid_file = "{root}/proxy.pid"
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allowed_users = {names}
c.JupyterHub.services = [{{"name": "test", "api_token": "{token}"}}]
c.JupyterHub.load_roles = [
    {{
        "name": "test",
        "services": ["test"],
        "scopes": ["admin:users", "admin:servers", "tokens", "access:servers"],
    }}
]

# Every user's server is the user's own process, without any privilege.
c.JupyterHub.spawner_class = "jupyterhub.spawner.LocalProcessSpawner"
c.Spawner.cmd = ["{python}", "-m", "jupyterhub.singleuser"]
c.Spawner.notebook_dir = "~/notebooks"
c.Spawner.environment = {environment}
c.Spawner.start_timeout = 120
c.Spawner.http_timeout = 120
"""


class Hub:
    """A hub that runs, and what an administrator does with it."""

    def __init__(self, port: int, token: str) -> None:
        self.port, self.token = port, token

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}/hub/api", timeout=PATIENCE, trust_env=False
        ) as http:
            headers = {"Authorization": f"token {self.token}"}
            answer = await http.request(method, path, json=body, headers=headers)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    async def start(self, user: User) -> Jupyter:
        """Start a user's server; as the user's browser would reach it."""
        await self.ask("POST", f"/users/{user.name}/server")
        with anyio.fail_after(PATIENCE):
            while not (await self._server(user)).get("ready"):  # noqa: ASYNC110
                await anyio.sleep(0.1)
        token = await self.ask("POST", f"/users/{user.name}/tokens", {"note": "browser"})
        return Jupyter(f"127.0.0.1:{self.port}/user/{user.name}", token["token"])

    async def stop(self, user: User) -> None:
        await self.ask("DELETE", f"/users/{user.name}/server")
        with anyio.fail_after(PATIENCE):
            while await self._server(user):  # noqa: ASYNC110
                await anyio.sleep(0.1)

    async def _server(self, user: User) -> dict[str, Any]:
        model = await self.ask("GET", f"/users/{user.name}")
        found: dict[str, Any] = model["servers"].get("", {})
        return found


@pytest.fixture(scope="module")
def shared(default_image: None, users: Users) -> Iterator[Agent]:
    options = [f"--AgentApp.allowed_groups={users.group}", "--AgentApp.orphan_grace=5"]
    with running_agent(*options) as agent:
        yield agent


@pytest.fixture
def hub(shared: Agent, users: Users) -> Iterator[Hub]:
    """Runs as root, with its proxy."""
    root = Path(tempfile.mkdtemp(prefix="jupyter-checkpoints-hub-"))
    prefix = Path(tempfile.mkdtemp(prefix="jupyter-checkpoints-prefix-"))
    prefix.chmod(0o755)
    kernelspecs.add_defaults(prefix=str(prefix))
    ports = _free_ports(3)
    token = secrets.token_hex(16)
    environment = {
        **users.alice.environment,
        "JUPYTER_PATH": f"{prefix}/share/jupyter:{users.alice.environment['JUPYTER_PATH']}",
        SOCKET_ENV: str(shared.socket),
    }
    for name in ("HOME", "USER"):
        del environment[name]
    config = _CONFIG.format(
        port=ports[0],
        hub_port=ports[1],
        proxy_port=ports[2],
        root=root,
        names={users.alice.name, users.bob.name},
        token=token,
        python=users.alice.python,
        environment=environment,
    )
    (root / "config.py").write_text(config)
    binaries = Path(sys.executable).parent
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterhub", "--config", str(root / "config.py")],
            cwd=root,
            env={"PATH": f"{binaries}:/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    proxy = 0
    try:
        anyio.run(_answers, ports[0], process, root / "log")
        proxy = int((root / "proxy.pid").read_text())
        yield Hub(ports[0], token)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        if proxy:
            # The hub ends the process that it has started; Node of a wheel is a child of that one.
            with suppress(ProcessLookupError):
                os.killpg(proxy, signal.SIGTERM)
        anyio.run(_delete_everything, shared)
        shutil.rmtree(root)
        shutil.rmtree(prefix)


async def _answers(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        with anyio.fail_after(PATIENCE):
            while True:
                assert process.poll() is None, await anyio.Path(log).read_text()
                try:
                    if (await http.get(f"http://127.0.0.1:{port}/hub/api/")).is_success:
                        return
                except httpx.TransportError:
                    pass
                await anyio.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@asynccontextmanager
async def _notebook(user: User) -> AsyncIterator[str]:
    """A notebook of the user's that asks for checkpoints."""
    root = user.home / "notebooks"
    root.mkdir()
    write_notebook(root / "n.ipynb")
    for path in (root, root / "n.ipynb"):
        shutil.chown(path, user.uid, user.gid)
    try:
        yield "n.ipynb"
    finally:
        shutil.rmtree(root)


async def test_two_users_go_on_where_they_were(hub: Hub, shared: Agent, users: Users) -> None:
    """Start, run, stop the server; start it again: the kernel's state is there."""
    both = (users.alice, users.bob)
    async with _notebook(users.alice) as notebook, _notebook(users.bob):
        for user in both:
            jupyter = await hub.start(user)
            kernel_id = await jupyter.open(notebook)
            await jupyter.run(kernel_id, f"x = {user.name!r}; _ = open(x, 'w').write(x)")
            saved = await jupyter.save(kernel_id)
            await jupyter.run(kernel_id, "x += ' later'")
            await hub.stop(user)
            async with AgentClient(shared.socket, user=user.name) as client:
                assert await client.kernels() == []
                newest, *_, first = await client.checkpoints()
                assert (first.id, newest.trigger) == (saved["id"], "shutdown")
                assert {first.uid, newest.uid} == {user.uid}
        for user in both:
            jupyter = await hub.start(user)
            kernel_id = await jupyter.open(notebook)
            assert await jupyter.run(kernel_id, "print(x)") == f"{user.name} later"
            assert (user.home / "notebooks" / user.name).stat().st_uid == user.uid
            assert len(await jupyter.checkpoints(notebook)) == 2
            await hub.stop(user)
