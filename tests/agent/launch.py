"""Start and resume kernels within a test, and have everything of them removed at its end."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient

from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.errors import NotFound
from jupyter_checkpoints.models import CheckpointModel, KernelModel, SaveRequest, StartRequest

from .cells import PATIENCE, run
from .kernels import client_of, python_kernel


class Kernel:
    """A kernel, and a client that stays connected to it."""

    def __init__(self, agent: AgentClient, model: KernelModel, channels: AsyncKernelClient) -> None:
        self.agent = agent
        self.model = model
        self.channels = channels

    async def run(self, code: str, timeout: float = PATIENCE) -> str:
        return await run(self.channels, code, timeout)

    async def save(self, request: SaveRequest | None = None) -> CheckpointModel:
        return await self.agent.save(self.model.id, request)

    async def end(self) -> None:
        """Remove it; its checkpoints stay until the test has ended."""
        self.channels.stop_channels()
        # A test may have ended it by other means.
        with contextlib.suppress(NotFound):
            await self.agent.delete_kernel(self.model.id)


class Launch:
    """Makes kernels with an agent."""

    def __init__(self, agent: AgentClient) -> None:
        self.agent = agent
        self.kernels: list[Kernel] = []

    async def start(self, request: StartRequest | None = None) -> Kernel:
        """A fresh kernel, by default an ipykernel."""
        kernel = await self._launch(request or python_kernel(str(uuid4()), detached=True))
        await kernel.channels.wait_for_ready(timeout=PATIENCE)
        return kernel

    async def resume(self, checkpoint: CheckpointModel, *, session: str = "") -> Kernel:
        """A new kernel from a checkpoint; nothing is asked of it, as it may be busy."""
        request = StartRequest(
            kernel_id=str(uuid4()),
            checkpoint=checkpoint.id,
            mounts=checkpoint.mounts,
            mode=checkpoint.mode,
            detached=True,
        )
        return await self._launch(request, session)

    async def _launch(self, request: StartRequest, session: str = "") -> Kernel:
        model = await self.agent.start_kernel(request)
        kernel = Kernel(self.agent, model, client_of(model, session))
        self.kernels.append(kernel)
        return kernel

    async def end(self) -> None:
        for kernel in self.kernels:
            await kernel.end()
        ids = {kernel.model.id for kernel in self.kernels}
        for checkpoint in await self.agent.checkpoints():
            if checkpoint.kernel_id in ids:
                await self.agent.delete_checkpoint(checkpoint.id)


@pytest.fixture
async def launch(client: AgentClient) -> AsyncIterator[Launch]:
    """For ``from .launch import launch as launch``."""
    launch = Launch(client)
    try:
        yield launch
    finally:
        await launch.end()
