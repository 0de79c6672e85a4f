"""What users may have, as plain arithmetic."""

from __future__ import annotations

import asyncio

import pytest

from jupyter_checkpoints.agent.quotas import Quotas, Turns
from jupyter_checkpoints.errors import NotAllowed, QuotaExceeded
from jupyter_checkpoints.models import Limits

USER = 1000
GIB = 2**30


def test_nothing_is_bounded_by_default() -> None:
    quotas = Quotas()
    quotas.check_image(USER, ["python3", "a" * 64], "python3")
    quotas.check_limits(USER, Limits(memory=1 << 50, cpus=1000, pids=10**6))
    quotas.check_kernels(USER, 10**6)
    quotas.check_storage(USER, 1 << 50, 1 << 50)
    assert quotas.memory_left(USER, 1 << 50, None) is None


def test_root_is_bounded_by_nothing() -> None:
    quotas = Quotas(
        images=(), maxima=Limits(memory=GIB, cpus=1, pids=16), kernels=1, memory=GIB, storage=1
    )
    quotas.check_image(0, ["python3"], "python3")
    quotas.check_limits(0, Limits(memory=2 * GIB, cpus=2, pids=17))
    quotas.check_kernels(0, 5)
    quotas.check_storage(0, GIB, GIB)
    assert quotas.memory_left(0, GIB, 2 * GIB) == 2 * GIB


def test_images() -> None:
    quotas = Quotas(images=("jupyter/*", "python3", "0123*"))
    for names in (["python3"], ["jupyter/scipy:1"], ["other", "python3"], ["", "0123" + "f" * 60]):
        quotas.check_image(USER, names, names[0])
    for names in (["python3:old"], ["jupyter"], ["", "f" * 64], []):
        with pytest.raises(NotAllowed, match="shown") as refused:
            quotas.check_image(USER, names, "shown")
        assert "jupyter/*" in refused.value.reason


@pytest.mark.parametrize(
    "wanted", [Limits(memory=GIB + 1), Limits(cpus=1.5), Limits(pids=101), Limits(pids=10**9)]
)
def test_no_kernel_may_ask_for_more(wanted: Limits) -> None:
    quotas = Quotas(maxima=Limits(memory=GIB, cpus=1, pids=100))
    quotas.check_limits(USER, Limits(memory=GIB, cpus=1, pids=100))
    quotas.check_limits(USER, Limits())
    with pytest.raises(NotAllowed):
        quotas.check_limits(USER, wanted)


def test_kernels() -> None:
    quotas = Quotas(kernels=2)
    quotas.check_kernels(USER, 1)
    with pytest.raises(QuotaExceeded, match="2 kernels, and may have 2"):
        quotas.check_kernels(USER, 2)


def test_memory_is_shared_by_all_kernels_of_a_user() -> None:
    quotas = Quotas(memory=4 * GIB)
    assert quotas.memory_left(USER, 0, None) == 4 * GIB
    assert quotas.memory_left(USER, GIB, 2 * GIB) == 2 * GIB
    assert quotas.memory_left(USER, GIB, 3 * GIB) == 3 * GIB
    assert quotas.memory_left(USER, 3 * GIB, None) == GIB
    for promised, wanted in ((GIB, 3 * GIB + 1), (4 * GIB, None), (5 * GIB, None)):
        with pytest.raises(QuotaExceeded, match=r"4\.0 GiB"):
            quotas.memory_left(USER, promised, wanted)


def test_storage() -> None:
    quotas = Quotas(storage=GIB)
    quotas.check_storage(USER, GIB // 2, GIB // 2)
    with pytest.raises(QuotaExceeded, match="1 MiB"):
        quotas.check_storage(USER, GIB, 2**20)


def test_turns() -> None:
    """One user's operations queue; another's, and root's, do not queue behind them."""

    async def work() -> None:
        turns = Turns(2)
        running: list[int] = []
        go = asyncio.Event()

        async def operation(uid: int) -> None:
            async with turns.turn(uid):
                running.append(uid)
                await go.wait()

        tasks = [asyncio.create_task(operation(uid)) for uid in (1, 1, 1, 2, 0, 0, 0)]
        for _ in range(5):
            await asyncio.sleep(0)
        assert sorted(running) == [0, 0, 0, 1, 1, 2]
        go.set()
        await asyncio.gather(*tasks)
        assert sorted(running) == [0, 0, 0, 1, 1, 1, 2]

    asyncio.run(work())
