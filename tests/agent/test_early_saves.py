"""Kernels are saved whenever somebody asks, also while they start and their clients come."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from jupyter_checkpoints.client import AgentClient

from .callers import for_all_callers
from .cells import PATIENCE, run
from .kernels import client_of, python_kernel
from .kernelspecs import nothing_left as nothing_left

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_left"), for_all_callers]


@pytest.mark.parametrize("delay", [0, 0.1, 0.2, 0.3, 0.4, 0.6])
async def test_a_kernel_that_is_starting(client: AgentClient, delay: float) -> None:
    kernel_id = str(uuid.uuid4())
    channels = client_of(await client.start_kernel(python_kernel(kernel_id, detached=True)))
    try:
        channels.kernel_info()
        await asyncio.sleep(delay)  # any moment of its start will do
        await client.save(kernel_id)
        await channels.wait_for_ready(timeout=PATIENCE)
        assert await run(channels, "print(42)") == "42"
    finally:
        channels.stop_channels()
