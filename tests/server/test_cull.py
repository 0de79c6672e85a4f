"""Idle kernels are culled when they are saved, and not before; the next cell goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from jupyter_checkpoints import kernelspecs
from jupyter_checkpoints.client import AgentClient

from .servers import Server

pytestmark = pytest.mark.anyio

#: A process that has a tracer already cannot be saved.
UNSAVABLE = """
import subprocess
x = 1
child = (
    "import ctypes, time; ctypes.CDLL(None).ptrace(0, 0, 0, 0); "
    "print('traced', flush=True); time.sleep(1e6)"
)
traced = subprocess.Popen(["python", "-c", child], stdout=subprocess.PIPE)
traced.stdout.readline()
"""

CULLING = (
    # Long enough for a page to come on a machine that has much to do.
    "--MappingKernelManager.cull_idle_timeout=3",
    "--MappingKernelManager.cull_interval=1",
    "--MappingKernelManager.cull_connected=True",
)


async def test_a_culled_kernel_goes_on_with_the_next_cell(server: Server) -> None:
    notebook = server.write("deep/n.ipynb", "x = 1")
    jupyter = await server.start(*CULLING)
    async with jupyter.events() as events:
        first = await jupyter.open(notebook)
        async with jupyter.page(first) as page:
            await page.run("x = 20\nimport os; open('/tmp/y', 'w').write('22')")
            await jupyter.gone(first)
        culled = await events.action("culled")
        [saved] = await jupyter.checkpoints(notebook)
        assert (saved["trigger"], saved["id"]) == ("cull", culled["checkpoint"])
        assert culled["notebook"] == notebook

        second = await jupyter.open(notebook)
        assert second != first
        assert await jupyter.run(second, "print(x + int(open('/tmp/y').read()))") == "42"
        resumed = await events.action("resumed")
        assert (resumed["kernel_id"], resumed["checkpoint"]) == (second, saved["id"])


async def test_ten_at_once(server: Server) -> None:
    names = [server.write(f"n{n}.ipynb") for n in range(10)]
    jupyter = await server.start(
        "--MappingKernelManager.cull_idle_timeout=8",
        "--MappingKernelManager.cull_interval=1",
    )
    kernels = [await jupyter.open(name) for name in names]
    for number, kernel_id in enumerate(kernels):
        await jupyter.run(kernel_id, f"x = {number}")
    await jupyter.gone(*kernels)
    for number, name in enumerate(names):
        [saved] = await jupyter.checkpoints(name)
        assert saved["kernel_id"] == kernels[number]
    woken = await jupyter.open(names[7])
    assert await jupyter.run(woken, "print(x)") == "7"


async def test_nothing_is_saved_of_a_notebook_that_does_not_ask(
    server: Server, client: AgentClient
) -> None:
    names = [
        server.write("none.ipynb", settings=None),
        server.write("off.ipynb", settings={"enabled": False, "autosave": True}),
        server.write("by-hand.ipynb", settings={"enabled": True, "autosave": False}),
        server.write("nonsense.ipynb", settings={"enabled": "yes"}),
    ]
    # Not at once: the first of them is asked for while it is there.
    jupyter = await server.start(*CULLING[1:], "--MappingKernelManager.cull_idle_timeout=5")
    async with jupyter.events() as events:
        kernels = [await jupyter.open(name) for name in names]
        told = await events.action("bad_metadata")
        assert told["notebook"] == "nonsense.ipynb" and "enabled" in told["reason"]
        refused = await jupyter.request(
            "POST", "/jupyter-checkpoints/checkpoints", {"kernel_id": kernels[0]}
        )
        assert refused.status_code == 409 and "not switched on" in refused.json()["message"]
        await jupyter.gone(*kernels)
    assert await client.checkpoints() == []


async def test_a_kernel_that_was_never_used_is_not_saved(
    server: Server, client: AgentClient
) -> None:
    """An empty state would be newer than the one that its user wants back."""
    notebook = server.write("n.ipynb")
    jupyter = await server.start(*CULLING)
    first = await jupyter.open(notebook)
    await jupyter.run(first, "x = 1")
    await jupyter.gone(first)
    [saved] = await jupyter.checkpoints(notebook)
    # Woken, but nothing is done: no second copy, only a newer moment.
    second = await jupyter.open(notebook)
    await jupyter.gone(second)
    [touched] = await jupyter.checkpoints(notebook)
    assert touched["id"] == saved["id"] and touched["touched"] > saved["created"]
    third = await jupyter.open(notebook)
    assert await jupyter.run(third, "print(x)") == "1"


async def test_a_failing_save_keeps_the_kernel(server: Server) -> None:
    notebook = server.write("n.ipynb")
    jupyter = await server.start(*CULLING)
    kernel_id = await jupyter.open(notebook)
    async with jupyter.events() as events:
        async with jupyter.page(kernel_id) as page:
            await page.run(UNSAVABLE)
        kept = await events.action("kept")
        assert kept["kernel_id"] == kernel_id and kept["message"]
        failed = next(e for e in events.seen if e.get("action") == "failed")
        assert failed["trigger"] == "cull" and failed["notebook"] == notebook
        assert await jupyter.run(kernel_id, "print(x)") == "1"
        # When it can be saved again it is, and is culled.
        await jupyter.run(kernel_id, "traced.kill(); traced.wait(); traced.stdout.close()")
        await events.action("culled")
    await jupyter.gone(kernel_id)
    woken = await jupyter.open(notebook)
    assert await jupyter.run(woken, "print(x)") == "1"


async def test_a_kernel_that_cannot_be_saved_may_be_let_go(server: Server) -> None:
    notebook = server.write("n.ipynb")
    jupyter = await server.start(*CULLING, "--Runtimes.on_save_failure=release")
    kernel_id = await jupyter.open(notebook)
    async with jupyter.events() as events:
        await jupyter.run(kernel_id, UNSAVABLE)
        culled = await events.action("culled")
        assert culled["kernel_id"] == kernel_id and "checkpoint" not in culled
    await jupyter.gone(kernel_id)
    assert await jupyter.checkpoints(notebook) == []


async def test_a_kernelspec_may_have_a_timeout_of_its_own(
    server: Server, kernelspec_prefix: Path
) -> None:
    kernelspecs.add(
        "soon",
        image=kernelspecs.DEFAULT_IMAGE,
        argv=["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        metadata={"cull_idle_timeout": 1},
        prefix=str(kernelspec_prefix),
        replace=True,
    )
    notebook = server.write("n.ipynb", kernel="soon")
    jupyter = await server.start(
        "--MappingKernelManager.cull_idle_timeout=3600",
        "--MappingKernelManager.cull_interval=1",
    )
    kernel_id = await jupyter.open(notebook, "soon")
    await jupyter.run(kernel_id, "x = 5")
    await jupyter.gone(kernel_id)
    woken = await jupyter.open(notebook, "soon")
    assert await jupyter.run(woken, "print(x)") == "5"
