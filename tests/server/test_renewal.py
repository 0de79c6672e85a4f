"""What two kernels that come from one state do not share, and what runs after a resume."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .servers import Jupyter, Server

pytestmark = pytest.mark.anyio

WHO = """
import json, socket
from pathlib import Path
print(json.dumps({
    "host": socket.gethostname(),
    "machine": Path("/etc/machine-id").read_text(),
    "key": get_ipython().kernel.session.key.decode(),
    "file": json.loads(Path("/run/jupyter/connection.json").read_text())["key"],
}))
"""


async def who(jupyter: Jupyter, kernel_id: str) -> dict[str, Any]:
    """What tells this kernel from others."""
    told: dict[str, Any] = json.loads(await jupyter.run(kernel_id, WHO))
    return told


async def test_a_remix_is_somebody_else(server: Server) -> None:
    original = server.write("n.ipynb")
    jupyter = await server.start()
    first = await jupyter.open(original)
    await jupyter.run(first, "x = 1")
    before = await who(jupyter, first)
    await jupyter.ours("POST", "remix", {"source": original, "target": "copy.ipynb"})
    second = await jupyter.open("copy.ipynb")
    async with jupyter.page(second) as page:
        assert await page.run("print(x)") == "1"
        copy = await who(jupyter, second)
        for name in ("host", "machine", "key"):
            assert copy[name] != before[name] and len(copy[name]) >= 16, name
        assert copy["file"] == copy["key"]
        assert await who(jupyter, first) == before

        # That is what it is called from now on: saved, put back, woken.
        saved = await jupyter.save(second)
        [remixed] = [c for c in await jupyter.checkpoints("copy.ipynb") if c["trigger"] == "remix"]
        for checkpoint in (saved["id"], remixed["id"]):
            operation = await jupyter.ours(
                "POST", f"checkpoints/{checkpoint}/resume", {"kernel_id": second}
            )
            ended = await jupyter.finished(operation)
            assert ended["state"] == "done", ended
            now = await who(jupyter, second)
            assert (now["host"], now["machine"]) == (copy["host"], copy["machine"])
            # The checkpoint that both share brings the original's key, which is renewed again.
            assert now["key"] != before["key"]
            assert await page.run("print(x)") == "1"
    newest = await jupyter.save(second)
    await jupyter.ask("DELETE", f"/api/kernels/{second}")
    woken = await jupyter.open("copy.ipynb")
    assert newest["id"] == (await jupyter.checkpoints("copy.ipynb"))[0]["id"]
    assert await who(jupyter, woken) == {**now, "file": now["key"]}
    # A restart, which signs with the new key, reaches it as well.
    await jupyter.ask("POST", f"/api/kernels/{woken}/restart")
    async with jupyter.page(woken) as page:
        await page.ready()
        assert await page.run("print('x' in globals())") == "False"


async def test_renewals_can_be_switched_off(server: Server) -> None:
    original = server.write("n.ipynb")
    names = ("host_name", "machine_id", "key")
    jupyter = await server.start(*(f"--Runtimes.renew_{name}=False" for name in names))
    first = await jupyter.open(original)
    await jupyter.save(first)
    await jupyter.ours("POST", "remix", {"source": original, "target": "copy.ipynb"})
    second = await jupyter.open("copy.ipynb")
    assert await who(jupyter, second) == await who(jupyter, first)


async def test_other_kernels_keep_their_key(server: Server) -> None:
    """They have another host name all the same, and answer."""
    original = server.write("n.ipynb", kernel="checkpoints-bash")
    jupyter = await server.start()
    first = await jupyter.open(original, "checkpoints-bash")
    host = await jupyter.run(first, "hostname")
    await jupyter.save(first, mode="process")
    await jupyter.ours("POST", "remix", {"source": original, "target": "copy.ipynb"})
    second = await jupyter.open("copy.ipynb", "checkpoints-bash")
    assert await jupyter.run(second, "hostname") not in ("", host)
    file = "cat /run/jupyter/connection.json"
    assert await jupyter.run(second, file) == await jupyter.run(first, file) != ""


async def test_what_is_registered_runs_before_the_next_cell(server: Server) -> None:
    notebook = server.write("n.ipynb")
    jupyter = await server.start()
    first = await jupyter.open(notebook)
    async with jupyter.page(first) as page:
        await page.run("log = []\n%load_ext jupyter_checkpoints.ipython")
        for text in ("old", "cell"):  # the second takes the first one's place
            await page.run(f"%%on_resume again\nlog.append('{text}')")
        await page.run(
            "from jupyter_checkpoints.ipython import on_resume\n"
            "@on_resume\ndef reconnect(): log.append('function')"
        )
        assert await page.run("print(log)") == "['old', 'cell']"
        saved = await jupyter.save(first)
        operation = await jupyter.ours(
            "POST", f"checkpoints/{saved['id']}/resume", {"kernel_id": first}
        )
        assert (await jupyter.finished(operation))["state"] == "done"
        assert await page.run("print(log)") == "['old', 'cell', 'cell', 'function']"
        # It leaves no trace in the history.
        assert await page.run("print(In[-2:])") == "['print(log)', 'print(In[-2:])']"
    await jupyter.ask("DELETE", f"/api/kernels/{first}")
    second = await jupyter.open(notebook)
    assert await jupyter.run(second, "print(log)") == "['old', 'cell', 'cell', 'function']"


async def test_what_is_registered_and_fails_is_told(server: Server) -> None:
    notebook = server.write("n.ipynb")
    jupyter = await server.start()
    first = await jupyter.open(notebook)
    await jupyter.run(
        first,
        "from jupyter_checkpoints.ipython import on_resume\nlog = []\n"
        "@on_resume\ndef broken(): return database\n"
        "@on_resume\ndef works(): log.append('works')",
    )
    await jupyter.save(first)
    await jupyter.ask("DELETE", f"/api/kernels/{first}")
    second = await jupyter.open(notebook)
    async with jupyter.page(second) as page:
        info = await page.reply(await page.send("shell", "kernel_info_request", {}))
        assert "broken: NameError" in info["banner"]
        assert await page.run("print(log)") == "['works']"
