"""What a process has written is known, exactly, and the process does not notice."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jupyter_checkpoints.agent import dirty
from jupyter_checkpoints.agent.dirty import Tracker, Untracked

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not dirty.available(), reason="this kernel cannot tell what is written"
)

PAGE = mmap.PAGESIZE

#: Does one thing per line of its input: [function, arguments…]; the answer is a line as well.
TARGET = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mremap.argtypes = [ctypes.c_void_p, *[ctypes.c_size_t] * 2, ctypes.c_int, ctypes.c_void_p]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

def map(size, at=0):
    return libc.mmap(at, size, 3, 0x22 | (0x10 if at else 0), -1, 0)

def write(at, size, byte):
    ctypes.memset(at, byte, size)

def read_into(at, size):
    # The Linux kernel writes for the process here.
    with open("/dev/urandom", "rb", buffering=0) as file:
        file.readinto((ctypes.c_char * size).from_address(at))

def unmap(at, size):
    return libc.munmap(at, size)

def move(at, size, to):
    return libc.mremap(at, size, size, 3, to)

def discard(at, size):
    return libc.madvise(at, size, 4)

def fork(at, size, byte):
    # The child writes; then the parent does, elsewhere in the same memory.
    if (pid := os.fork()) == 0:
        ctypes.memset(at, byte, size)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

def drop_privileges():
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)

print("ready", flush=True)
for line in sys.stdin:
    name, *arguments = json.loads(line)
    print(json.dumps(globals()[name](*arguments)), flush=True)
"""


class Target:
    """A process that does what it is told."""

    def __init__(self, code: str = TARGET) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.line() == "ready"

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        assert self.process.stdout is not None
        return str(self.process.stdout.readline()).strip()

    def has_said_something(self) -> bool:
        assert self.process.stdout is not None
        return bool(select.select([self.process.stdout], [], [], 0)[0])

    def do(self, *what: object) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return json.loads(self.line())

    def memory(self, start: int, stop: int) -> bytes:
        fd = os.open(f"/proc/{self.pid}/mem", os.O_RDONLY)
        try:
            return os.pread(fd, stop - start, start)
        finally:
            os.close(fd)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def target(code: str = TARGET) -> Iterator[Target]:
    found = Target(code)
    try:
        yield found
    finally:
        found.end()


def within(ranges: dirty.Ranges, start: int, stop: int) -> list[int]:
    """The pages of a mapping, counted from its start, that are in ``ranges``."""
    return [
        (at - start) // PAGE
        for low, high in ranges.tolist()
        for at in range(max(low, start), min(high, stop), PAGE)
    ]


def test_what_is_written_is_told() -> None:
    with target() as process:
        size = 64 * PAGE
        at = process.do("map", size)
        process.do("write", at, size, 1)
        with Tracker(process.pid) as tracker:
            assert len(tracker.unchanged()) == 0
            assert within(tracker.unchanged(), at, at + size) == list(range(64))
            process.do("write", at + 5 * PAGE + 17, 1, 2)
            process.do("read_into", at + 9 * PAGE, 2 * PAGE)
            process.do("fork", at + 20 * PAGE, PAGE, 3)
            changed = set(range(64)) - set(within(tracker.unchanged(), at, at + size))
            assert changed == {5, 9, 10}
            assert within(tracker.unchanged(), at, at + size) == list(range(64))


def test_a_new_mapping_is_watched_from_the_next_look_on() -> None:
    with target() as process, Tracker(process.pid) as tracker:
        tracker.unchanged()
        at = process.do("map", 8 * PAGE)
        process.do("write", at, 8 * PAGE, 1)
        assert within(tracker.unchanged(), at, at + 8 * PAGE) == []
        process.do("write", at, PAGE, 2)
        assert within(tracker.unchanged(), at, at + 8 * PAGE) == list(range(1, 8))


@pytest.mark.parametrize("seed", range(4))
def test_what_is_unchanged_is_unchanged(seed: int) -> None:
    """Whatever is done to the memory: what is told to be as before has the content of before."""
    choose = random.Random(seed)
    slots, pages = 6, 32
    size = pages * PAGE
    with target() as process:
        base = process.do("map", slots * size)
        process.do("write", base, slots * size, 1)
        there = dict.fromkeys(range(slots), True)
        kept = 0
        with Tracker(process.pid) as tracker:
            tracker.unchanged()
            for _ in range(25):
                before = {
                    slot: process.memory(base + slot * size, base + (slot + 1) * size)
                    for slot, mapped in there.items()
                    if mapped
                }
                for _ in range(choose.randrange(5)):
                    slot = choose.randrange(slots)
                    start = base + slot * size
                    at = start + choose.randrange(pages) * PAGE
                    length = choose.randint(1, start + size - at)
                    what = choose.choice(
                        ["write", "read_into", "discard", "fork", "unmap", "remap", "move"]
                    )
                    if what in ("unmap", "remap") and there[slot]:
                        process.do("unmap", start, size)
                        there[slot] = False
                    if what == "unmap":
                        continue
                    if not there[slot]:
                        assert process.do("map", size, start) == start
                        process.do("write", start, size, choose.randrange(256))
                        there[slot] = True
                    other = choose.randrange(slots)
                    if what in ("write", "fork"):
                        process.do(what, at, length, choose.randrange(256))
                    elif what == "read_into":
                        process.do(what, at, length)
                    elif what == "discard":
                        process.do(what, at, -(-length // PAGE) * PAGE)
                    elif what == "move" and other != slot:
                        to = base + other * size
                        assert process.do("move", start, size, to) == to
                        there[slot], there[other] = False, True
                now = tracker.unchanged()
                for slot, content in before.items():
                    start = base + slot * size
                    for page in within(now, start, start + size):
                        assert there[slot]
                        kept += 1
                        where = page * PAGE
                        assert (
                            process.memory(start + where, start + where + PAGE)
                            == content[where : where + PAGE]
                        ), (slot, page)
        # That nothing at all was unchanged would be wrong too.
        assert kept > 25 * slots * pages / 4


WAITING = """
import os, select, signal, sys, threading, time
signal.signal(signal.SIGTRAP, lambda *_: print("trapped", flush=True))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
for _ in range(12):
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
print("ready", flush=True)
began = time.monotonic()
for _ in range(3):
    time.sleep(0.5)
    select.select([], [], [], 0.5)
end = time.monotonic()
print(2.9 < end - began, flush=True)
print(sys.stdin.readline().strip(), flush=True)
"""


def test_the_process_does_not_notice() -> None:
    """Calls that wait go on waiting, signals stay as they are, and nothing is left behind."""
    with target(WAITING) as process:

        def facts() -> list[str]:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            return [x for x in lines if x.startswith(("SigB", "SigI", "SigC", "SigP", "Tracer"))]

        before = facts()
        times = 0
        while not process.has_said_something():
            with Tracker(process.pid) as tracker:
                tracker.unchanged()
            times += 1
        assert process.line() == "True"
        assert times > 10
        assert facts() == before
        opened = [os.readlink(p) for p in Path(f"/proc/{process.pid}/fd").iterdir()]
        assert not [name for name in opened if "userfaultfd" in name]
        assert process.process.stdin is not None
        process.process.stdin.write("hello\n")
        process.process.stdin.flush()
        assert process.line() == "hello"


FORKING = """
import os, sys, threading
def storm():
    while True:
        pid = os.fork()
        if pid == 0:
            bad = any("userfaultfd" in os.readlink(f"/proc/self/fd/{fd}") for fd in range(3, 12)
                      if os.path.islink(f"/proc/self/fd/{fd}"))
            os._exit(bad)
        if os.waitpid(pid, 0)[1]:
            print("inherited", flush=True)
            os._exit(1)
threading.Thread(target=storm, daemon=True).start()
print("ready", flush=True)
sys.stdin.readline()
print("fine", flush=True)
"""


def test_no_child_inherits_the_descriptor() -> None:
    with target(FORKING) as process:
        for _ in range(20):
            Tracker(process.pid).close()
        assert process.process.stdin is not None
        process.process.stdin.write("\n")
        process.process.stdin.flush()
        assert process.line() == "fine"


def test_without_any_privilege() -> None:
    """As a user who may not have a userfaultfd himself, on most hosts."""

    with target() as process:
        process.do("drop_privileges")
        with Tracker(process.pid) as tracker:
            at = process.do("map", 4 * PAGE)
            process.do("write", at, 4 * PAGE, 1)
            tracker.unchanged()
            process.do("read_into", at, PAGE)
            assert within(tracker.unchanged(), at, at + 4 * PAGE) == [1, 2, 3]


@pytest.mark.parametrize("how", ["stopped", "traced", "gone"])
def test_who_cannot_be_watched_goes_on(how: str) -> None:
    with target() as process:
        tracer = None
        if how == "stopped":
            process.process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        elif how == "traced":
            tracer = Target(
                "import ctypes, sys\n"
                f"assert ctypes.CDLL(None).ptrace(0x4206, {process.pid}, None, None) == 0\n"
                "print('ready', flush=True)\nsys.stdin.readline()"
            )
        elif how == "gone":
            process.end()
        with pytest.raises(Untracked):
            Tracker(process.pid)
        if tracer is not None:
            tracer.end()
        process.process.send_signal(signal.SIGCONT)
        if how != "gone":
            assert process.do("map", PAGE) > 0


def test_a_process_that_has_ended_is_unknown() -> None:
    with target() as process, Tracker(process.pid) as tracker:
        tracker.unchanged()
        process.end()
        with pytest.raises(Untracked):
            tracker.unchanged()


def test_ranges_are_selected_by_weight() -> None:
    def ranges(*pairs: tuple[int, int]) -> dirty.Ranges:
        return np.array(pairs, np.int64).reshape(-1, 2)

    found = dirty._selected(
        [
            (ranges((0, 10), (10, 20), (30, 40)), 1),
            (ranges((5, 35)), 1),
            (ranges((12, 14), (33, 50)), -1),
        ],
        2,
    )
    assert found.tolist() == [[5, 12], [14, 20], [30, 33]]
    assert len(dirty._selected([(ranges(), 1), (ranges(), 1)], 2)) == 0
