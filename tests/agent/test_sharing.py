"""A checkpoint is its owner's alone, until he shares it; then others may copy it, and no more."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.errors import InvalidRequest, NotAllowed, NotFound
from jupyter_checkpoints.models import (
    CheckpointModel,
    CheckpointPatch,
    CopyRequest,
    Mount,
    StartRequest,
)

from ..users import Users
from .agents import Agent
from .conftest import running_agent
from .kernels import python_kernel

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def shared(default_image: None, users: Users) -> Iterator[Agent]:
    """An agent that serves both users."""
    with running_agent(f"--AgentApp.allowed_groups={users.group}") as agent:
        yield agent


@pytest.fixture
async def root(shared: Agent) -> AsyncIterator[AgentClient]:
    async with AgentClient(shared.socket) as client:
        yield client


@pytest.fixture
async def alice(shared: Agent, users: Users) -> AsyncIterator[AgentClient]:
    async with AgentClient(shared.socket, user=users.alice.name) as client:
        yield client


@pytest.fixture
async def bob(shared: Agent, users: Users) -> AsyncIterator[AgentClient]:
    async with AgentClient(shared.socket, user=users.bob.name) as client:
        yield client


@pytest.fixture
async def saved(root: AgentClient) -> AsyncIterator[CheckpointModel]:
    """A checkpoint of root's."""
    mount = Mount(source="/tmp", target="/data")
    kernel = await root.start_kernel(python_kernel(str(uuid.uuid4()), mounts=[mount]))
    checkpoint = await root.save(kernel.id)
    await root.delete_kernel(kernel.id)
    yield checkpoint
    await root.delete_checkpoint(checkpoint.id)


async def _refused(client: AgentClient, checkpoint: CheckpointModel, *, copy: bool) -> None:
    """All that somebody else could want to do with a checkpoint; it does not exist for him."""
    request = StartRequest(
        kernel_id=str(uuid.uuid4()), checkpoint=checkpoint.id, mounts=checkpoint.mounts
    )
    wishes: list[Callable[[], Awaitable[object]]] = [
        lambda: client.delete_checkpoint(checkpoint.id),
        lambda: client.change_checkpoint(checkpoint.id, CheckpointPatch(name="mine")),
        lambda: client.preflight(checkpoint.id),
        lambda: client.verify(checkpoint.id),
        lambda: client.share(checkpoint.id, "*"),
        lambda: client.unshare(checkpoint.id, "*"),
        lambda: client.start_kernel(request),
        lambda: anext(client.export(checkpoint.id)),
    ]
    if copy:
        wishes.append(lambda: client.checkpoint(checkpoint.id))
        wishes.append(lambda: client.copy_checkpoint(checkpoint.id, CopyRequest(runtime="r")))
    for number, wish in enumerate(wishes):
        with pytest.raises(NotFound) as refused:
            await wish()
        assert str(checkpoint.uid) not in str(refused.value).replace(checkpoint.id, ""), number
    assert checkpoint.id not in {c.id for c in await client.checkpoints()}
    assert checkpoint.id not in (await client.usage()).checkpoints


async def test_nobody_else_sees_it(
    alice: AgentClient, saved: CheckpointModel, shared: Agent, users: Users
) -> None:
    await _refused(alice, saved, copy=True)
    assert await alice.checkpoints(shared=True) == []
    noted = [line for line in shared.audit() if line.get("object") == saved.id]
    assert len(noted) == 10
    for line in noted:
        assert (line["outcome"], line["owners"], line["for"]) == ("refused", [0], users.alice.uid)


async def test_a_share_is_for_one_and_for_copying(
    root: AgentClient, alice: AgentClient, bob: AgentClient, saved: CheckpointModel, users: Users
) -> None:
    shared = await root.share(saved.id, users.alice.name)
    assert shared.shares == [users.alice.uid]
    assert (await root.share(saved.id, users.alice.uid)).shares == [users.alice.uid]
    await _refused(bob, saved, copy=True)
    await _refused(alice, saved, copy=False)
    assert [c.id for c in await alice.checkpoints(shared=True)] == [saved.id]
    seen = await alice.checkpoint(saved.id)
    assert (seen.uid, seen.shares) == (0, [])
    mine = Mount(source=str(users.alice.home), target="/data")
    with pytest.raises(InvalidRequest, match="/elsewhere"):
        request = CopyRequest(runtime="r", mounts=[Mount(source="/tmp", target="/elsewhere")])
        await alice.copy_checkpoint(saved.id, request)
    copy = await alice.copy_checkpoint(saved.id, CopyRequest(runtime="r", mounts=[mine]))
    assert (copy.uid, copy.parent, copy.shares) == (users.alice.uid, saved.id, [])
    assert copy.mounts == [mine]
    # What was copied stays, whatever becomes of the share.
    assert (await root.unshare(saved.id, users.alice.uid)).shares == []
    await _refused(alice, saved, copy=True)
    assert (await alice.verify(copy.id)).ok
    await _refused(bob, copy, copy=True)
    await alice.delete_checkpoint(copy.id)


async def test_a_share_for_everybody(
    root: AgentClient, alice: AgentClient, bob: AgentClient, saved: CheckpointModel
) -> None:
    assert (await root.share(saved.id, "*")).shares == ["*"]
    for client in (alice, bob):
        copy = await client.copy_checkpoint(saved.id, CopyRequest(runtime="r"))
        await client.delete_checkpoint(copy.id)
    await root.unshare(saved.id, "*")
    await _refused(bob, saved, copy=True)


async def test_only_users_get_shares(root: AgentClient, saved: CheckpointModel) -> None:
    for name in ("no-such-user", "..", "a b", "*x", "-1", "4000000000", "é", "a\nb"):
        with pytest.raises((InvalidRequest, NotFound)):
            await root.share(saved.id, name)
    assert (await root.checkpoint(saved.id)).shares == []


async def test_roots_copy_of_a_users_stays_the_users(
    root: AgentClient, alice: AgentClient, saved: CheckpointModel, users: Users
) -> None:
    """Or processes of a user's making would run with root's rights."""
    await root.share(saved.id, users.alice.name)
    copy = await alice.copy_checkpoint(saved.id, CopyRequest(runtime="r"))
    again = await root.copy_checkpoint(copy.id, CopyRequest(runtime="r"))
    assert again.uid == users.alice.uid
    content = b"".join([part.data async for part in alice.export(copy.id)])

    async def parts() -> AsyncIterator[bytes]:
        yield content

    with pytest.raises(NotAllowed, match=str(users.alice.uid)):
        await root.import_archive(parts(), len(content))
    imported = await alice.import_archive(parts(), len(content))
    for model in (copy, again, imported):
        assert model.uid == users.alice.uid
        await root.delete_checkpoint(model.id)
