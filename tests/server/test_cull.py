"""Idle kernels are culled when they are saved, and not before; the next cell goes on."""

from __future__ import annotations

import pytest

from .servers import Server

pytestmark = pytest.mark.anyio

CULLING = (
    "--MappingKernelManager.cull_idle_timeout=1",
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
