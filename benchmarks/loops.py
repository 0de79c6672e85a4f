"""A Jupyter Server with many kernels: resuming by REST, and how long event loops stand still.

A loop stands still while a callback holds it: see :mod:`.held`. What a user would notice is
measured from outside: a process asks it for a trifle every 5 ms (the agent for its list of kernels,
the server for its version), and the longest answer counts. That holds the time in which no
processor is free, too; how much that is tells a loop that has nothing to do, which is asked at the
same time.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec

from tests.server.servers import PYTHON, Jupyter, Server

from . import held
from .agent import Agent
from .held import LOG_ENV
from .kernels import PATIENCE
from .measure import CHECK, GIB, Note, filling, require_memory
from .probe import Waits
from .results import LoopResult, ServerResult

_PROJECT = Path(__file__).parent.parent
_OTHERS = 10
_IDLE_SECONDS = 3.0
#: Seconds between two questions whether a resume is done.
_POLL = 0.02
#: Seconds after which an agent has made ready again what the next start takes.
_SETTLE = 1.0


async def server(
    gib: float, directory: Path, agent: Agent, repeats: int, note: Note
) -> ServerResult:
    """Save and resume a notebook's kernel by REST while other kernels run.

    Parameters
    ----------
    directory:
        Where the kernelspecs are; the server gets a directory in it.
    agent:
        The one that it asks.
    """
    require_memory(gib * GIB + 2 * GIB)
    home = directory / f"server-{gib:g}"
    home.mkdir()
    jupyter_server = Server(home, directory, agent.paths.socket)
    log = home / "server.held"
    watched = {LOG_ENV: str(log), "PYTHONPATH": str(_PROJECT)}
    try:
        jupyter = await jupyter_server.start(
            "--ServerApp.jpserver_extensions=benchmarks.held=True", env=watched
        )
        async with (
            httpx.AsyncClient(
                base_url=f"http://{jupyter.address}",
                headers={"Authorization": f"token {jupyter.token}"},
                timeout=PATIENCE,
                trust_env=False,
            ) as http,
            _idle_loop(home / "idle.sock") as idle,
        ):
            logs = {"agent": agent.held, "server": log}
            socket = agent.paths.socket
            return await _Measuring(gib, jupyter, http, socket, idle, logs, note).all(repeats)
    finally:
        if jupyter_server.process is not None:
            await jupyter_server.stop()


class _Measuring:
    def __init__(
        self,
        gib: float,
        jupyter: Jupyter,
        http: httpx.AsyncClient,
        socket: Path,
        idle: Path,
        held: dict[str, Path],
        note: Note,
    ) -> None:
        self.gib = gib
        self.jupyter = jupyter
        self.http = http
        self.socket = socket
        self.idle = idle
        self.held = held
        self.note = note
        self.loops: list[LoopResult] = []
        self.notebook = jupyter.server.write(
            "measured.ipynb", settings={"enabled": True, "autosave": False}
        )

    async def all(self, repeats: int) -> ServerResult:
        self.note(f"{self.gib:g} GiB, a server with {_OTHERS} other kernels")
        for _ in range(_OTHERS):
            await self._ask("POST", "/api/kernels", {"name": PYTHON})
        kernel_id = await self.jupyter.open(self.notebook)
        expected = await self._run(kernel_id, f"{filling(self.gib)}\nprint({CHECK})")
        async with self._probed("idle"):
            await asyncio.sleep(_IDLE_SECONDS)
        async with self._probed("save"):
            operation = await self._ours("POST", "checkpoints", {"kernel_id": kernel_id})
            checkpoint = (await self._done(operation))["result"]
        firsts = []
        # The first one is not counted: the probes keep the server busy meanwhile.
        for turn in range(repeats + 1):
            self.note(f"{self.gib:g} GiB, resume by REST, {turn} of {repeats}")
            # As after it was culled: the notebook has no kernel.
            await self._ask("DELETE", f"/api/kernels/{kernel_id}")
            await asyncio.sleep(_SETTLE)
            if turn == 0:
                async with self._probed("resume"):
                    kernel_id, _ = await self._resume(checkpoint["id"], expected)
            else:
                kernel_id, elapsed = await self._resume(checkpoint["id"], expected)
                firsts.append(elapsed)
        return ServerResult(
            gib=self.gib,
            others=_OTHERS,
            first_cell_s=statistics.median(firsts),
            loops=self.loops,
            repeats=repeats,
        )

    async def _resume(self, checkpoint: str, expected: str) -> tuple[str, float]:
        """The new kernel, and how long its first cell took; all of its memory is there then."""
        began = time.perf_counter()
        operation = await self._ours(
            "POST", f"checkpoints/{checkpoint}/resume", {"notebook": self.notebook}
        )
        kernel_id: str = (await self._done(operation))["result"]["kernel_id"]
        async with self.jupyter.page(kernel_id) as page:
            await page.reply(await page.begin("data.size"))
            elapsed = time.perf_counter() - began
            if await page.run(f"print({CHECK})") != expected:
                raise RuntimeError("the resumed kernel does not hold what was saved")
        return kernel_id, elapsed

    async def _run(self, kernel_id: str, code: str) -> str:
        async with self.jupyter.page(kernel_id) as page:
            return await page.run(code)

    async def _done(self, operation: Any) -> Any:
        while operation["state"] == "running":
            await asyncio.sleep(_POLL)
            operation = await self._ours("GET", f"operations/{operation['id']}")
        if operation["state"] != "done":
            raise RuntimeError(str(operation["error"]))
        return operation

    async def _ours(self, method: str, path: str, body: Any = None) -> Any:
        return await self._ask(method, f"/jupyter-checkpoints/{path}", body)

    async def _ask(self, method: str, path: str, body: Any = None) -> Any:
        response = await self.http.request(method, path, json=body)
        response.raise_for_status()
        return response.json() if response.content else None

    def _held(self, loop: str, began: float, ended: float) -> float | None:
        if loop not in self.held:
            return None
        found = held.between(self.held[loop], began, ended)
        return max((one.seconds for one in found), default=0.0)

    @asynccontextmanager
    async def _probed(self, during: str) -> AsyncIterator[None]:
        asked = {
            "agent": (str(self.socket), "/v1/kernels"),
            "server": (self.jupyter.address, "/api"),
            "nobody's": (str(self.idle), "/"),
        }
        probes = {loop: await _started("benchmarks.probe", *where) for loop, where in asked.items()}
        began = time.monotonic()
        try:
            yield
        finally:
            ended = time.monotonic()
            for loop, probe in probes.items():
                output, _ = await probe.communicate(b"")  # closes its standard input
                if probe.returncode:
                    raise RuntimeError(f"the {loop} did not answer while it was measured")
                waits = msgspec.json.decode(output, type=Waits)
                self.loops.append(
                    LoopResult(
                        loop=loop,
                        during=during,
                        held_s=self._held(loop, began, ended),
                        worst_s=waits.worst,
                        p99_s=waits.p99,
                        requests=waits.requests,
                    )
                )


@asynccontextmanager
async def _idle_loop(socket: Path) -> AsyncIterator[Path]:
    process = await _started("benchmarks.idle_loop", str(socket))
    try:
        yield socket
    finally:
        await process.communicate(b"")  # closes its standard input


async def _started(module: str, *arguments: str) -> asyncio.subprocess.Process:
    """A program of ours that says a line when it is ready, and ends when its input does."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    await process.stdout.readline()
    return process
