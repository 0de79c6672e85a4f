"""Kernels are put back in place, under a page that stays; and what happens when they are not."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from jupyter_checkpoints.client import AgentClient

from ..agent.agents import Agent
from .servers import PYTHON, Jupyter, Server

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(900)]

TIMES = 50


async def resume(jupyter: Jupyter, checkpoint: str, **body: Any) -> dict[str, Any]:
    operation: dict[str, Any]
    operation = await jupyter.ours("POST", f"checkpoints/{checkpoint}/resume", body)
    return operation


async def test_an_older_state_under_an_open_page(server: Server) -> None:
    """Half of the cells are sent while the kernel is being resumed: they wait for its new state."""
    notebook = server.write("n.ipynb")
    jupyter = await server.start()
    kernel_id = await jupyter.open(notebook)
    answered = 0
    async with jupyter.page(kernel_id) as page:
        await page.run("x = 'saved'")
        saved = await jupyter.save(kernel_id)
        for n in range(TIMES):
            assert await page.run(f"x = {n}; print(x)") == str(n)
            operation = await resume(jupyter, saved["id"], kernel_id=kernel_id)
            if n % 2:
                cell = await page.begin("print(x)")
                ended = await jupyter.finished(operation)
                answered += await page.finish(cell) == "saved"
            else:
                ended = await jupyter.finished(operation)
                answered += await page.run("print(x)") == "saved"
            assert ended["state"] == "done", ended
    assert answered == TIMES
    [model] = await jupyter.get("/api/kernels")
    assert (model["id"], model["execution_state"]) == (kernel_id, "idle")


async def test_no_request_to_end_reaches_a_kernel_that_is_being_resumed(server: Server) -> None:
    notebook = server.write("n.ipynb")
    jupyter = await server.start()
    kernel_id = await jupyter.open(notebook)
    async with jupyter.page(kernel_id) as page:
        await page.run("x = 'saved'")
        saved = await jupyter.save(kernel_id)
        operation = await resume(jupyter, saved["id"], kernel_id=kernel_id)
        await page.send("control", "shutdown_request", {"restart": False})
        await page.send("control", "interrupt_request", {})
        refused = await jupyter.request("POST", f"/api/kernels/{kernel_id}/interrupt")
        twice = await jupyter.request(
            "POST",
            f"/jupyter-checkpoints/checkpoints/{saved['id']}/resume",
            {"kernel_id": kernel_id},
        )
        assert (refused.status_code, twice.status_code) == (409, 409)
        assert (await jupyter.finished(operation))["state"] == "done"
        assert await page.run("print(x)") == "saved"

        # A restart waits for its turn, and is one then.
        operation = await resume(jupyter, saved["id"], kernel_id=kernel_id)
        await jupyter.ask("POST", f"/api/kernels/{kernel_id}/restart")
        assert (await jupyter.finished(operation))["state"] == "done"
        await page.ready()
        assert await page.run("print('x' in globals())") == "False"
    await jupyter.ask("DELETE", f"/api/kernels/{kernel_id}")
    assert "Dropped a shutdown_request" in server.log.read_text()


async def test_a_state_with_another_key(server: Server) -> None:
    """A checkpoint of an earlier kernel, which signed its messages with a key of its own."""
    notebook = server.write("n.ipynb")
    jupyter = await server.start()
    first = await jupyter.open(notebook)
    await jupyter.run(first, "x = 'first'")
    saved = await jupyter.save(first)
    await jupyter.ours("POST", f"runtimes/{saved['runtime']}/fresh")
    await jupyter.ask("DELETE", f"/api/kernels/{first}")
    second = await jupyter.open(notebook)
    async with jupyter.page(second) as page:
        assert await page.run("print('x' in globals())") == "False"
        ended = await jupyter.finished(await resume(jupyter, saved["id"], kernel_id=second))
        assert ended["state"] == "done"
        assert await page.run("print(x)") == "first"
        async with jupyter.page(second) as another:
            assert await another.run("print(x)") == "first"
        # The server hears of it, too: it knows that the kernel is idle, and can restart it.
        await jupyter.ask("POST", f"/api/kernels/{second}/restart")
        await page.ready()
        assert await page.run("print('x' in globals())") == "False"


async def test_in_a_new_kernel(server: Server, client: AgentClient) -> None:
    notebook = server.write("n.ipynb")
    jupyter = await server.start()
    first = await jupyter.open(notebook)
    await jupyter.run(first, "x = 1")
    saved = await jupyter.save(first)
    ended = await jupyter.finished(await resume(jupyter, saved["id"]))
    second = ended["result"]["kernel_id"]
    assert ended["result"]["notebook"] == notebook and second != first
    assert await jupyter.run(second, "print(x)") == "1"
    # It is the session's kernel now, and the other one has ended.
    [session] = await jupyter.get("/api/sessions")
    assert session["kernel"]["id"] == second
    assert [k.id for k in await client.kernels()] == [second]


async def test_a_damaged_checkpoint_starts_a_fresh_kernel_that_says_why(
    agent: Agent, server: Server
) -> None:
    notebook = server.write("n.ipynb")
    jupyter = await server.start()
    first = await jupyter.open(notebook)
    await jupyter.run(first, "x = 1")
    saved = await jupyter.save(first)
    await jupyter.ask("DELETE", f"/api/kernels/{first}")
    agent.damage(saved["id"], "core-1.img")
    async with jupyter.events() as events:
        second = await jupyter.open(notebook)
        failed = await events.action("resume_failed")
        assert (failed["kernel_id"], failed["checkpoint"]) == (second, saved["id"])
    async with jupyter.page(second) as page:
        info = await page.reply(await page.send("shell", "kernel_info_request", {}))
        assert "started fresh" in info["banner"] and "damaged" in info["banner"]
        assert await page.run("print('x' in globals())") == "False"
    assert [c["id"] for c in await jupyter.checkpoints(notebook)] == [saved["id"]]


async def test_findings_of_preflight_are_told(server: Server) -> None:
    notebook = server.write("n.ipynb")
    jupyter = await server.start()
    first = await jupyter.open(notebook)
    await jupyter.run(first, "file = open('data.csv', 'w'); file.write('1'); file.flush(); x = 1")
    saved = await jupyter.save(first)
    await jupyter.ask("DELETE", f"/api/kernels/{first}")
    (server.root / "data.csv").unlink()
    report = await jupyter.ours("GET", f"checkpoints/{saved['id']}/preflight")
    assert not report["ok"]
    async with jupyter.events() as events:
        second = await jupyter.open(notebook)
        event = await events.until(lambda e: "findings" in e)
    assert [f["code"] for f in event["findings"]] == ["file-missing"]
    assert await jupyter.run(second, "print('x' in globals())") == "False"
    # Put back, it can be resumed after all.
    (server.root / "data.csv").write_text("1")
    ended = await jupyter.finished(await resume(jupyter, saved["id"]))
    assert await jupyter.run(ended["result"]["kernel_id"], "print(x)") == "1"


async def test_another_kernelspec_is_not_resumed(server: Server) -> None:
    notebook = server.write("n.ipynb")
    jupyter = await server.start()
    first = await jupyter.open(notebook)
    await jupyter.run(first, "x = 1")
    await jupyter.save(first)
    await jupyter.ask("DELETE", f"/api/kernels/{first}")
    bash = await jupyter.open(notebook, "checkpoints-bash")
    assert await jupyter.run(bash, "echo ${x-nothing}") == "nothing"
    await jupyter.ask("DELETE", f"/api/kernels/{bash}")
    assert await jupyter.run(await jupyter.open(notebook, PYTHON), "print(x)") == "1"


async def test_cells_that_run_on_resume(server: Server) -> None:
    """They run before anybody else's, and leave no trace in the history."""
    notebook = server.write("n.ipynb", "log.append('resumed')", tags=["on-resume"])
    jupyter = await server.start()
    first = await jupyter.open(notebook)
    await jupyter.run(first, "log = ['started']")
    saved = await jupyter.save(first)
    await jupyter.ask("DELETE", f"/api/kernels/{first}")
    second = await jupyter.open(notebook)
    async with jupyter.page(second) as page:
        assert await page.run("print(log)") == "['started', 'resumed']"
        await jupyter.finished(await resume(jupyter, saved["id"], kernel_id=second))
        assert await page.run("print(log, In[-2:])") == (
            "['started', 'resumed'] [\"log = ['started']\", 'print(log, In[-2:])']"
        )


async def test_a_cell_that_fails_on_resume_is_told(server: Server) -> None:
    notebook = server.write("n.ipynb", "reconnect()", tags=["on-resume"])
    jupyter = await server.start()
    first = await jupyter.open(notebook)
    await jupyter.run(first, "x = 1")
    await jupyter.save(first)
    await jupyter.ask("DELETE", f"/api/kernels/{first}")
    second = await jupyter.open(notebook)
    async with jupyter.page(second) as page:
        info = await page.reply(await page.send("shell", "kernel_info_request", {}))
        assert "NameError" in info["banner"]
        assert await page.run("print(x)") == "1"


async def test_a_running_cell_of_the_state_before_is_given_up(server: Server) -> None:
    notebook = server.write("n.ipynb")
    jupyter = await server.start()
    kernel_id = await jupyter.open(notebook)
    async with jupyter.page(kernel_id) as page:
        await page.run("x = 'saved'")
        saved = await jupyter.save(kernel_id)
        await page.begin("x = 'running'\nprint(x)\nwhile True: pass")
        while (await page.next())[1]["msg_type"] != "stream":
            pass
        ended = await jupyter.finished(await resume(jupyter, saved["id"], kernel_id=kernel_id))
        assert ended["state"] == "done"
        assert await page.run("print(x)") == "saved"
        with anyio.fail_after(10):
            [model] = await jupyter.get("/api/kernels")
        assert model["execution_state"] == "idle"


async def test_in_the_middle_of_a_cell(server: Server) -> None:
    """It goes on with the cell, and answers when that is done."""
    notebook = server.write("n.ipynb", "log.append('resumed')", tags=["on-resume"])
    jupyter = await server.start()
    first = await jupyter.open(notebook)
    async with jupyter.page(first) as page:
        await page.begin(
            "import os, time\nlog = ['started']\nprint('on', flush=True)\n"
            "while not os.path.exists('go'): time.sleep(0.01)\nlog.append('done')"
        )
        while (await page.next())[1]["msg_type"] != "stream":
            pass
        saved = await jupyter.save(first)
    await jupyter.ask("DELETE", f"/api/kernels/{first}")
    second = await jupyter.open(notebook)
    assert second in await jupyter.kernels()
    (server.root / "go").touch()
    assert await jupyter.run(second, "print(log)") == "['started', 'done']"
    (server.root / "go").unlink()
    ended = await jupyter.finished(await resume(jupyter, saved["id"], kernel_id=second))
    assert ended["state"] == "done"
    [model] = await jupyter.get("/api/kernels")
    assert model["execution_state"] == "busy"
    (server.root / "go").touch()
    assert await jupyter.run(second, "print(log)") == "['started', 'done']"
