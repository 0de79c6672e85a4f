"""Periodic timers that had expired at the moment of a save, and that CRIU would leave stopped.

The kernel does not rearm a periodic timerfd before somebody reads it, so one that expires while it
is frozen, or waits to be read, says it has no time left. CRIU restores exactly that, and no time
left means stopped: every timer shorter than the pause would never fire again. One nanosecond is
what it should say.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import SaveFailed
from .criu import wire

# fdinfo.proto: file_entry.tfd = 12; timerfd.proto: ticks = 5, vsec = 7, vnsec = 8 (what is left),
# isec = 9, insec = 10 (the interval).
_TFD = 12
_LEFT = (7, 8)
_INTERVAL = (9, 10)
_NANOSECOND = bytes((8 << 3, 1))


def rearm(images: Path) -> int:
    """Let the expired periodic timers in the images of a dump go on; how many there were.

    Called after each dump, before its files are sealed. Blocking.

    Raises
    ------
    OSError
        If the images cannot be read or written.
    SaveFailed
        If they cannot be understood.
    """
    path = images / "files.img"
    data = path.read_bytes()
    try:
        entries = [_rearmed(entry) for entry in _entries(data)]
    except ValueError as error:
        raise SaveFailed(
            "The kernel could not be saved; it goes on running.",
            reason=f"The list of open files that CRIU wrote is not understood: {error}.",
            hint="Is the CRIU of this host newer than this release? `jupyter checkpoints doctor`.",
        ) from error
    count = sum(changed for _, changed in entries)
    if count:
        temporary = path.with_suffix(".tmp")
        pieces = [len(entry).to_bytes(4, "little") + entry for entry, _ in entries]
        temporary.write_bytes(data[:8] + b"".join(pieces))
        os.replace(temporary, path)
    return count


def _entries(data: bytes) -> Iterator[bytes]:
    at = 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        if at + 4 + size > len(data):
            raise ValueError("it ends within an entry")
        yield data[at + 4 : at + 4 + size]
        at += 4 + size


def _rearmed(entry: bytes) -> tuple[bytes, bool]:
    """The entry, with one nanosecond left if it is an expired periodic timer; whether it is one."""
    timer = dict(wire(entry)).get(_TFD)
    if not isinstance(timer, bytes):
        return entry, False
    fields = dict(wire(timer))
    if any(fields.get(number) for number in _LEFT):
        return entry, False
    if not any(fields.get(number) for number in _INTERVAL):
        return entry, False
    # Of a number that comes twice the last one counts: what is appended replaces.
    before, after = _field(timer), _field(timer + _NANOSECOND)
    if entry.count(before) != 1:
        raise ValueError("a timer")
    return entry.replace(before, after), True


def _field(timer: bytes) -> bytes:
    """The timer as a field of its entry: key, length, message."""
    length, size = b"", len(timer)
    while size > 127:
        length += bytes((size & 0x7F | 0x80,))
        size >>= 7
    return bytes((_TFD << 3 | 2,)) + length + bytes((size,)) + timer
