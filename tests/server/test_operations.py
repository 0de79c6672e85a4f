"""Long work is cancelled: nothing is kept of it, and everything goes on as it was."""

from __future__ import annotations

from typing import Any

import pytest

from jupyter_checkpoints.client import AgentClient

from .servers import Jupyter, Server

pytestmark = pytest.mark.anyio

#: So much that no save and no resume is done before it is cancelled.
BIG = "import os; big = os.urandom(400 * 2**20); x = 1"


async def cancel(jupyter: Jupyter, operation: dict[str, Any]) -> dict[str, Any]:
    """Cancel an operation; returns it when it has ended."""
    asked = await jupyter.request("DELETE", f"/jupyter-checkpoints/operations/{operation['id']}")
    assert asked.status_code == 202, asked.text
    assert asked.headers["Location"].endswith(operation["id"])
    return await jupyter.finished(asked.json())


async def test_a_cancelled_save(server: Server, client: AgentClient) -> None:
    """The agent's fixture sees that nothing is left of it on the disk."""
    jupyter = await server.start()
    kernel_id = await jupyter.open(server.write("n.ipynb"))
    async with jupyter.events() as events, jupyter.page(kernel_id) as page:
        await page.run(BIG)
        started = await jupyter.ours("POST", "checkpoints", {"kernel_id": kernel_id})
        await events.action("progress")
        ended = await cancel(jupyter, started)
        assert (ended["state"], ended["error"]["code"]) == ("cancelled", "Cancelled")
        told = await events.action("cancelled")
        assert (told["operation"], told["kernel_id"]) == (started["id"], kernel_id)
        assert await client.checkpoints() == []
        assert (await client.kernel(kernel_id)).state == "running"
        assert await page.run("print(x)") == "1"
        saved = await jupyter.save(kernel_id)
        assert [c.id for c in await client.checkpoints()] == [saved["id"]]
    late = await jupyter.request("DELETE", f"/jupyter-checkpoints/operations/{started['id']}")
    assert late.status_code == 409
    unknown = await jupyter.request("DELETE", "/jupyter-checkpoints/operations/unknown")
    assert unknown.status_code == 404


async def test_a_save_that_waits_for_its_turn(server: Server, client: AgentClient) -> None:
    jupyter = await server.start("--Runtimes.max_concurrent_saves=1")
    first, second = [await jupyter.open(server.write(n)) for n in ("a.ipynb", "b.ipynb")]
    await jupyter.run(first, BIG)
    running = await jupyter.ours("POST", "checkpoints", {"kernel_id": first})
    waiting = await jupyter.ours("POST", "checkpoints", {"kernel_id": second})
    assert (await cancel(jupyter, waiting))["state"] == "cancelled"
    assert (await jupyter.finished(running))["state"] == "done"
    assert [c.kernel_id for c in await client.checkpoints()] == [first]


async def test_a_cancelled_resume_in_place(server: Server, client: AgentClient) -> None:
    jupyter = await server.start()
    kernel_id = await jupyter.open(server.write("n.ipynb"))
    async with jupyter.events() as events, jupyter.page(kernel_id) as page:
        await page.run(BIG)
        saved = await jupyter.save(kernel_id)
        await page.run("x = 2")
        started = await jupyter.ours(
            "POST", f"checkpoints/{saved['id']}/resume", {"kernel_id": kernel_id}
        )
        assert (await cancel(jupyter, started))["state"] == "cancelled"
        told = await events.action("resume_cancelled")
        assert (told["kernel_id"], told["in_place"]) == (kernel_id, True)
        # It is what it was, and can still be put back.
        assert await page.run("print(x)") == "2"
        assert [c.id for c in await client.checkpoints()] == [saved["id"]]
        again = await jupyter.ours(
            "POST", f"checkpoints/{saved['id']}/resume", {"kernel_id": kernel_id}
        )
        assert (await jupyter.finished(again))["state"] == "done"
        assert await page.run("print(x)") == "1"


async def test_a_cancelled_resume_in_a_new_kernel(server: Server, client: AgentClient) -> None:
    jupyter = await server.start()
    kernel_id = await jupyter.open(server.write("n.ipynb"))
    await jupyter.run(kernel_id, BIG)
    saved = await jupyter.save(kernel_id)
    async with jupyter.events() as events:
        started = await jupyter.ours("POST", f"checkpoints/{saved['id']}/resume", {})
        assert (await cancel(jupyter, started))["state"] == "cancelled"
        assert (await events.action("resume_cancelled"))["in_place"] is False
    [session] = await jupyter.get("/api/sessions")
    assert session["kernel"]["id"] == kernel_id
    assert await jupyter.kernels() == [kernel_id]
    assert [k.id for k in await client.kernels()] == [kernel_id]
    assert await jupyter.run(kernel_id, "print(x)") == "1"


async def test_a_cull_that_somebody_cancels_keeps_the_kernel(server: Server) -> None:
    """Also where kernels that cannot be saved are let go: whoever cancels wants to go on."""
    jupyter = await server.start(
        "--MappingKernelManager.cull_idle_timeout=2",
        "--MappingKernelManager.cull_interval=1",
        "--Runtimes.on_save_failure=release",
    )
    kernel_id = await jupyter.open(server.write("n.ipynb"))
    async with jupyter.events() as events:
        await jupyter.run(kernel_id, BIG)
        saving = await events.until(lambda e: e.get("trigger") == "cull")
        await cancel(jupyter, {"id": saving["operation"]})
        assert (await events.action("kept"))["kernel_id"] == kernel_id
        assert await jupyter.run(kernel_id, "print(x)") == "1"


async def test_verified(server: Server) -> None:
    jupyter = await server.start()
    kernel_id = await jupyter.open(server.write("n.ipynb"))
    saved = await jupyter.save(kernel_id)
    path = f"checkpoints/{saved['id']}"
    assert (await jupyter.ours("GET", path))["verified"] is None
    async with jupyter.events() as events:
        ended = await jupyter.finished(await jupyter.ours("POST", f"{path}/verify"))
        assert ended["state"] == "done" and ended["result"]["ok"]
        assert (await events.action("verified"))["ok"] is True
    verified = (await jupyter.ours("GET", path))["verified"]
    assert verified["ok"] and verified["at"] > saved["created"]
