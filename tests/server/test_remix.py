"""Copies of notebooks: both go on from one state, and neither is touched by the other."""

from __future__ import annotations

import json
import shutil

import pytest

from jupyter_checkpoints.client import AgentClient

from .servers import Jupyter, Server

pytestmark = pytest.mark.anyio


async def both_live_on(jupyter: Jupyter, original: str, copy: str) -> None:
    """The copy has the original's x; from then on each has its own, and its own checkpoints."""
    [first, second] = [await jupyter.open(name) for name in (original, copy)]
    assert await jupyter.run(second, "print(x)") == "1"
    assert await jupyter.run(first, "x += 1; print(x)") == "2"
    assert await jupyter.run(second, "x += 10; print(x)") == "11"
    saved = [await jupyter.save(kernel_id) for kernel_id in (first, second)]
    runtimes = {c["runtime"] for c in saved}
    assert len(runtimes) == 2
    ids = {c["id"] for c in await jupyter.checkpoints(copy)}
    assert ids.isdisjoint({c["id"] for c in await jupyter.checkpoints(original)})
    # All that the original has is deleted, and the copy goes on.
    await jupyter.ask("DELETE", f"/api/kernels/{first}")
    await jupyter.ask("DELETE", f"/api/kernels/{second}")
    for checkpoint in await jupyter.checkpoints(original):
        await jupyter.ours("DELETE", f"checkpoints/{checkpoint['id']}")
    woken = await jupyter.open(copy)
    assert await jupyter.run(woken, "print(x)") == "11"


async def test_copied_by_the_file_browser(server: Server) -> None:
    original = server.write("n.ipynb")
    jupyter = await server.start()
    kernel_id = await jupyter.open(original)
    await jupyter.run(kernel_id, "x = 1")
    async with jupyter.events() as events:
        made = await jupyter.ask("POST", "/api/contents/", {"copy_from": original})
        remixed = await events.action("remixed")
    assert (remixed["source_notebook"], remixed["notebook"]) == (original, made["path"])
    # The running original was saved for it, unasked.
    [saved] = await jupyter.checkpoints(original)
    assert saved["trigger"] == "remix"
    await both_live_on(jupyter, original, made["path"])
    assert server.metadata(made["path"])["runtime"] == remixed["runtime"]


async def test_copied_behind_the_servers_back(server: Server) -> None:
    original = server.write("n.ipynb")
    jupyter = await server.start()
    kernel_id = await jupyter.open(original)
    await jupyter.run(kernel_id, "x = 1")
    await jupyter.save(kernel_id)
    content = await jupyter.get(f"/api/contents/{original}")
    await jupyter.ask("PUT", f"/api/contents/{original}", content)  # writes the runtime's id
    assert server.metadata(original)["runtime"]
    shutil.copy(server.root / original, server.root / "copy.ipynb")
    await both_live_on(jupyter, original, "copy.ipynb")
    # The page still has the original's id, and saves it; what is saved is the copy's own.
    stale = json.loads((server.root / "copy.ipynb").read_text())
    assert stale["metadata"]["runtime_checkpoints"] == server.metadata(original)
    body = {"type": "notebook", "format": "json", "content": stale}
    await jupyter.ask("PUT", "/api/contents/copy.ipynb", body)
    assert server.metadata("copy.ipynb")["runtime"] != server.metadata(original)["runtime"]
    woken = await jupyter.open("copy.ipynb")
    assert await jupyter.run(woken, "print(x)") == "11"


async def test_asked_for(server: Server, client: AgentClient) -> None:
    original = server.write("n.ipynb")
    jupyter = await server.start()
    kernel_id = await jupyter.open(original)
    await jupyter.run(kernel_id, "x = 0")
    older = await jupyter.save(kernel_id)
    await jupyter.run(kernel_id, "x = 1")
    made = await jupyter.ours("POST", "remix", {"source": original, "target": "copy.ipynb"})
    assert made["notebook"] == "copy.ipynb" and made["checkpoint"]["runtime"] == made["runtime"]
    body = {"source": original, "target": "old.ipynb", "checkpoint": older["id"]}
    await jupyter.ours("POST", "remix", body)
    assert await jupyter.run(await jupyter.open("old.ipynb"), "print(x)") == "0"
    runtimes = {r["notebook"]: r for r in await jupyter.ours("GET", "runtimes")}
    origins = {name: runtime["origin"] for name, runtime in runtimes.items()}
    assert origins[original] is None
    assert origins["old.ipynb"]["checkpoint"] == older["id"]
    assert origins["copy.ipynb"]["checkpoint"] == made["checkpoint"]["parent"]
    assert origins["copy.ipynb"]["created"] == made["checkpoint"]["created"]
    assert origins["copy.ipynb"]["runtime"] == runtimes[original]["runtime"]
    await both_live_on(jupyter, original, "copy.ipynb")

    for body, status in (
        ({"source": original, "target": "copy.ipynb"}, 409),
        ({"source": "none.ipynb", "target": "x.ipynb"}, 404),
        ({"source": original, "target": "x.ipynb", "checkpoint": "none"}, 404),
        ({"source": original}, 400),
    ):
        answer = await jupyter.request("POST", "/jupyter-checkpoints/remix", body)
        assert answer.status_code == status, answer.text
    assert not (server.root / "x.ipynb").exists()


async def test_remixes_branch_off(server: Server) -> None:
    original = server.write("n.ipynb")
    jupyter = await server.start()
    kernel_id = await jupyter.open(original)
    await jupyter.run(kernel_id, "x = 1")
    first = await jupyter.save(kernel_id)
    for source, target in ((original, "one.ipynb"), ("one.ipynb", "two.ipynb")):
        await jupyter.ours("POST", "remix", {"source": source, "target": target})
    family = await jupyter.ours("GET", f"checkpoints?notebook={original}&remixes=1")
    assert [(c["notebook"], c["trigger"]) for c in family] == [
        ("two.ipynb", "remix"),
        ("one.ipynb", "remix"),
        (original, "manual"),
    ]
    assert [c["parent"] for c in family] == [family[1]["id"], first["id"], ""]
    # They share nearly all; none would be free without the others.
    for checkpoint in family:
        assert checkpoint["held"] > checkpoint["shared"] > 0.9 * checkpoint["held"]
    [alone] = await jupyter.checkpoints(original)
    assert alone == family[2]
    # Without the first checkpoints of the remixes it is still known where they came from.
    two = await jupyter.open("two.ipynb")
    await jupyter.run(two, "x = 2")
    await jupyter.save(two)
    for checkpoint in family[:2]:
        await jupyter.ours("DELETE", f"checkpoints/{checkpoint['id']}")
    family = await jupyter.ours("GET", f"checkpoints?notebook={original}&remixes=1")
    assert [c["notebook"] for c in family] == ["two.ipynb", original]


async def test_moved(server: Server) -> None:
    """By the server, and behind its back: the runtime goes with the notebook."""
    notebook = server.write("n.ipynb")
    jupyter = await server.start()
    kernel_id = await jupyter.open(notebook)
    await jupyter.run(kernel_id, "x = 1")
    saved = await jupyter.save(kernel_id)
    await jupyter.ask("DELETE", f"/api/kernels/{kernel_id}")
    (server.root / "deep").mkdir()
    await jupyter.ask("PATCH", f"/api/contents/{notebook}", {"path": "deep/m.ipynb"})
    second = await jupyter.open("deep/m.ipynb")
    assert await jupyter.run(second, "print(x)") == "1"
    content = await jupyter.get("/api/contents/deep/m.ipynb")
    await jupyter.ask("PUT", "/api/contents/deep/m.ipynb", content)
    await jupyter.ask("DELETE", f"/api/kernels/{second}")
    (server.root / "deep" / "m.ipynb").rename(server.root / "o.ipynb")
    third = await jupyter.open("o.ipynb")
    assert await jupyter.run(third, "print(x)") == "1"
    assert {c["runtime"] for c in await jupyter.checkpoints("o.ipynb")} == {saved["runtime"]}


@pytest.mark.parametrize("first", ["moved.ipynb", "n.ipynb"])
async def test_moved_without_a_trace(server: Server, first: str) -> None:
    """No id was written into the file yet, and another one has come to its old place."""
    notebook = server.write("n.ipynb")
    jupyter = await server.start(
        "--FileIdExtension.file_id_manager_class=jupyter_server_fileid.manager.LocalFileIdManager",
        f"--BaseFileIdManager.db_path={server.home}/file_ids.db",
    )
    kernel_id = await jupyter.open(notebook)
    await jupyter.run(kernel_id, "x = 1")
    saved = await jupyter.save(kernel_id)
    await jupyter.ask("DELETE", f"/api/kernels/{kernel_id}")
    assert "runtime" not in server.metadata(notebook)
    (server.root / notebook).rename(server.root / "moved.ipynb")
    server.write(notebook)
    for name in (first, *({"moved.ipynb", notebook} - {first})):
        printed = await jupyter.run(await jupyter.open(name), "print('x' in globals())")
        assert printed == str(name == "moved.ipynb"), name
    assert [c["id"] for c in await jupyter.checkpoints("moved.ipynb")] == [saved["id"]]
    assert await jupyter.checkpoints(notebook) == []


async def test_a_deleted_notebook_leaves_its_checkpoints_for_a_while(
    server: Server, client: AgentClient
) -> None:
    notebook = server.write("n.ipynb")
    jupyter = await server.start()
    kernel_id = await jupyter.open(notebook)
    saved = await jupyter.save(kernel_id)
    await jupyter.ask("DELETE", f"/api/kernels/{kernel_id}")
    await jupyter.ask("DELETE", f"/api/contents/{notebook}")
    model = await jupyter.ours("GET", f"runtimes/{saved['runtime']}")
    assert model["deleted"] and model["checkpoints"] == 1
    # A new notebook of that name has nothing to do with it.
    server.write(notebook)
    assert await jupyter.checkpoints(notebook) == []
    await server.stop()
    jupyter = await server.start("--Runtimes.orphan_grace=0", "--Runtimes.tidy_interval=0.2")
    async with jupyter.events() as events:
        if await client.checkpoints():
            await events.action("deleted")
    assert await client.checkpoints() == []


DRAW = "print([ssl.RAND_bytes(8).hex(), tempfile.mktemp(), random.random()])"


@pytest.mark.parametrize("reseed", [False, True])
async def test_random_numbers_of_two_kernels(server: Server, reseed: bool) -> None:
    """What has to differ does; what cells compute is the same, unless it is to differ as well."""
    original = server.write("n.ipynb")
    jupyter = await server.start(f"--Runtimes.reseed_random={reseed}")
    kernel_id = await jupyter.open(original)
    # Of IPython's tips one is drawn with `random` whenever somebody asks what kernel this is.
    quiet = "get_ipython().enable_tip = False"
    await jupyter.run(kernel_id, f"import random, ssl, tempfile\n{quiet}\n{DRAW}")
    await jupyter.ours("POST", "remix", {"source": original, "target": "one.ipynb"})
    await jupyter.ours("POST", "remix", {"source": original, "target": "two.ipynb"})
    drawn = []
    for name in ("one.ipynb", "two.ipynb"):
        copy = await jupyter.open(name)
        drawn.append(json.loads((await jupyter.run(copy, DRAW)).replace("'", '"')))
        assert await jupyter.run(copy, "print([n for n in ('os', 'sys') if n in dir()])") == "[]"
    [one, two] = drawn
    assert one[0] != two[0] and one[1] != two[1]
    assert (one[2] != two[2]) == reseed
