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


def left(entry: bytes) -> int:
    fields = dict(wire(entry))[TFD]
    assert isinstance(fields, bytes)
    value = dict(wire(fields))[8]
    assert isinstance(value, int)
    return value


@pytest.mark.parametrize("owner", [b"\x08\x01", bytes(300)])
def test_an_expired_periodic_timer_goes_on(tmp_path: Path, owner: bytes) -> None:
    write(tmp_path, OTHER, timer(0, 20_000_000, owner=owner), OTHER)
    assert rearm(tmp_path) == 1

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
    assert rearm(tmp_path) == 0


@pytest.mark.parametrize(
    "entry", [timer(5, 20_000_000), timer(0, 0), timer(900, 0, ticks=0), OTHER]
)
def test_all_others_stay_as_they_are(tmp_path: Path, entry: bytes) -> None:
    write(tmp_path, entry)
    before = (tmp_path / "files.img").read_bytes()
    assert rearm(tmp_path) == 0
    assert (tmp_path / "files.img").read_bytes() == before


@pytest.mark.parametrize("cut", [1, 3, 20])
def test_what_is_not_understood_fails_the_save(tmp_path: Path, cut: int) -> None:
    write(tmp_path, timer(0, 1))
    path = tmp_path / "files.img"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(SaveFailed, match="not understood"):
        rearm(tmp_path)
