"""The REST interface: what its description promises, who may use it, and what bad input does."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.routes import HANDLERS, OPENAPI, PREFIX

from .servers import Jupyter, Server
from .test_cull import UNSAVABLE

pytestmark = pytest.mark.anyio

DESCRIPTION = yaml.safe_load(OPENAPI.read_text())
METHODS = ("get", "post", "patch", "put", "delete")


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path and description of everything that is described."""
    for path, item in DESCRIPTION["paths"].items():
        for method in METHODS:
            if method in item:
                yield method, path, item[method]


#: What paths with a user in them have in his place.
USER = r"(\*|[^/]+)"


def test_all_is_described() -> None:
    described = {(path, method) for method, path, _ in operations()}
    there = set()
    for pattern, handler, *_ in HANDLERS:
        path = pattern.removeprefix(PREFIX)
        for placeholder in ("runtime", "checkpoint_id", "kernel_id", "operation_id"):
            if placeholder.partition("_")[0] in path:
                path = path.replace("([^/]+)", f"{{{placeholder}}}").replace(USER, "{user}")
        there |= {(path, method) for method in METHODS if method in vars(handler)}
    assert described == there


AUTHORIZER = """
from jupyter_server.auth import Authorizer

class {name}(Authorizer):
    def is_authorized(self, handler, user, action, resource):
        self.log.warning("ASKED %s %s", action, resource)
        return resource != "runtime_checkpoints"

c.ServerApp.authorizer_class = {name}
"""


async def test_nobody_who_is_not_authorized(server: Server) -> None:
    config = server.home / "config" / "jupyter_server_config.py"
    config.write_text(AUTHORIZER.format(name="Refuse"))
    jupyter = await server.start()
    for method, path, described in operations():
        url = "/jupyter-checkpoints" + path
        for placeholder in ("runtime", "checkpoint_id", "kernel_id", "operation_id", "user"):
            url = url.replace(f"{{{placeholder}}}", "x1")
        refused = await jupyter.request(method.upper(), url)
        assert refused.status_code == 403, (method, path)
        asked = server.log.read_text().rpartition("ASKED ")[2].splitlines()[0]
        assert asked == f"{described['x-action']} runtime_checkpoints", (method, path)
        unknown = await jupyter.request(method.upper(), url, token="wrong")
        assert unknown.status_code == 403, (method, path)


async def test_bad_input_changes_nothing(server: Server, client: AgentClient) -> None:
    notebook = server.write("n.ipynb")
    jupyter = await server.start()
    kernel_id = await jupyter.open(notebook)
    saved = await jupyter.save(kernel_id)
    one = f"checkpoints/{saved['id']}"
    before = await jupyter.ours("GET", one)
    for method, path, body, status in (
        ("GET", "checkpoints/..%2F..%2Fetc", None, 400),
        ("GET", "checkpoints/" + "x" * 65, None, 400),
        ("GET", "checkpoints/unknown", None, 404),
        ("GET", "checkpoints?kernel=a/b", None, 400),
        ("GET", "checkpoints?remixes=maybe", None, 400),
        ("GET", "operations/unknown", None, 404),
        ("GET", "kernels/unknown/preflight", None, 404),
        ("GET", "kernels/..%2Fx/preflight", None, 400),
        ("DELETE", "operations/unknown", None, 404),
        ("DELETE", "operations/..%2Fx", None, 400),
        ("POST", "checkpoints/unknown/verify", None, 404),
        ("GET", "checkpoints/unknown/shares", None, 404),
        ("PUT", "checkpoints/unknown/shares/nobody", None, 404),
        ("DELETE", "checkpoints/unknown/shares/nobody", None, 404),
        ("PUT", f"{one}/shares/no-such-user", None, 400),
        ("PUT", f"{one}/shares/..%2Froot", None, 400),
        ("PUT", f"{one}/shares/{'x' * 300}", None, 400),
        ("GET", "checkpoints?shared=maybe", None, 400),
        ("GET", f"checkpoints?shared=1&notebook={notebook}", None, 400),
        ("POST", "remix", {"target": "of-nothing.ipynb"}, 400),
        ("POST", "remix", {"target": "of-mine.ipynb", "checkpoint": saved["id"]}, 404),
        ("POST", "fresh", {}, 400),
        ("POST", "fresh", {"notebook": ""}, 400),
        ("POST", "runtimes/..%2Fx/fresh", None, 400),
        ("GET", "runtimes/unknown", None, 404),
        ("DELETE", "checkpoints/unknown", None, 404),
        ("PATCH", one, {"name": "x" * 201}, 400),
        ("PATCH", one, {"name": 1}, 400),
        ("PATCH", one, {"trigger": "cull"}, 400),
        ("PATCH", one, [], 400),
        ("POST", "checkpoints", {}, 400),
        ("POST", "checkpoints", {"kernel_id": kernel_id, "notebook": notebook}, 400),
        ("POST", "checkpoints", {"kernel_id": kernel_id, "name": "x" * 201}, 400),
        ("POST", "checkpoints", {"kernel_id": kernel_id, "mode": "half"}, 400),
        ("POST", "checkpoints", {"kernel_id": "../x"}, 400),
        ("POST", "checkpoints", {"kernel_id": "unknown"}, 404),
        ("POST", "checkpoints", {"notebook": "unknown.ipynb"}, 404),
        ("POST", f"{one}/resume", {"kernel_id": "unknown"}, 404),
        ("POST", f"{one}/resume", {"notebook": "unknown.ipynb"}, 409),
        ("POST", "checkpoints/unknown/resume", {}, 404),
        ("GET", "no-such-thing", None, 404),
    ):
        answer = await jupyter.request(method, f"/jupyter-checkpoints/{path}", body)
        assert answer.status_code == status, (method, path, body, answer.text)
        if path != "no-such-thing":
            assert answer.json()["message"], (method, path)
    assert [c.id for c in await client.checkpoints()] == [saved["id"]]
    assert await jupyter.ours("GET", one) == before


async def test_names_and_pins(server: Server) -> None:
    jupyter = await server.start()
    kernel_id = await jupyter.open(server.write("n.ipynb"))
    saved = await jupyter.save(kernel_id, name="before lunch")
    assert saved["name"] == "before lunch" and not saved["pinned"]
    changed = await jupyter.ours(
        "PATCH", f"checkpoints/{saved['id']}", {"name": "after lunch", "pinned": True}
    )
    assert (changed["name"], changed["pinned"]) == ("after lunch", True)
    usage = await jupyter.ours("GET", "usage")
    assert usage["total"] >= usage["checkpoints"][saved["id"]] > 0
    [runtime] = await jupyter.ours("GET", "runtimes")
    assert runtime["notebook"] == "n.ipynb" and runtime["newest"] == changed
    assert runtime["kernels"] == [kernel_id]


async def test_saves_of_one_kernel_are_one_save(server: Server, client: AgentClient) -> None:
    jupyter = await server.start()
    kernel_id = await jupyter.open(server.write("n.ipynb"))
    await jupyter.run(kernel_id, "x = 1")
    asked = await asyncio.gather(
        *(jupyter.ours("POST", "checkpoints", {"kernel_id": kernel_id}) for _ in range(20))
    )
    ended = [await jupyter.finished(operation) for operation in asked]
    assert {e["state"] for e in ended} == {"done"}
    # Those that came when a state was being taken already got one of their own together.
    assert len(await client.checkpoints()) == len({e["id"] for e in ended}) <= 5


async def test_what_a_save_tells(server: Server) -> None:
    jupyter = await server.start()
    kernel_id = await jupyter.open(server.write("n.ipynb"))
    async with jupyter.events() as events:
        saved = await jupyter.save(kernel_id, name="x")
        await events.action("done")
    ours = [e for e in events.seen if e["schema_id"].endswith("/save/v1")]
    assert [e["action"] for e in (ours[0], ours[-1])] == ["started", "done"]
    assert {"dump", "pack", "commit"} <= {e.get("stage") for e in ours}
    assert {(e["kernel_id"], e["trigger"], e["notebook"], e["name"]) for e in ours} == {
        (kernel_id, "manual", "n.ipynb", "x")
    }
    assert ours[-1]["checkpoint"] == saved["id"]


BROKEN = """
SCHEMA = "https://schema.jupyter.org/jupyter_checkpoints/%s/v1"

async def listener(logger, schema_id, data):
    raise RuntimeError("broken listener")

def modifier(schema_id, data):
    raise RuntimeError("broken modifier")

def _jupyter_server_extension_points():
    return [{"module": "zz_broken"}]

def _load_jupyter_server_extension(app):
    for name in ("save", "runtime"):
        app.event_logger.add_listener(schema_id=SCHEMA % name, listener=listener)
    app.event_logger.add_modifier(schema_id=SCHEMA % "runtime", modifier=modifier)
"""


async def test_broken_listeners_break_nothing(server: Server) -> None:
    (server.home / "zz_broken.py").write_text(BROKEN)
    jupyter = await server.start(
        "--ServerApp.jpserver_extensions={'zz_broken': True}",
        env={"PYTHONPATH": os.pathsep.join([str(server.home), *sys.path])},
    )
    kernel_id = await jupyter.open(server.write("n.ipynb"))
    await jupyter.run(kernel_id, "x = 1")
    saved = await jupyter.save(kernel_id)
    operation = await jupyter.ours(
        "POST", f"checkpoints/{saved['id']}/resume", {"kernel_id": kernel_id}
    )
    assert (await jupyter.finished(operation))["state"] == "done"
    assert await jupyter.run(kernel_id, "print(x)") == "1"
    await server.logged("broken listener")
    assert "broken modifier" in server.log.read_text()


async def test_without_an_agent(server: Server, tmp_path: Path) -> None:
    """Jupyter works as ever, and says what is missing."""
    jupyter = await server.start(env={"JUPYTER_CHECKPOINTS_SOCKET": str(tmp_path / "none")})
    status = await jupyter.ours("GET", "status")
    assert not status["available"] and status["message"] and status["hint"]
    assert (await jupyter.request("GET", "/jupyter-checkpoints/checkpoints")).status_code == 503
    server.write("n.ipynb")
    assert await jupyter.get("/api/contents/n.ipynb")


async def test_with_an_agent(server: Server) -> None:
    jupyter = await server.start()
    status = await jupyter.ours("GET", "status")
    assert status["available"] and status["agent"]["engine"] == "embedded"
    described = await jupyter.request("GET", "/jupyter-checkpoints/openapi.yaml")
    assert yaml.safe_load(described.text) == DESCRIPTION


async def test_a_kernel_manager_of_somebody_else(server: Server) -> None:
    jupyter = await server.start(
        "--ServerApp.kernel_manager_class="
        "jupyter_server.services.kernels.kernelmanager.AsyncMappingKernelManager"
    )
    status = await jupyter.ours("GET", "status")
    assert not status["available"] and "kernel manager" in status["message"]
    notebook = server.write("n.ipynb")
    assert await jupyter.run(await jupyter.open(notebook), "print(42)") == "42"


async def test_in_front_of_a_gateway(server: Server) -> None:
    jupyter = await server.start("--GatewayClient.url=http://127.0.0.1:9")
    status = await jupyter.ours("GET", "status")
    assert not status["available"] and "gateway" in status["message"]
    assert (await jupyter.request("GET", "/jupyter-checkpoints/runtimes")).status_code == 503
    assert "Runtime checkpoints are off" in server.log.read_text()


async def test_what_keeps_a_kernel_from_being_saved(server: Server) -> None:
    jupyter = await server.start()
    kernel_id = await jupyter.open(server.write("n.ipynb"))
    path = f"kernels/{kernel_id}/preflight"
    assert await jupyter.ours("GET", path) == {"ok": True, "findings": []}
    await jupyter.run(kernel_id, UNSAVABLE)
    report = await jupyter.ours("GET", path)
    assert not report["ok"] and [f["code"] for f in report["findings"]] == ["traced"]
    assert "(python)" in report["findings"][0]["message"] and report["findings"][0]["hint"]
    await jupyter.run(kernel_id, "traced.kill(); traced.wait()")
    assert (await jupyter.ours("GET", path))["ok"]
    off = await jupyter.open(server.write("off.ipynb", settings=None))
    refused = await jupyter.request("GET", f"/jupyter-checkpoints/kernels/{off}/preflight")
    assert refused.status_code == 409 and "not switched on" in refused.json()["message"]


async def test_polling_is_no_activity(server: Server) -> None:
    jupyter = await server.start()
    before = (await jupyter.get("/api/status"))["last_activity"]
    for path in ("status", "runtimes", "checkpoints", "usage"):
        await jupyter.ours("GET", path)
    assert (await jupyter.get("/api/status"))["last_activity"] == before


async def test_no_input_is_a_defect(server: Server) -> None:
    """Generated requests, after the description: whatever comes, the answer is no 5xx."""
    jupyter = await server.start()
    await jupyter.save(await jupyter.open(server.write("n.ipynb")))
    await asyncio.to_thread(generate_requests, jupyter)
    assert await jupyter.get("/api/kernels")


def generate_requests(jupyter: Jupyter) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", str(OPENAPI)),
            *("--url", f"http://{jupyter.address}{PREFIX}", "--wait-for-schema=10"),
            *("-H", f"Authorization: token {jupyter.token}"),
            "--checks=not_a_server_error,status_code_conformance,response_schema_conformance,"
            "content_type_conformance",
            *("--mode=all", "--max-examples=25", "--seed=1", "--no-color"),
            "--phases=examples,coverage,fuzzing",
        ],
        cwd=jupyter.server.home,  # it keeps its examples where it runs
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


async def test_archives(server: Server) -> None:
    notebook, other = server.write("n.ipynb"), server.write("other.ipynb")
    jupyter = await server.start()
    kernel_id = await jupyter.open(notebook)
    await jupyter.run(kernel_id, "x = 42")
    saved = await jupyter.save(kernel_id)
    url = f"http://{jupyter.address}/jupyter-checkpoints/"
    headers = {"Authorization": f"token {jupyter.token}"}
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=60, trust_env=False
    ) as http:
        whole = await http.get(f"checkpoints/{saved['id']}/archive")
        assert whole.status_code == 200 and len(whole.content) == int(
            whole.headers["Content-Length"]
        )
        rest = await http.get(
            f"checkpoints/{saved['id']}/archive",
            headers={"Range": "bytes=1000000-", "If-Range": whole.headers["Etag"]},
        )
        assert rest.status_code == 206 and rest.content == whole.content[1_000_000:]

        made = await http.post("archives", params={"notebook": other}, content=whole.content)
        assert made.status_code == 201, made.text
        assert await jupyter.checkpoints(other) == [made.json()]
        printed = await jupyter.run(await jupyter.open(other), "print(x)")
        assert printed.startswith("42")  # IPython may say that its history has moved

        for content, status in (
            (b"nonsense", 400),
            (whole.content.replace(b'"uid":0', b'"uid":1'), 403),
            (whole.content[:-2_000_000], 400),
        ):
            refused = await http.post("archives", content=content)
            assert refused.status_code == status, refused.text
        refused = await http.post("archives", content=b"x", headers={"Authorization": "token x"})
        assert refused.status_code == 403
    assert len(await jupyter.checkpoints(notebook)) == 1


BLOCKBUSTER = """
from blockbuster import BlockBuster

blocking = BlockBuster(scanned_modules=["jupyter_checkpoints"])
for name, function in blocking.functions.items():
    # Jupyter Server itself looks at local files, at its sessions and at notebooks' signatures
    # like this, also where we only call it.
    function.can_block_in(
        "sessions/sessionmanager.py",
        ["list_sessions", "get_session", "update_session", "session_exists", "save_session"],
    )
    function.can_block_in("contents/manager.py", ["mark_trusted_cells", "check_and_sign"])
    function.can_block_in("contents/filemanager.py", ["get", "save"])
    # It looks for a module each time that may not be installed.
    function.can_block_in("httpcore/_synchronization.py", ["current_async_library"])
    function.can_block_in("jupyter_server_fileid/manager.py", ["index", "get_path"])
    if not name.startswith("os."):
        function.activate()
"""


async def test_nothing_blocks_the_event_loop(server: Server) -> None:
    """Any call of ours that would block raises, and is in the log."""
    (server.home / "config" / "jupyter_server_config.py").write_text(BLOCKBUSTER)
    notebook = server.write("n.ipynb")
    jupyter = await server.start(
        "--MappingKernelManager.cull_idle_timeout=6", "--MappingKernelManager.cull_interval=1"
    )
    first = await jupyter.open(notebook)
    await jupyter.run(first, "x = 1")
    saved = await jupyter.save(first)
    operation = await jupyter.ours(
        "POST", f"checkpoints/{saved['id']}/resume", {"kernel_id": first}
    )
    ended = await jupyter.finished(operation)
    assert ended["state"] == "done", str(ended["error"])
    await jupyter.ours("POST", "remix", {"source": notebook, "target": "copy.ipynb"})
    for path in ("status", "runtimes", "checkpoints", "usage", "openapi.yaml"):
        await jupyter.request("GET", f"/jupyter-checkpoints/{path}")
    await jupyter.request("GET", f"/jupyter-checkpoints/checkpoints/{saved['id']}/archive")
    await jupyter.run(first, "x = 2")
    await jupyter.gone(first)
    assert await jupyter.run(await jupyter.open(notebook), "print(x)") == "2"
    log = await server.stop()
    assert "BlockingError" not in log, log[log.index("BlockingError") - 4000 :]
