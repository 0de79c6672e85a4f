"""Two ordinary users, each with a server of their own that has no privilege at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from jupyter_checkpoints import kernelspecs
from jupyter_checkpoints.client import AgentClient

from ..agent.agents import Agent
from ..agent.conftest import running_agent
from ..agent.conftest import users as users
from ..users import User, Users
from .conftest import _delete_everything
from .servers import Server
from .test_cull import CULLING
from .test_wake import session

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def shared(default_image: None, users: Users) -> Iterator[Agent]:
    """An agent that serves both users, and is nobody's but root's."""
    options = [f"--AgentApp.allowed_groups={users.group}", "--AgentApp.orphan_grace=5"]
    with running_agent(*options) as agent:
        yield agent


def _server(user: User, agent: Agent) -> Server:
    home = user.home / uuid.uuid4().hex
    home.mkdir()
    os.chown(home, user.uid, user.gid)
    prefix = home / "prefix"
    kernelspecs.add_defaults(prefix=str(prefix))
    return Server(home, prefix, agent.socket, user)


@pytest.fixture
def servers(shared: Agent, users: Users) -> Iterator[tuple[Server, Server]]:
    made = _server(users.alice, shared), _server(users.bob, shared)
    try:
        yield made
    finally:
        for server in made:
            server.kill()
        anyio.run(_delete_everything, shared)


def _owners(directory: Path) -> set[int]:
    return {path.lstat().st_uid for path in directory.rglob("*")}


def _privileges(pid: int) -> tuple[int, int]:
    """A process's uid, and its capabilities."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    facts = dict(line.split(":", 1) for line in lines)
    (uid,) = set(facts["Uid"].split())
    return int(uid), int(facts["CapEff"], 16)


async def _life(server: Server, secret: str) -> str:
    """Cull, wake, save, remix; the id of the checkpoint that was made by hand."""
    assert server.user is not None
    notebook = server.write("n.ipynb")
    jupyter = await server.start(*CULLING)
    kernel_id = await jupyter.open(notebook)
    async with jupyter.page(kernel_id) as page:
        await page.run(f"secret = {secret!r}; x = open('written', 'w').write(secret)")
        await jupyter.gone(kernel_id)
    await server.stop()
    jupyter = await server.start()
    woken = await jupyter.open(notebook)
    assert await jupyter.run(woken, "print(secret, x)") == f"{secret} {len(secret)}"
    saved = await jupyter.save(woken)
    made = await jupyter.ask("POST", "/api/contents/", {"copy_from": notebook})
    copy = await jupyter.open(made["path"])
    assert await jupyter.run(copy, "secret += '!'; print(secret)") == f"{secret}!"
    assert await jupyter.run(woken, "print(secret)") == secret
    assert (server.root / "written").read_text() == secret
    assert _owners(server.root) == {server.user.uid}
    return str(saved["id"])


async def test_both_live_side_by_side(
    servers: tuple[Server, Server], shared: Agent, users: Users
) -> None:
    """Each saves, is culled, wakes and remixes; neither sees anything of the other."""
    saved: dict[int, str] = {}

    async def live(number: int) -> None:
        saved[number] = await _life(servers[number], f"secret {number}")

    async with anyio.create_task_group() as group:
        for number in range(2):
            group.start_soon(live, number)
    for server in servers:
        assert server.process is not None and server.user is not None
        assert _privileges(server.process.pid) == (server.user.uid, 0)
    async with (
        AgentClient(shared.socket) as root,
        AgentClient(shared.socket, user=users.alice.name) as alice,
        AgentClient(shared.socket, user=users.bob.name) as bob,
    ):
        for number, client in enumerate((alice, bob)):
            ids = {checkpoint.id for checkpoint in await client.checkpoints()}
            assert saved[number] in ids
            assert saved[1 - number] not in ids
        for kernel in await root.kernels():
            assert kernel.uid in (users.alice.uid, users.bob.uid)
            assert kernel.pid is not None
            assert _privileges(kernel.pid)[0] == kernel.uid


@pytest.fixture
def outsider(default_image: None, users: Users) -> Iterator[Server]:
    """A server of a user who may not use the agent."""
    with running_agent("--AgentApp.allowed_groups=[]") as agent:
        server = _server(users.alice, agent)
        yield server
        server.kill()


async def test_a_user_who_may_not_has_an_ordinary_jupyter(outsider: Server) -> None:
    """Kernels without checkpoints work; with them, the error says what the administrator does."""
    jupyter = await outsider.start()
    started = await jupyter.ask("POST", "/api/kernels", {"name": "python3"})
    assert await jupyter.run(started["id"], "print(6 * 7)") == "42"
    said = outsider.log.read_text()
    assert "Traceback" not in said
    assert said.count("usermod") <= 1
    notebook = outsider.write("n.ipynb")
    refused = await jupyter.request("POST", "/api/sessions", session(notebook))
    assert refused.is_error
    assert "administrator" in refused.text
    assert "usermod" in refused.text


async def test_a_notebook_is_made_of_what_another_user_shares(
    servers: tuple[Server, Server], users: Users
) -> None:
    """The same by REST, without a notebook; and nothing of it without the share."""
    alice, bob = servers
    ones, others = await alice.start(), await bob.start()
    kernel_id = await ones.open(alice.write("n.ipynb"))
    await ones.run(kernel_id, "x = 41")
    saved = await ones.save(kernel_id, name="half way")
    theirs = f"/jupyter-checkpoints/checkpoints/{saved['id']}"
    wanted = {"checkpoint": saved["id"], "target": "mine.ipynb"}

    async def refused() -> None:
        for method, path, body in (
            ("GET", theirs, None),
            ("GET", f"{theirs}/shares", None),
            ("PUT", f"{theirs}/shares/{users.bob.name}", None),
            ("DELETE", f"{theirs}/shares/*", None),
            ("POST", "/jupyter-checkpoints/remix", wanted),
        ):
            answer = await others.request(method, path, body)
            assert answer.status_code == 404, (method, path, answer.text)
        assert await others.ours("GET", "checkpoints?shared=1") == []

    await refused()
    given = await ones.ours("PUT", f"checkpoints/{saved['id']}/shares/{users.bob.name}")
    assert given["shares"] == [{"user": users.bob.uid, "name": users.bob.name}]
    assert "passwords" in given["warning"]
    [listed] = await others.ours("GET", "checkpoints?shared=1")
    assert (listed["id"], listed["owner"]) == (saved["id"], users.alice.name)
    # To see it is not to give it away, to change it or to delete it.
    for method, path in (("PUT", f"{theirs}/shares/*"), ("DELETE", theirs)):
        assert (await others.request(method, path)).status_code == 404
    assert (await others.ours("GET", f"checkpoints/{saved['id']}/shares"))["shares"] == []

    made = await others.ours("POST", "remix", wanted)
    assert made["notebook"] == "mine.ipynb"
    assert bob.metadata("mine.ipynb") == {
        "enabled": True,
        "autosave": True,
        "runtime": made["runtime"],
    }
    left = await ones.ours("DELETE", f"checkpoints/{saved['id']}/shares/{users.bob.uid}")
    assert left["shares"] == []
    await refused()
    # What was made of it stays.
    woken = await others.open("mine.ipynb")
    assert await others.run(woken, "x += 1; print(x)") == "42"
    assert await others.run(woken, "open('of-bob', 'w').close()") == ""
    assert (bob.root / "of-bob").stat().st_uid == users.bob.uid
    assert await ones.run(kernel_id, "print(x)") == "41"


async def test_the_state_of_a_shared_checkpoint_goes_on(
    servers: tuple[Server, Server], users: Users
) -> None:
    """Alice shares her notebook's state; Bob copies it on the command line, and goes on."""
    alice, bob = servers
    notebook = alice.write("n.ipynb")
    jupyter = await alice.start()
    kernel_id = await jupyter.open(notebook)
    await jupyter.run(kernel_id, "x = 41")
    await jupyter.save(kernel_id)
    content = await jupyter.get(f"/api/contents/{notebook}")
    await jupyter.ask("PUT", f"/api/contents/{notebook}", content)  # writes the runtime's id
    command = "from jupyter_checkpoints.cli.app import main; import sys; main(sys.argv[1:])"
    env = {name: alice.environment[name] for name in alice.environment if "JUPYTER" in name}
    path = str(alice.root / notebook)
    users.alice.run(command, "share", path, users.bob.name, env=env)
    # The notebook itself is given away as any file is.
    env = {name: bob.environment[name] for name in bob.environment if "JUPYTER" in name}
    given = bob.write("from-alice.ipynb")
    (bob.root / given).write_text((alice.root / notebook).read_text())
    listed = users.bob.run(command, "list", "--shared", "--json", env=env)
    assert users.bob.name not in listed and '"uid":' + str(users.alice.uid) in listed
    users.bob.run(command, "remix", str(bob.root / given), str(bob.root / "mine.ipynb"), env=env)
    other = await bob.start()
    woken = await other.open("mine.ipynb")
    assert await other.run(woken, "x += 1; print(x)") == "42"
    assert await other.run(woken, "open('of-bob', 'w').close()") == ""
    assert (bob.root / "of-bob").stat().st_uid == users.bob.uid
    assert await jupyter.run(kernel_id, "print(x)") == "41"
