"""Every kind of state a notebook may hold is as before after a resume, in the clone and beside it.

See :mod:`.states` for what is made and how it is checked. One kernel holds all of it; it is saved
once, and each check runs in the kernel that went on and in the one that was resumed.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient

from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.models import CopyRequest, StartRequest

from .agents import Agent
from .callers import OTHER, ROOT, USER
from .cells import run
from .kernels import connected, python_kernel
from .states import PRELUDE, STATES, State

pytestmark = pytest.mark.anyio

Kernels = dict[str, AsyncKernelClient]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((ROOT, ROOT), id="root"),
        pytest.param((USER, USER), id="user"),
        pytest.param((USER, OTHER), id="user to user"),
    ],
)
async def kernels(agent: Agent, request: pytest.FixtureRequest) -> AsyncIterator[Kernels]:
    """The kernel that was saved with all states in it, and its clone; both run.

    The clone may be another user's, with whom the checkpoint was shared.
    """
    owner, heir = (AgentClient(agent.socket, user=uid or None) for uid in request.param)
    async with owner, heir:
        original = await owner.start_kernel(python_kernel(str(uuid.uuid4()), detached=True))
        try:
            async with connected(original) as first:
                await run(first, PRELUDE)
                for state in STATES:
                    await run(first, state.make)
                saved = await owner.save(original.id)
                if request.param[0] != request.param[1]:
                    await owner.share(saved.id, request.param[1])
                    copy = CopyRequest(runtime=str(uuid.uuid4()))
                    saved = await heir.copy_checkpoint(saved.id, copy)
                clone = await heir.start_kernel(
                    StartRequest(kernel_id=str(uuid.uuid4()), checkpoint=saved.id, detached=True)
                )
                async with connected(clone) as second:
                    yield {"original": first, "clone": second}
        finally:
            for client in (owner, heir):
                for kernel in await client.kernels():
                    await client.delete_kernel(kernel.id)
                for checkpoint in await client.checkpoints():
                    await client.delete_checkpoint(checkpoint.id)


@pytest.mark.parametrize("side", ["original", "clone"])
@pytest.mark.parametrize("state", [pytest.param(state, id=state.name) for state in STATES])
async def test_as_before(kernels: Kernels, state: State, side: str) -> None:
    await run(kernels[side], state.check)
