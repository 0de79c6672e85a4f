"""What may change of a checkpoint, copies of checkpoints for a remix, and what all of it holds."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import msgspec
import pytest

from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.errors import InvalidRequest, NotFound
from jupyter_checkpoints.models import (
    CheckpointModel,
    CheckpointPatch,
    CopyRequest,
    KernelPatch,
    SaveRequest,
    StartRequest,
)

from .agents import Agent
from .cells import run
from .kernels import connected, python_kernel
from .kernelspecs import nothing_left as nothing_left

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_left")]


@pytest.fixture
async def saved(client: AgentClient) -> AsyncIterator[CheckpointModel]:
    """A checkpoint of a kernel that has ended: x is 1, and so is a file of its container."""
    kernel_id = str(uuid.uuid4())
    model = await client.start_kernel(python_kernel(kernel_id, detached=True))
    async with connected(model) as channels:
        await run(channels, "x = 1; open('/tmp/x', 'w').write('1')")
    made = await client.save(kernel_id, SaveRequest(name="first"))
    await client.delete_kernel(kernel_id)
    yield made


async def test_names_and_pins(agent: Agent, client: AgentClient, saved: CheckpointModel) -> None:
    changed = await client.change_checkpoint(saved.id, CheckpointPatch(name="other", pinned=True))
    assert changed == msgspec.structs.replace(saved, name="other", pinned=True)
    touched = await client.change_checkpoint(saved.id, CheckpointPatch(touch=True))
    assert touched.touched > saved.created and touched.pinned and touched.name == "other"
    agent.restart()
    assert await client.checkpoint(saved.id) == touched
    assert (await client.verify(saved.id)).ok
    with pytest.raises(NotFound):
        await client.change_checkpoint("none", CheckpointPatch(pinned=True))


async def test_copies_are_independent(client: AgentClient, saved: CheckpointModel) -> None:
    copy = await client.copy_checkpoint(saved.id, CopyRequest(runtime="other", name="copy"))
    assert (copy.runtime, copy.name, copy.parent, copy.trigger) == (
        *("other", "copy", saved.id),
        "remix",
    )
    assert [c.id for c in await client.checkpoints(runtime="other")] == [copy.id]
    await client.delete_checkpoint(saved.id)
    assert (await client.verify(copy.id)).ok
    kernel_id = str(uuid.uuid4())
    resumed = await client.start_kernel(
        StartRequest(kernel_id=kernel_id, checkpoint=copy.id, detached=True)
    )
    async with connected(resumed) as channels:
        assert await run(channels, "print(x, open('/tmp/x').read())") == "1 1"


async def test_copies_share_their_data(client: AgentClient, saved: CheckpointModel) -> None:
    alone = await client.usage()
    # What is zero, or can be compressed, holds less than it is.
    assert alone.total == alone.checkpoints[saved.id] > 0.9 * saved.memory_size
    copy = await client.copy_checkpoint(saved.id, CopyRequest(runtime="other"))
    both = await client.usage()
    # Manifests are each one's own; nothing else is.
    assert both.total - alone.total < 2**20
    assert all(n < 2**20 for n in both.checkpoints.values())
    await client.delete_checkpoint(saved.id)
    assert (await client.usage()).checkpoints == {copy.id: alone.total}


async def test_a_damaged_checkpoint_is_not_copied(
    agent: Agent, client: AgentClient, saved: CheckpointModel
) -> None:
    agent.pack(saved.id).unlink()
    with pytest.raises(Exception, match="damaged"):
        await client.copy_checkpoint(saved.id, CopyRequest(runtime="other"))
    assert [c.id for c in await client.checkpoints()] == [saved.id]
    assert agent.snapshots() == {saved.id}


async def test_the_runtime_of_a_running_kernel(client: AgentClient) -> None:
    kernel_id = str(uuid.uuid4())
    await client.start_kernel(python_kernel(kernel_id, detached=True))
    first = await client.save(kernel_id)
    assert first.runtime == ""
    changed = await client.change_kernel(kernel_id, KernelPatch(runtime="mine"))
    assert changed.runtime == "mine"
    second = await client.save(kernel_id)
    assert (second.runtime, second.parent) == ("mine", first.id)
    for runtime in ("", "../x", "x" * 65):
        with pytest.raises(InvalidRequest):
            await client.change_kernel(kernel_id, KernelPatch(runtime=runtime))
