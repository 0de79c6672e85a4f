"""Running cells as a test wants it: send code, get what it printed."""

from __future__ import annotations

import time
from queue import Empty
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient

#: Seconds for anything a test waits for; generous, because machines that test are busy.
PATIENCE = 60.0


class CellError(AssertionError):
    """A cell raised an exception; the message is the kernel's traceback."""


async def run(client: AsyncKernelClient, code: str, timeout: float = PATIENCE) -> str:
    """Run a cell and return all it printed, and the text of its result, without spaces around."""
    return await finish(client, client.execute(code), timeout)


async def finish(client: AsyncKernelClient, msg_id: str, timeout: float = PATIENCE) -> str:
    """Wait for the end of a cell that was sent before; returns what it printed from now on.

    Raises
    ------
    CellError
        If the cell raised.
    TimeoutError
        If reply or output did not come in time.
    """
    deadline = time.monotonic() + timeout
    printed: list[str] = []
    failure = ""
    while True:
        message = await _next(client.get_iopub_msg, deadline)
        if message["parent_header"].get("msg_id") != msg_id:
            continue
        content = message["content"]
        match message["msg_type"]:
            case "stream":
                printed.append(content["text"])
            case "execute_result" | "display_data":
                printed.append(content["data"].get("text/plain", ""))
            case "error":
                failure = "\n".join(content["traceback"])
            case "status" if content["execution_state"] == "idle":
                break
    while True:
        reply = await _next(client.get_shell_msg, deadline)
        if reply["parent_header"].get("msg_id") == msg_id:
            break
    if reply["content"]["status"] != "ok":
        raise CellError(failure or str(reply["content"]))
    return "".join(printed).strip()


async def _next(get: Any, deadline: float) -> dict[str, Any]:
    try:
        message: dict[str, Any] = await get(timeout=max(0.01, deadline - time.monotonic()))
    except Empty:
        raise TimeoutError("the kernel did not answer in time") from None
    return message
