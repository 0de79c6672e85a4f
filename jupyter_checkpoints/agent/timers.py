"""Timers that had expired at the moment of a save, and that CRIU would leave stopped, or forget.

The kernel does not rearm a periodic timer before somebody reads it (a timerfd) or gets its signal
(``setitimer``), so one that expires while it is frozen, or waits to be read, says it has no time
left. CRIU restores exactly that, and no time left means stopped: every timer shorter than the pause
would never fire again. One nanosecond is what it should say.

And CRIU writes down which signals wait for a process before its memory, and its timers after that.
The signal of a timer that expires in between is in neither.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from ..errors import SaveFailed
from .criu import FILES, wire

# fdinfo.proto: file_entry.tfd = 12; timerfd.proto: ticks = 5, vsec = 7, vnsec = 8 (what is left),
# isec = 9, insec = 10 (the interval).
_TFD = 12
_LEFT = (7, 8)
_INTERVAL = (9, 10)
_NANOSECOND = bytes((8 << 3, 1))
# core.proto: core_entry.tc = 3; task_core_entry.timers = 7, signals_s = 10;
# task_timers_entry.real = 1. timer.proto: itimer_entry.isec = 1, iusec = 2 (the interval),
# vsec = 3, vusec = 4 (what is left). siginfo.proto: signals = 1, siginfo = 1.
_TASK, _TIMERS, _SIGNALS, _REAL = 3, 7, 10, 1
_ALARM = 1 << (signal.SIGALRM - 1)


def waiting(pids: Iterable[int]) -> dict[int, int]:
    """Which signals wait for these processes, by their innermost pids; bit 0 is signal 1.

    Called when CRIU has written down all about the processes, and they still stand still.
    """
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            status = dict(
                line.split(":\t", 1)
                for line in Path(f"/proc/{pid}/status").read_text().splitlines()
                if ":\t" in line
            )
            found[int(status["NSpid"].split()[-1])] = int(status["ShdPnd"], 16)
    return found


def rearm(images: Path, waited: Mapping[int, int]) -> int:
    """Let the expired timers in the images of a dump go on; how many there were.

    Called after each dump, before its files are sealed, with what :func:`waiting` has told of it
    (nothing: timers that expired within the dump are not looked for). Blocking.

    Raises
    ------
    OSError
        If the images cannot be read or written.
    SaveFailed
        If they cannot be understood.
    """
    try:
        count = _amend(images / FILES, _rearmed)
        for path in images.glob("core-*.img"):
            signals = waited.get(int(path.stem.removeprefix("core-")), 0)
            count += _amend(path, partial(_alarmed, waited=signals))
    except ValueError as error:
        raise SaveFailed(
            "The kernel could not be saved; it goes on running.",
            reason=f"What CRIU wrote about open files or timers is not understood: {error}.",
            hint="Is the CRIU of this host newer than this release? `jupyter checkpoints doctor`.",
        ) from error
    return count


def _amend(path: Path, amended: Callable[[bytes], tuple[bytes, bool]]) -> int:
    data = path.read_bytes()
    entries = [amended(entry) for entry in _entries(data)]
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
    return _replaced(entry, _TFD, timer, timer + _NANOSECOND), True


def _alarmed(core: bytes, waited: int) -> tuple[bytes, bool]:
    """The core with the timer of ``setitimer(ITIMER_REAL)`` set, if it has expired in the dump."""
    task = dict(wire(core)).get(_TASK)
    timers = dict(wire(task)).get(_TIMERS) if isinstance(task, bytes) else None
    real = dict(wire(timers)).get(_REAL) if isinstance(timers, bytes) else None
    if not (isinstance(task, bytes) and isinstance(timers, bytes) and isinstance(real, bytes)):
        return core, False
    every_second, every_micro, second, micro = (dict(wire(real)).get(n, 0) for n in (1, 2, 3, 4))
    if second or micro:
        return core, False
    if signal.SIGALRM in _signals(task):
        # It is told already; a periodic one begins again when that is heard.
        second, micro = every_second, every_micro
    elif every_second or every_micro or waited & _ALARM:
        second, micro = 0, 1
    if not (second or micro) or isinstance(second, bytes) or isinstance(micro, bytes):
        return core, False
    left = bytes((3 << 3,)) + _varint(second) + bytes((4 << 3,)) + _varint(micro)
    changed = _replaced(timers, _REAL, real, real + left)
    return _replaced(core, _TASK, task, _replaced(task, _TIMERS, timers, changed)), True


def _signals(task: bytes) -> Iterator[int]:
    queue = dict(wire(task)).get(_SIGNALS)
    for _, entry in wire(queue) if isinstance(queue, bytes) else ():
        info = dict(wire(entry)).get(1) if isinstance(entry, bytes) else None
        if isinstance(info, bytes):
            yield int.from_bytes(info[:4], "little")


def _replaced(message: bytes, number: int, before: bytes, after: bytes) -> bytes:
    """The message with another content of one of its fields."""
    if message.count(_field(number, before)) != 1:
        raise ValueError("a timer")
    return message.replace(_field(number, before), _field(number, after))


def _field(number: int, content: bytes) -> bytes:
    """A message as a field: key, length, message."""
    return bytes((number << 3 | 2,)) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found += bytes((value & 0x7F | 0x80,))
        value >>= 7
    return found + bytes((value,))
