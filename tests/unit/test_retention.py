"""What retention deletes, and what it never does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from jupyter_checkpoints.models import CheckpointModel, HostFacts
from jupyter_checkpoints.retention import Policy, prunable

START = datetime(2026, 3, 1, tzinfo=UTC)
HOST = HostFacts(
    arch="",
    cpu_model="",
    cpu_flags=[],
    kernel_release="",
    criu_version="",
    runc_version="",
    engine="",
    pool="",
    boot_id="",
)
NONE = Policy(last=0, hourly=0, daily=0, weekly=0)


def checkpoint(number: int, hours: float = 0, runtime: str = "r", **facts: Any) -> CheckpointModel:
    created = (START + timedelta(hours=hours or number)).isoformat(timespec="milliseconds")
    facts = {"trigger": "cull", **facts}
    return CheckpointModel(
        id=f"c{number}",
        kernel_id="k",
        uid=0,
        mode="process",
        created=created,
        image="",
        image_digest="",
        argv=[],
        host=HOST,
        runtime=runtime,
        **facts,
    )


def deleted(checkpoints: list[CheckpointModel], policy: Policy, size: int = 10) -> list[str]:
    sizes = {c.id: size for c in checkpoints}
    return [v.checkpoint for v in prunable(checkpoints, sizes, policy)]


def test_the_newest_stays() -> None:
    assert deleted([checkpoint(n) for n in range(1, 5)], NONE) == ["c1", "c2", "c3"]


def test_the_last_ones() -> None:
    policy = Policy(last=2, hourly=0, daily=0, weekly=0)
    assert deleted([checkpoint(n) for n in range(1, 5)], policy) == ["c1", "c2"]


def test_one_for_each_period() -> None:
    line = [checkpoint(n, hours=n * 6) for n in range(1, 9)]
    # c8 is of the third day's first moment, c7 of the second, c3 of the first.
    two_days = Policy(last=1, hourly=0, daily=2, weekly=0)
    assert deleted(line, two_days) == ["c1", "c2", "c3", "c4", "c5", "c6"]
    three_days = Policy(last=1, hourly=0, daily=3, weekly=0)
    assert deleted(line, three_days) == ["c1", "c2", "c4", "c5", "c6"]
    three_hours = Policy(last=1, hourly=3, daily=0, weekly=0)
    assert deleted(line, three_hours) == ["c1", "c2", "c3", "c4", "c5"]


def test_what_somebody_wanted_stays() -> None:
    line = [
        checkpoint(1, pinned=True),
        checkpoint(2, name="x"),
        checkpoint(3, trigger="manual"),
        checkpoint(4),
        checkpoint(5),
    ]
    assert deleted(line, NONE) == ["c4"]


def test_a_quota_takes_autosaves_first() -> None:
    line = [
        checkpoint(1, trigger="manual"),
        checkpoint(2),
        checkpoint(3, pinned=True),
        checkpoint(4),
        checkpoint(5),
    ]
    keep = {"last": 10, "hourly": 0, "daily": 0, "weekly": 0}
    assert deleted(line, Policy(**keep, runtime_quota=40)) == ["c2"]
    assert deleted(line, Policy(**keep, runtime_quota=21)) == ["c2", "c4", "c1"]
    # Never the newest, nor a pinned one, however small the quota.
    assert deleted(line, Policy(**keep, runtime_quota=1)) == ["c2", "c4", "c1"]


def test_the_users_quota_is_over_all_runtimes() -> None:
    lines = [checkpoint(n, runtime=f"r{n % 2}") for n in range(1, 7)]
    keep = Policy(last=10, hourly=0, daily=0, weekly=0, user_quota=30)
    assert deleted(lines, keep) == ["c1", "c2", "c3"]


def test_without_a_runtime_nothing_is_touched() -> None:
    assert deleted([checkpoint(n, runtime="") for n in range(1, 5)], NONE) == []


made = st.builds(
    checkpoint,
    st.integers(1, 10_000),
    hours=st.floats(0.1, 5000),
    runtime=st.sampled_from(["", "a", "b"]),
    pinned=st.booleans(),
    name=st.sampled_from(["", "x"]),
    trigger=st.sampled_from(["cull", "idle", "manual"]),
)
policies = st.builds(
    Policy,
    last=st.integers(0, 5),
    hourly=st.integers(0, 5),
    daily=st.integers(0, 5),
    weekly=st.integers(0, 5),
    runtime_quota=st.integers(0, 60),
    user_quota=st.integers(0, 90),
)


@given(st.lists(made, max_size=20, unique_by=lambda c: c.id), policies)
def test_always(checkpoints: list[CheckpointModel], policy: Policy) -> None:
    gone = set(deleted(checkpoints, policy))
    assert len(gone) == len(deleted(checkpoints, policy))
    by_age = sorted(checkpoints, key=lambda c: (c.created, c.id), reverse=True)
    for runtime in ("a", "b"):
        line = [c for c in by_age if c.runtime == runtime]
        assert not line or line[0].id not in gone
        if not (policy.runtime_quota or policy.user_quota):
            assert not gone & {c.id for c in line[: policy.last]}
    for one in checkpoints:
        if one.pinned or not one.runtime:
            assert one.id not in gone
    # Once done it is done.
    assert deleted([c for c in checkpoints if c.id not in gone], policy) == []
