"""Kernels for measuring: asked without the waits and pauses of jupyter_client."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.asyncio
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager

from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.models import CheckpointModel, Event, KernelModel, StartRequest

#: Seconds for anything; a hung kernel ends the benchmark and not the other way round.
PATIENCE = 600.0


class Kernel:
    """A kernel and a client that stays connected to it.

    ``began`` and ``restored``: when the agent was asked for it, and when that told its engine to
    restore it, by :func:`time.perf_counter`; 0 where nobody knows.
    """

    def __init__(
        self, kernel_id: str, client: AsyncKernelClient, began: float = 0, restored: float = 0
    ) -> None:
        self.id = kernel_id
        self.client = client
        self.began = began
        self.restored = restored

    async def run(self, code: str) -> Any:
        """Run a cell; returns the value of the expression in its last line.

        The value travels in the reply itself, so that nothing but the reply is waited for.
        """
        *lines, last = code.strip().splitlines()
        msg_id = self.client.execute(
            "\n".join(lines), silent=True, user_expressions={"value": last}
        )
        content = (await self._reply(msg_id))["content"]
        if content["status"] != "ok":
            raise RuntimeError("\n".join(content["traceback"]))
        value = content["user_expressions"]["value"]
        if value["status"] != "ok":
            raise RuntimeError("\n".join(value["traceback"]))
        return eval(value["data"]["text/plain"], {"__builtins__": {}})

    async def answer(self) -> None:
        """Wait until the kernel answers at all."""
        await self._reply(self.client.kernel_info())

    async def _reply(self, msg_id: str) -> dict[str, Any]:
        while True:
            reply: dict[str, Any] = await self.client.get_shell_msg(timeout=PATIENCE)
            if reply["parent_header"].get("msg_id") == msg_id:
                return reply


@asynccontextmanager
async def kernel(name: str, cwd: Path) -> AsyncIterator[Kernel]:
    """Start a kernel as jupyter_client does; ends it at the end."""
    manager = AsyncKernelManager(kernel_name=name)
    await manager.start_kernel(cwd=str(cwd))
    context = _context()
    client = manager.client(context=context)
    client.start_channels(stdin=False, hb=False)
    try:
        yield Kernel(str(manager.kernel_id), client)
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)
        context.destroy(linger=0)


@asynccontextmanager
async def another(agent: AgentClient, like: KernelModel, cwd: Path) -> AsyncIterator[Kernel]:
    """Have the agent start a fresh kernel just like one that runs; ends it at the end."""
    request = StartRequest(
        kernel_id=str(uuid.uuid4()),
        argv=like.argv,
        key=uuid.uuid4().hex,
        image=like.image,
        cwd=str(cwd),
        mounts=like.mounts,
        detached=True,
    )
    async with _started(agent, request) as one:
        yield one


@asynccontextmanager
async def resumed(agent: AgentClient, checkpoint: CheckpointModel) -> AsyncIterator[Kernel]:
    """Have the agent resume a checkpoint in a new kernel; ends it at the end."""
    request = StartRequest(
        kernel_id=str(uuid.uuid4()),
        checkpoint=checkpoint.id,
        mounts=checkpoint.mounts,
        detached=True,
    )
    async with _started(agent, request) as one:
        yield one


@asynccontextmanager
async def _started(agent: AgentClient, request: StartRequest) -> AsyncIterator[Kernel]:
    restored = 0.0

    def progress(event: Event) -> None:
        nonlocal restored
        if event.stage == "restore":
            restored = time.perf_counter()

    began = time.perf_counter()
    model = await agent.start_kernel(request, progress)
    context = _context()
    client = AsyncKernelClient(context=context)
    client.load_connection_info(msgspec.to_builtins(model.connection))
    client.start_channels(stdin=False, hb=False)
    try:
        yield Kernel(model.id, client, began, restored)
    finally:
        client.stop_channels()
        context.destroy(linger=0)
        await agent.delete_kernel(model.id)


def _context() -> zmq.asyncio.Context:
    context = zmq.asyncio.Context()
    # A kernel that is starting refuses connections: ask again soon, or 100 ms of luck get measured.
    context.setsockopt(zmq.RECONNECT_IVL, 2)
    return context
