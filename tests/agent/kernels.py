"""Kernels through the agent's own client, without a kernel manager."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from jupyter_client.asynchronous.client import AsyncKernelClient

from jupyter_checkpoints.models import CONNECTION_FILE, KernelModel, Limits, Mount, StartRequest

from .cells import PATIENCE

KEY = "0123456789abcdef0123456789abcdef"


def python_kernel(
    kernel_id: str,
    *,
    detached: bool = False,
    mounts: list[Mount] | None = None,
    limits: Limits | None = None,
) -> StartRequest:
    """The request that starts an ipykernel in the default image."""
    return StartRequest(
        kernel_id=kernel_id,
        argv=["python", "-m", "ipykernel_launcher", "-f", CONNECTION_FILE],
        key=KEY,
        detached=detached,
        mounts=mounts or [],
        limits=limits or Limits(),
    )


def client_of(kernel: KernelModel, session: str = "") -> AsyncKernelClient:
    """A client with its channels started; the caller stops them.

    With the ``session`` of another client it gets the replies to what that one had asked.
    """
    connection = kernel.connection
    assert connection is not None
    client = AsyncKernelClient(
        ip=connection.ip,
        shell_port=connection.shell_port,
        iopub_port=connection.iopub_port,
        stdin_port=connection.stdin_port,
        control_port=connection.control_port,
        hb_port=connection.hb_port,
    )
    client.session.key = connection.key.encode()
    client.session.session = session or client.session.session
    # On a busy machine one late heartbeat is enough for a client to give its kernel up for dead.
    client.start_channels(hb=False)
    return client


@asynccontextmanager
async def connected(kernel: KernelModel) -> AsyncIterator[AsyncKernelClient]:
    """A client that has had an answer from the kernel."""
    client = client_of(kernel)
    try:
        await client.wait_for_ready(timeout=PATIENCE)
        yield client
    finally:
        client.stop_channels()
