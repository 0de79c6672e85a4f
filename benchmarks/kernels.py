"""Kernels for measuring: started by jupyter_client, asked without its waits and pauses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager

#: Seconds for anything; a hung kernel ends the benchmark and not the other way round.
PATIENCE = 600.0


class Kernel:
    """A kernel and a client that stays connected to it."""

    def __init__(self, manager: AsyncKernelManager, client: AsyncKernelClient) -> None:
        self.manager = manager
        self.client = client

    @property
    def id(self) -> str:
        return str(self.manager.kernel_id)

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
async def kernel(name: str, cwd: Path, **arguments: Any) -> AsyncIterator[Kernel]:
    """Start a kernel (``restore_from``: resume a checkpoint in a new one); ends it at the end."""
    context = zmq.asyncio.Context()
    # A kernel that is starting refuses connections: ask again soon, or 100 ms of luck get measured.
    context.setsockopt(zmq.RECONNECT_IVL, 2)
    manager = AsyncKernelManager(kernel_name=name)
    await manager.start_kernel(cwd=str(cwd), **arguments)
    client = manager.client(context=context)
    client.start_channels(stdin=False, hb=False)
    try:
        yield Kernel(manager, client)
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)
        context.destroy(linger=0)
