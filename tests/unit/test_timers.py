"""Expired periodic timers in CRIU's images; the resume itself is tested with real kernels."""

from __future__ import annotations

from pathlib import Path

import pytest

from jupyter_checkpoints.agent.criu import entries, wire
from jupyter_checkpoints.agent.timers import rearm
from jupyter_checkpoints.errors import SaveFailed

MAGIC = b"\x19\x43\x56\x54\x02\x34\x45\x67"
TFD = 12


def number(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes((value & 127 | 128,))
        value >>= 7
    return out + bytes((value,))


def message(**fields: int | bytes) -> bytes:
    out = b""
    for name, value in fields.items():
        key = int(name[1:]) << 3
        if isinstance(value, bytes):
            out += number(key | 2) + number(len(value)) + value
        else:
            out += number(key) + number(value)
    return out


def timer(left: int, interval: int, ticks: int = 1, owner: bytes = b"\x08\x01") -> bytes:
    """A timerfd's entry; times in nanoseconds below a second."""
    return message(
        f1=17,
        f2=4,
        f12=message(f1=4, f2=2, f3=owner, f4=1, f5=ticks, f6=0, f7=0, f8=left, f9=0, f10=interval),
    )


OTHER = message(f1=1, f2=5, f3=message(f6=b"root/a file", f8=70000))


def write(images: Path, *content: bytes) -> None:
    data = MAGIC + b"".join(len(entry).to_bytes(4, "little") + entry for entry in content)
    (images / "files.img").write_bytes(data)


def core(
    left: int = 0,
    interval: int = 0,
    signals: tuple[int, ...] = (),
    real: bytes | None = None,
) -> bytes:
    """A task's core; microseconds of its ``ITIMER_REAL``, and the signals that CRIU saw waiting."""
    real = real or message(f1=0, f2=interval, f3=0, f4=left)
    queue = b"".join(
        message(f1=message(f1=number.to_bytes(4, "little") + bytes(124))) for number in signals
    )
    timers = message(
        f1=real, f2=message(f1=0, f2=0, f3=0, f4=0), f3=message(f1=1, f2=0, f3=0, f4=9)
    )
    task = message(f1=1, f2=0, f3=0, f4=0, f5=0, f6=b"python", f7=timers, f10=queue)
    return message(f1=1, f3=task, f4=message(f1=7))


def write_core(images: Path, content: bytes) -> Path:
    write(images)
    path = images / "core-31.img"
    path.write_bytes(MAGIC + len(content).to_bytes(4, "little") + content)
    return path


ALARM = {31: 1 << 13, 32: 0}


@pytest.mark.parametrize(
    ("before", "waited", "after"),
    [
        pytest.param(
            core(),
            ALARM,
            core(real=bytes((8, 0, 16, 0, 24, 0, 32, 0, 24, 0, 32, 1))),
            id="expired between the two looks",
        ),
        pytest.param(
            core(interval=300),
            {},
            core(real=message(f1=0, f2=300, f3=0, f4=0) + bytes((24, 0, 32, 1))),
            id="periodic",
        ),
        pytest.param(
            core(interval=300, signals=(10, 14)),
            ALARM,
            core(signals=(10, 14), real=message(f1=0, f2=300, f3=0, f4=0) + message(f3=0, f4=300)),
            id="periodic, and its signal is known",
        ),
    ],
)
def test_an_expired_alarm_comes_yet(
    tmp_path: Path, before: bytes, waited: dict[int, int], after: bytes
) -> None:
    path = write_core(tmp_path, before)
    assert rearm(tmp_path, waited) == 1
    assert list(entries(path)) == [after]


@pytest.mark.parametrize(
    ("content", "waited"),
    [
        pytest.param(core(), {31: 1 << 12}, id="never set"),
        pytest.param(core(left=5), ALARM, id="still to come"),
        pytest.param(core(signals=(14,)), ALARM, id="its signal is known"),
        pytest.param(core(), {32: 1 << 13}, id="another process's"),
        pytest.param(message(f1=1, f5=message(f1=1)), ALARM, id="a thread"),
    ],
)
def test_other_alarms_stay_as_they_are(
    tmp_path: Path, content: bytes, waited: dict[int, int]
) -> None:
    path = write_core(tmp_path, content)
    before = path.read_bytes()
    assert rearm(tmp_path, waited) == 0
    assert path.read_bytes() == before


def left(entry: bytes) -> int:
    fields = dict(wire(entry))[TFD]
    assert isinstance(fields, bytes)
    value = dict(wire(fields))[8]
    assert isinstance(value, int)
    return value


@pytest.mark.parametrize("owner", [b"\x08\x01", bytes(300)])
def test_an_expired_periodic_timer_goes_on(tmp_path: Path, owner: bytes) -> None:
    write(tmp_path, OTHER, timer(0, 20_000_000, owner=owner), OTHER)
    assert rearm(tmp_path, {}) == 1

    first, changed, last = entries(tmp_path / "files.img")
    assert (first, last) == (OTHER, OTHER)
    assert left(changed) == 1
    before, after = dict(wire(timer(0, 20_000_000, owner=owner))), dict(wire(changed))
    one, two = before.pop(TFD), after.pop(TFD)
    assert before == after
    assert isinstance(one, bytes)
    assert isinstance(two, bytes)
    assert {**dict(wire(one)), 8: 1} == dict(wire(two))
    # And so for every generation after.
    assert rearm(tmp_path, {}) == 0


@pytest.mark.parametrize(
    "entry", [timer(5, 20_000_000), timer(0, 0), timer(900, 0, ticks=0), OTHER]
)
def test_all_others_stay_as_they_are(tmp_path: Path, entry: bytes) -> None:
    write(tmp_path, entry)
    before = (tmp_path / "files.img").read_bytes()
    assert rearm(tmp_path, {}) == 0
    assert (tmp_path / "files.img").read_bytes() == before


@pytest.mark.parametrize("cut", [1, 3, 20])
def test_what_is_not_understood_fails_the_save(tmp_path: Path, cut: int) -> None:
    write(tmp_path, timer(0, 1))
    path = tmp_path / "files.img"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(SaveFailed, match="not understood"):
        rearm(tmp_path, {})
