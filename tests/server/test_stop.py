"""Servers stop, are killed, and come back; danger; kernels that nobody has used for a while."""

from __future__ import annotations

import signal

import pytest

from jupyter_checkpoints.client import AgentClient

from .servers import Server

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["term", "interrupt"])
async def test_stopped_and_started_again(server: Server, client: AgentClient, signum: int) -> None:
    names = [server.write(f"n{n}.ipynb") for n in range(3)]
    off = server.write("off.ipynb", settings=None)
    jupyter = await server.start()
    for number, name in enumerate([*names, off]):
        await jupyter.run(await jupyter.open(name), f"x = {number}")
    await server.stop(signum)
    assert await client.kernels() == []
    assert {c.trigger for c in await client.checkpoints()} == {"shutdown"}
    assert len(await client.checkpoints()) == 3

    jupyter = await server.start()
    for number, name in enumerate(names):
        assert await jupyter.run(await jupyter.open(name), "print(x)") == str(number)
    fresh = await jupyter.open(off)
    assert await jupyter.run(fresh, "print('x' in globals())") == "False"


async def test_what_could_not_be_saved_is_named(server: Server) -> None:
    notebook = server.write("deep/n.ipynb")
    jupyter = await server.start("--Runtimes.shutdown_save_timeout=0.01")
    kernel_id = await jupyter.open(notebook)
    await jupyter.run(kernel_id, "x = 1")
    log = await server.stop(signal.SIGTERM)
    assert f"Kernel {kernel_id} ({notebook}) could not be saved before the server stops" in log
    assert "longer than 0.01 seconds" in log


async def test_killed(server: Server) -> None:
    """The last autosave goes on: here that of a kernel that was idle."""
    notebook = server.write("n.ipynb")
    jupyter = await server.start("--Runtimes.autosave_idle_timeout=1")
    async with jupyter.events() as events:
        kernel_id = await jupyter.open(notebook)
        await jupyter.run(kernel_id, "x = 'saved'")
        saved = await events.action("done")
        assert (saved["trigger"], saved["notebook"]) == ("idle", notebook)
    await server.stop(signal.SIGKILL)

    jupyter = await server.start()
    assert await jupyter.run(await jupyter.open(notebook), "print(x)") == "saved"


async def test_an_idle_kernel_is_saved_once(server: Server, client: AgentClient) -> None:
    notebook = server.write("n.ipynb")
    jupyter = await server.start("--Runtimes.autosave_idle_timeout=0.5")
    kernel_id = await jupyter.open(notebook)
    async with jupyter.events() as events:
        for number in range(2):
            await jupyter.run(kernel_id, f"x = {number}")
            await events.action("done")
    saved = await client.checkpoints()
    # A save asked for by hand comes after several more looks at the idle kernel.
    await jupyter.save(kernel_id)
    await jupyter.save(kernel_id)
    assert [c.trigger for c in saved] == ["idle", "idle"]
    assert [c.trigger for c in await client.checkpoints()] == ["manual", "manual", "idle", "idle"]


async def test_a_kernel_that_works_by_itself_is_saved_again(
    server: Server, client: AgentClient
) -> None:
    """Nobody runs anything, but a thread does: its state is in the next checkpoint."""
    notebook = server.write("n.ipynb")
    jupyter = await server.start("--Runtimes.autosave_idle_timeout=1")
    kernel_id = await jupyter.open(notebook)
    async with jupyter.events() as events:
        await jupyter.run(
            kernel_id,
            "import os, threading, time\nx = 1\n"
            "def work():\n"
            "    global x\n"
            "    while not os.path.exists('go'): time.sleep(0.1)\n"
            "    x, end = 2, time.thread_time() + 0.5\n"
            "    while time.thread_time() < end: pass\n"
            "threading.Thread(target=work, daemon=True).start()",
        )
        first = await events.action("done")
        (server.root / "go").touch()
        second = await events.action("done")
    assert (first["trigger"], second["trigger"]) == ("idle", "idle")
    await server.stop(signal.SIGKILL)
    jupyter = await server.start()
    assert await jupyter.run(await jupyter.open(notebook), "print(x)") == "2"


async def test_danger(server: Server, client: AgentClient) -> None:
    on, off = server.write("on.ipynb"), server.write("off.ipynb", settings=None)
    jupyter = await server.start()
    for name in (on, off):
        await jupyter.run(await jupyter.open(name), "x = 1")
    assert await jupyter.ours("POST", "danger", {"reason": "spot notice"}) == {"failed": {}}
    [saved] = await client.checkpoints()
    assert saved.trigger == "danger"


async def test_memory_near_its_limit(server: Server, kernelspec_prefix: object) -> None:
    from jupyter_checkpoints import kernelspecs

    kernelspecs.add(
        "small",
        image=kernelspecs.DEFAULT_IMAGE,
        argv=["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        config={"mem_limit": "400M"},
        prefix=str(kernelspec_prefix),
        replace=True,
    )
    notebook = server.write("n.ipynb", kernel="small")
    jupyter = await server.start("--Runtimes.watch_interval=0.5", "--Runtimes.danger_memory=0.7")
    kernel_id = await jupyter.open(notebook, "small")
    async with jupyter.events() as events:
        await jupyter.run(kernel_id, "import os; big = os.urandom(300 * 2**20)")
        saved = await events.action("done")
    assert (saved["trigger"], saved["kernel_id"]) == ("danger", kernel_id)


async def test_saved_before_a_restart(server: Server, client: AgentClient) -> None:
    notebook = server.write("n.ipynb")
    jupyter = await server.start("--Runtimes.autosave_before_restart=True")
    kernel_id = await jupyter.open(notebook)
    await jupyter.run(kernel_id, "x = 1")
    await jupyter.ask("POST", f"/api/kernels/{kernel_id}/restart")
    [saved] = await client.checkpoints()
    assert saved.trigger == "restart"
    assert await jupyter.run(kernel_id, "print('x' in globals())") == "False"
