"""How long the callbacks of an event loop hold it: ``python -m benchmarks.held LOG MODULE ...``.

Runs a module, as ``python -m`` does, and writes a line for each callback that held the event loop
of its first thread for long. For Jupyter Server it is an extension. What counts is the time from a
callback's begin to its end, without that in which Linux had no processor for the thread: what is
left is work, or waiting for a file, a lock, or another thread that holds Python's.
"""

from __future__ import annotations

import asyncio
import os
import runpy
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

#: What the extension's log is.
LOG_ENV = "BENCHMARK_HELD_LOG"
#: Seconds; less is not worth a line.
_LEAST = 0.002


class Held(Struct, frozen=True, kw_only=True):
    """One callback."""

    at: float
    """When it began, on the monotonic clock, which all processes share."""
    seconds: float
    callback: str


def watch(log: Path) -> None:
    """From now on what holds the event loop of this thread is written to ``log``."""
    thread = threading.get_ident()
    # proc(5): nanoseconds on a processor, nanoseconds of waiting for one, time slices.
    scheduled = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
    lines = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    run = asyncio.Handle._run

    def waited() -> float:
        return int(os.pread(scheduled, 96, 0).split()[1]) / 1e9

    def watched(handle: asyncio.Handle) -> None:
        if threading.get_ident() != thread:
            run(handle)
            return
        before, began = waited(), time.monotonic()
        try:
            run(handle)
        finally:
            took = time.monotonic() - began
            if took > _LEAST:
                held = Held(at=began, seconds=took - (waited() - before), callback=repr(handle))
                os.write(lines, msgspec.json.encode(held) + b"\n")

    asyncio.Handle._run = watched  # type: ignore[method-assign, assignment]


def between(log: Path, began: float, ended: float) -> list[Held]:
    """What was written of callbacks that began in that time on the monotonic clock."""
    found = [msgspec.json.decode(line, type=Held) for line in log.read_bytes().splitlines()]
    return [held for held in found if began <= held.at <= ended]


def _load_jupyter_server_extension(app: Any) -> None:
    watch(Path(os.environ[LOG_ENV]))


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": __name__}]


if __name__ == "__main__":
    _, place, module, *sys.argv[1:] = sys.argv
    watch(Path(place))
    runpy.run_module(module, run_name="__main__", alter_sys=True)
