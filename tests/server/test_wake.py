"""A notebook's next kernel: from its checkpoint, once, or afresh on request."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from jupyter_checkpoints.client import AgentClient

from .servers import PYTHON, Jupyter, Server

pytestmark = pytest.mark.anyio


async def slept(jupyter: Jupyter, notebook: str) -> dict[str, Any]:
    """A notebook with ``x = 1`` in its checkpoint, and without a kernel; the checkpoint."""
    kernel_id = await jupyter.open(notebook)
    await jupyter.run(kernel_id, "x = 1")
    saved = await jupyter.save(kernel_id)
    await jupyter.ask("DELETE", f"/api/kernels/{kernel_id}")
    return saved


def session(notebook: str) -> dict[str, Any]:
    return {"path": notebook, "name": notebook, "type": "notebook", "kernel": {"name": PYTHON}}


@pytest.mark.parametrize("how", ["flag", "notebook", "runtime"])
async def test_a_fresh_start_leaves_the_checkpoint(server: Server, how: str) -> None:
    notebook = server.write("n.ipynb")
    jupyter = await server.start()
    saved = await slept(jupyter, notebook)
    flag = ""
    match how:
        case "flag":
            flag = "?fresh"
        case "notebook":
            await jupyter.ours("POST", "fresh", {"notebook": notebook})
        case "runtime":
            await jupyter.ours("POST", f"runtimes/{saved['runtime']}/fresh")
    made = await jupyter.ask("POST", f"/api/sessions{flag}", session(notebook))
    fresh = made["kernel"]["id"]
    assert await jupyter.run(fresh, "print('x' in globals())") == "False"
    assert [c["id"] for c in await jupyter.checkpoints(notebook)] == [saved["id"]]
    # That was once.
    await jupyter.ask("DELETE", f"/api/kernels/{fresh}")
    made = await jupyter.ask("POST", "/api/sessions?fresh=0", session(notebook))
    assert await jupyter.run(made["kernel"]["id"], "print(x)") == "1"


async def test_what_is_saved_after_a_wish_for_a_fresh_start_is_resumed(server: Server) -> None:
    notebook = server.write("n.ipynb")
    jupyter = await server.start()
    await slept(jupyter, notebook)
    running = await jupyter.ask("POST", "/api/sessions", session(notebook))
    # There is a kernel, so nobody starts one now.
    await jupyter.ours("POST", "fresh", {"notebook": notebook})
    await jupyter.run(running["kernel"]["id"], "x = 2")
    await jupyter.save(running["kernel"]["id"])
    await jupyter.ask("DELETE", f"/api/kernels/{running['kernel']['id']}")
    made = await jupyter.ask("POST", "/api/sessions", session(notebook))
    assert await jupyter.run(made["kernel"]["id"], "print(x)") == "2"


async def test_two_starts_at_once_are_one(server: Server, client: AgentClient) -> None:
    notebook, other = server.write("n.ipynb"), server.write("other.ipynb")
    jupyter = await server.start()
    await slept(jupyter, notebook)
    paths = [notebook, notebook, notebook, other]
    made = await asyncio.gather(
        *(jupyter.ask("POST", "/api/sessions", session(path)) for path in paths)
    )
    [one, two, three, four] = [m["kernel"]["id"] for m in made]
    assert one == two == three != four
    assert {k.id for k in await client.kernels()} == {one, four}
    assert len(await jupyter.get("/api/sessions")) == 2
    assert await jupyter.run(one, "print(x)") == "1"


async def test_two_resumes_at_once_leave_one_kernel(server: Server, client: AgentClient) -> None:
    notebook = server.write("n.ipynb")
    jupyter = await server.start()
    saved = await slept(jupyter, notebook)
    path = f"checkpoints/{saved['id']}/resume"
    begun = await asyncio.gather(*(jupyter.ours("POST", path, {}) for _ in range(2)))
    ended = [await jupyter.finished(operation) for operation in begun]
    assert [e["state"] for e in ended] == ["done", "done"]
    [open_session] = await jupyter.get("/api/sessions")
    [kernel] = await client.kernels()
    assert open_session["kernel"]["id"] == kernel.id
    assert kernel.id in [e["result"]["kernel_id"] for e in ended]
    assert await jupyter.run(kernel.id, "print(x)") == "1"


async def test_requests_that_cannot_be_read_are_answered_as_ever(server: Server) -> None:
    jupyter = await server.start()
    bodies: list[Any] = [None, [], {"path": 1}, {"type": "notebook"}]
    for body in bodies:
        answer = await jupyter.request("POST", "/api/sessions", body)
        assert answer.status_code >= 400, body
    assert await jupyter.get("/api/sessions") == []


async def test_the_number_of_the_last_cell(server: Server) -> None:
    notebook = server.write("n.ipynb")
    jupyter = await server.start()
    kernel_id = await jupyter.open(notebook)

    async def count() -> int | None:
        saved = await jupyter.save(kernel_id)
        number: int | None = saved["execution_count"]
        return number

    assert await count() == 0
    async with jupyter.page(kernel_id) as page:
        for _ in range(3):
            await page.run("pass")
        assert await count() == 3
        back = await jupyter.save(kernel_id)
        await page.run("pass")
        assert await count() == 4
        again = await jupyter.ours(
            "POST", f"checkpoints/{back['id']}/resume", {"kernel_id": kernel_id}
        )
        await jupyter.finished(again)
        assert await count() == 3
    await jupyter.ask("DELETE", f"/api/kernels/{kernel_id}")
    kernel_id = await jupyter.open(notebook)
    assert await count() == 3
    await jupyter.ask("POST", f"/api/kernels/{kernel_id}/restart")
    assert await count() == 0
