"""Commands on notebooks, beside a server and without one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import nbformat
import pytest

from jupyter_checkpoints.client import AgentClient

from .servers import Server

pytestmark = pytest.mark.anyio


class Commands:
    """``jupyter checkpoints …`` of the user whom a server belongs to."""

    def __init__(self, server: Server) -> None:
        self.server = server

    async def __call__(self, *arguments: str, code: int = 0) -> str:
        """What a command prints; it must end with ``code``."""
        done = await anyio.to_thread.run_sync(self._run, arguments)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def _run(self, arguments: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "jupyter_checkpoints.cli.app", *arguments],
            cwd=self.server.root,
            env=self.server.environment,
            capture_output=True,
            text=True,
            timeout=200,
        )

    async def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(await self(*arguments, "--json", code=code))


@pytest.fixture
def command(server: Server) -> Commands:
    return Commands(server)


async def test_enable_and_disable(server: Server, command: Commands) -> None:
    notebook = server.write("n.ipynb", "x = 1", settings=None)
    before = json.loads((server.root / notebook).read_text())
    assert await command.json("enable", notebook) == {"changed": [notebook]}
    assert server.metadata(notebook) == {"enabled": True}
    assert await command.json("enable", notebook) == {"changed": []}
    await command("disable", notebook)
    assert server.metadata(notebook) == {"enabled": False}
    after = json.loads((server.root / notebook).read_text())
    del after["metadata"]["runtime_checkpoints"]
    assert after == before
    await command("enable", "none.ipynb", code=3)
    (server.root / "text.ipynb").write_text("[]")
    await command("enable", "text.ipynb", code=2)


async def test_a_servers_notebook(server: Server, command: Commands, client: AgentClient) -> None:
    notebook = server.write("n.ipynb")
    await command("save", notebook, code=4)  # it has no runtime yet
    jupyter = await server.start()
    kernel_id = await jupyter.open(notebook)
    await jupyter.run(kernel_id, "x = 42")
    saved = await command.json("save", notebook, "--name", "by hand")
    assert (saved["kernel_id"], saved["name"]) == (kernel_id, "by hand")
    assert [c["id"] for c in await jupyter.checkpoints(notebook)] == [saved["id"]]
    shown = await command.json("show", notebook)
    assert shown["id"] == saved["id"]

    copied = await command.json("remix", notebook, "copy.ipynb")
    assert copied["runtime"] == server.metadata("copy.ipynb")["runtime"] != saved["runtime"]
    assert await jupyter.run(await jupyter.open("copy.ipynb"), "print(x)") == "42"
    await command("remix", notebook, "copy.ipynb", code=4)

    exported = await command.json("export", notebook, "n.tar")
    assert (server.root / "n.tar").stat().st_size == exported["size"]
    assert (server.root / "n.tar").stat().st_mode & 0o777 == 0o600
    await command("export", notebook, "n.tar", code=4)
    other = server.write("other.ipynb")
    imported = await command.json("import", "n.tar", other)
    assert imported["runtime"] == server.metadata(other)["runtime"]
    printed = await jupyter.run(await jupyter.open(other), "print(x)")
    assert printed.startswith("42")

    await jupyter.run(kernel_id, "x = 43")
    await command.json("save", notebook)
    older = await command.json("resume", notebook, "--checkpoint", saved["id"][:8])
    await command("kill", older["kernel_id"])
    await command("resume", notebook, "--checkpoint", copied["id"], code=3)
    await command("resume", saved["id"], "--checkpoint", saved["id"], code=2)
    resumed = await command.json("resume", notebook)
    assert resumed["kernel_id"] in {k.id for k in await client.kernels()}
    await command("kill", resumed["kernel_id"])


async def test_an_export_goes_on_where_it_was_broken_off(server: Server, command: Commands) -> None:
    notebook = server.write("n.ipynb")
    jupyter = await server.start()
    saved = await jupyter.save(await jupyter.open(notebook))
    await command("export", notebook, "whole.tar")
    whole = (server.root / "whole.tar").read_bytes()
    for length in (0, 1_000_000, len(whole)):
        part = server.root / f".n{length}.tar.{saved['id']}.part"
        part.write_bytes(whole[:length])
        await command("export", notebook, f"n{length}.tar")
        assert (server.root / f"n{length}.tar").read_bytes() == whole
        assert not part.exists()


async def test_a_notebook_travels_with_its_archive(server: Server, command: Commands) -> None:
    notebook = server.write("n.ipynb", "print(x)")
    jupyter = await server.start()
    kernel_id = await jupyter.open(notebook)
    await jupyter.run(kernel_id, "x = 42")
    saved = await jupyter.save(kernel_id)
    (server.root / "parcel").mkdir()
    (server.root / "here").mkdir()
    exported = await command.json("export", notebook, "parcel/work.tar")
    assert exported["notebook"] == "parcel/work.ipynb"
    await command("export", notebook, "parcel/work.ipynb", code=2)

    imported = await command.json("import", "parcel/work.tar", "here")
    assert server.metadata("here/work.ipynb")["runtime"] == imported["runtime"] != saved["runtime"]
    arrived = await jupyter.open("here/work.ipynb")
    assert (await jupyter.run(arrived, "print(x)")).startswith("42")
    # It is another kernel than the one that goes on here.
    key = "print(get_ipython().kernel.session.key)"
    assert await jupyter.run(arrived, key) != await jupyter.run(kernel_id, key)

    # Nothing is overwritten, and what is refused leaves nothing.
    before = (server.root / "here" / "work.ipynb").read_bytes()
    count = len(await jupyter.ours("GET", "checkpoints"))
    await command("import", "parcel/work.tar", "here", code=4)
    (server.root / "parcel" / "alone.tar").write_bytes(b"x")
    await command("import", "parcel/alone.tar", "here", code=3)
    assert (server.root / "here" / "work.ipynb").read_bytes() == before
    assert len(await jupyter.ours("GET", "checkpoints")) == count
    # Where the notebook is beside the archive already, it is bound to it there.
    bound = await command.json("import", "parcel/work.tar", "parcel")
    assert bound["runtime"] == server.metadata("parcel/work.ipynb")["runtime"]
    assert bound["runtime"] not in (saved["runtime"], imported["runtime"])
    assert [c["id"] for c in await jupyter.checkpoints(notebook)] == [saved["id"]]


async def test_a_running_kernel_is_saved_for_a_remix(server: Server, command: Commands) -> None:
    notebook = server.write("n.ipynb")
    jupyter = await server.start()
    kernel_id = await jupyter.open(notebook)
    await jupyter.save(kernel_id)
    await jupyter.run(kernel_id, "x = 'now'")
    await command("remix", notebook, "copy.ipynb")
    assert await jupyter.run(await jupyter.open("copy.ipynb"), "print(x)") == "now"


async def test_prune(server: Server, command: Commands, client: AgentClient) -> None:
    notebook = server.write("n.ipynb")
    jupyter = await server.start("--Runtimes.autosave_idle_timeout=0")
    kernel_id = await jupyter.open(notebook)
    kept = await jupyter.save(kernel_id)
    for number in range(3):
        await jupyter.run(kernel_id, f"x = {number}")
        await jupyter.ours("POST", "danger", {})
    before = [c.id for c in await client.checkpoints()]
    options = ("prune", "--last", "1", "--daily", "0", "--weekly", "0")
    would = await command.json(*options, "--dry-run")
    assert [c.id for c in await client.checkpoints()] == before
    assert {v["checkpoint"] for v in would} == set(before[1:3])
    assert await command.json(*options) == would
    # The newest, and what was saved by hand.
    assert [c.id for c in await client.checkpoints()] == [before[0], kept["id"]]


def outputs(path: Path) -> list[str]:
    notebook: Any = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    return ["".join(o.get("text", "") for o in cell.outputs) for cell in notebook.cells]


async def test_run(server: Server, command: Commands, client: AgentClient) -> None:
    """It is broken off by an error, mended, and goes on after the last cell that was saved."""
    cells = ["import time; t = time.time(); print('a')", "x = 1; print('b')", "print(1 / 0)"]
    notebook = server.write("n.ipynb", *cells)
    path = server.root / notebook
    failed = await command.json("run", notebook, "--checkpoint-cells", "2", code=1)
    assert "ZeroDivisionError" in failed["reason"]
    [saved] = await client.checkpoints()
    assert saved.trigger == "cell"
    assert await client.kernels() == []

    content = json.loads(path.read_text())
    content["cells"][2]["source"] = "print(x + 1)"
    path.write_text(json.dumps(content))
    done = await command.json("run", notebook, "--checkpoint-cells", "2")
    assert (done["ran"], done["resumed_from"]) == (1, saved.id)
    assert outputs(path) == ["a\n", "b\n", "2\n"]

    # All again on request, and when a cell before has changed.
    assert (await command.json("run", notebook, "--fresh"))["ran"] == 3
    content["cells"][0]["source"] = "print('changed')"
    path.write_text(json.dumps(content))
    changed = await command.json("run", notebook)
    assert (changed["ran"], changed["resumed_from"]) == (3, "")
    assert outputs(path) == ["changed\n", "b\n", "2\n"]
    await command("run", notebook, "--checkpoint-cells", "4", code=2)
