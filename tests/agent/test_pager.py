"""The pager by itself: processes with real userfaultfds, and every event that there is.

The rest of the memory is held back in these tests, so that what they do happens before it is there.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from jupyter_checkpoints.agent.pager import pair
from jupyter_checkpoints.agent.pager.images import lazy_extents
from jupyter_checkpoints.agent.pager.journal import Journal
from jupyter_checkpoints.agent.pager.missing import Extent
from jupyter_checkpoints.agent.pager.server import AROUND, Server
from jupyter_checkpoints.agent.pager.userfaultfd import PAGE
from jupyter_checkpoints.errors import CheckpointDamaged
from jupyter_checkpoints.store.source import PageSource, damaged

pytestmark = pytest.mark.timeout(60)

BASE = 0x7E00_0000_0000
MIB = 2**20
SIZE = 16 * MIB
#: Pages that the checkpoint does not hold: the second MiB.
HOLE = range(BASE + MIB, BASE + 2 * MIB)
VICTIM = Path(__file__).with_name("pager_victim.py")


class HeldBack(PageSource):
    """Pages that name themselves. Reads larger than a fault's wait until they are let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.damaged = False

    def files(self) -> dict[str, int]:
        return {"pages-1.img": SIZE}

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        if len(buffer) > AROUND:
            assert self.go.wait(30)
        if self.damaged:
            raise damaged("test", "pages-1.img: its content is not what was saved")
        first = offset // PAGE
        pages = range(first, first + len(buffer) // PAGE)
        buffer[:] = b"".join((n + 1).to_bytes(8, "little") * (PAGE // 8) for n in pages)

    def close(self) -> None:
        pass


def _message(*fields: tuple[int, int | bytes]) -> bytes:
    """A protobuf message with its size before it, as in CRIU's images."""
    data = b""
    for number, value in fields:
        if isinstance(value, bytes):
            data += _varint(number << 3 | 2) + _varint(len(value)) + value
        else:
            data += _varint(number << 3) + _varint(value)
    return data


def _varint(value: int) -> bytes:
    data = b""
    while value > 127:
        data += bytes((value & 127 | 128,))
        value >>= 7
    return data + bytes((value,))


def _image(path: Path, *messages: bytes) -> None:
    path.write_bytes(
        bytes(8) + b"".join(len(message).to_bytes(4, "little") + message for message in messages)
    )


@pytest.fixture
def extents(tmp_path: Path) -> dict[int, list[Extent]]:
    """One process: 16 MiB of memory, of which the second was never written; the first page of the
    file of pages is one that may not come later."""
    lazy, eager = 6, 4
    _image(
        tmp_path / "pagemap-1.img",
        _message((1, 1)),
        _message((1, 0x10000), (2, 1), (4, eager)),
        _message((1, BASE), (2, MIB // PAGE), (4, lazy)),
        *(
            _message((1, start), (5, MIB // PAGE), (4, lazy))
            for start in range(HOLE.stop, BASE + SIZE, MIB)
        ),
    )
    area = _message((1, BASE), (2, BASE + SIZE))
    _image(tmp_path / "mm-1.img", _message((14, area)))
    return lazy_extents(tmp_path)


class Victim:
    """A process in whose memory things happen before that is there."""

    def __init__(self, directory: Path, code: str) -> None:
        listening = socket.socket(socket.AF_UNIX)
        path = directory / "s"
        path.unlink(missing_ok=True)
        listening.bind(str(path))
        listening.listen()
        arguments = [str(path), str(BASE), str(SIZE // MIB), code]
        self.process = subprocess.Popen(
            [sys.executable, str(VICTIM), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.connection, _ = listening.accept()
        listening.close()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def result(self) -> str:
        assert self.process.stdout is not None
        with self.process.stdout, self.connection:
            text = self.process.stdout.read()
        assert self.process.wait(30) == 0
        self.end()
        return text

    def end(self) -> None:
        """Whether it has ended or not."""
        self.process.kill()
        self.process.communicate()
        self.connection.close()


@pytest.fixture
def keeper() -> Iterator[int]:
    fd = os.pidfd_open(os.getpid())
    yield fd
    os.close(fd)


# File of pages: page 0 is the eager one, BASE is page 1, what is behind the hole follows.
SECOND = 1 + MIB // PAGE
SCENARIOS = {
    "touch": (
        "print(whole(base, 1), whole(base + size - PAGE, 15 * 256), word(base + MIB + 5 * PAGE))",
        "True True 0",
    ),
    "everything": (
        "print(words(base, MIB) == expected(1, MIB), set(words(base + MIB, MIB)),"
        f"words(base + 2 * MIB, size - 2 * MIB) == expected({SECOND}, size - 2 * MIB))",
        "True {0} True",
    ),
    "write": (
        "ctypes.memset(base + 3 * PAGE + 9, 7, 1)\n"
        "print(ctypes.string_at(base + 3 * PAGE, 10).hex(), whole(base + 4 * PAGE, 5))",
        "05000000000000000507 True",
    ),
    "fork": (
        "print(in_child('words(base, MIB) == expected(1, MIB)'))\n"
        f"print(in_child('words(base + 2 * MIB, MIB) == expected({SECOND}, MIB)'))\n"
        "print(words(base, MIB) == expected(1, MIB))",
        "True\nTrue\nTrue",
    ),
    "grandchild": (
        "print(in_child('in_child(\"words(base, MIB) == expected(1, MIB)\")'))",
        "'True'",
    ),
    "mremap": (
        "to = base + 64 * MIB\n"
        "move(base + 4 * MIB, 4 * MIB, to)\n"
        f"print(words(to, 4 * MIB) == expected({SECOND} + 2 * 256, 4 * MIB))\n"
        "map_memory(base + 4 * MIB, MIB)\n"
        "print(set(words(base + 4 * MIB, MIB)))\n"
        "move(to, MIB, base)\n"
        f"print(words(base, MIB) == expected({SECOND} + 2 * 256, MIB))",
        "True\n{0}\nTrue",
    ),
    "mremap unread": (
        "move(base + 4 * MIB, 4 * MIB, base + 64 * MIB)\n"
        "move(base + 64 * MIB, 2 * MIB, base + 96 * MIB)\n"
        "sys.stdin.readline()\n"
        f"print(words(base + 96 * MIB, 2 * MIB) == expected({SECOND} + 2 * 256, 2 * MIB),"
        f"words(base + 66 * MIB, 2 * MIB) == expected({SECOND} + 4 * 256, 2 * MIB))",
        "True True",
    ),
    "madvise": (
        "drop(base + 2 * MIB, 2 * MIB)\n"
        "print(set(words(base + 2 * MIB, 2 * MIB)))\n"
        f"print(words(base + 4 * MIB, MIB) == expected({SECOND} + 2 * 256, MIB))\n"
        "word(base); drop(base, PAGE); print(word(base), word(base + PAGE))",
        "{0}\nTrue\n0 3",
    ),
    "munmap": (
        "unmap(base + 2 * MIB, MIB)\n"
        "map_memory(base + 2 * MIB, MIB)\n"
        "print(set(words(base + 2 * MIB, MIB)))\n"
        f"print(words(base + 3 * MIB, MIB) == expected({SECOND} + 256, MIB))",
        "{0}\nTrue",
    ),
    "exec": (
        'print(in_child(\'os.execv("/bin/true", ["true"])\'), words(base, PAGE))',
        " [2]",
    ),
}


@pytest.mark.parametrize("when", ["before", "while"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_whatever_happens_to_memory(
    tmp_path: Path, extents: dict[int, list[Extent]], keeper: int, name: str, when: str
) -> None:
    """Every byte is right, whether it comes before or while the rest is brought."""
    code, expected = SCENARIOS[name]
    victim = Victim(tmp_path, code)
    pages = HeldBack()
    server = Server(victim.connection, extents, pages, Journal(), {})
    serving = threading.Thread(target=server.serve, args=(keeper,))
    serving.start()
    if when == "while":
        pages.go.set()
    victim.go()
    if "readline" in code:
        pages.go.set()
        victim.go()
    text = victim.result()
    pages.go.set()
    serving.join(30)
    assert not serving.is_alive()
    assert text.strip() == expected.strip()


def test_what_was_touched_is_told_and_comes_first(
    tmp_path: Path, extents: dict[int, list[Extent]], keeper: int
) -> None:
    far = BASE + 9 * MIB
    victim = Victim(tmp_path, f"print(word({far}), word({far} + PAGE))")
    pages = HeldBack()
    server = Server(victim.connection, extents, pages, Journal(), {})
    serving = threading.Thread(target=server.serve, args=(keeper,))
    serving.start()
    victim.go()
    victim.result()
    pages.go.set()
    serving.join(30)
    assert server.touched == [(1, far, far + AROUND)]
    read: list[int] = []

    class Watched(HeldBack):
        def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
            read.append(offset)
            super().read_into(name, offset, buffer)

    victim = Victim(tmp_path, "print(1)")
    pages = Watched()
    pages.go.set()
    Server(victim.connection, extents, pages, Journal(), {1: [(far, far + AROUND)]}).serve(keeper)
    victim.go()
    victim.result()
    # Two threads bring them: it is among the first that either has read.
    assert 8 * MIB + PAGE in read[:2]


def test_damage_is_an_error_and_no_page(
    tmp_path: Path, extents: dict[int, list[Extent]], keeper: int
) -> None:
    victim = Victim(tmp_path, "print(word(base))")
    pages = HeldBack()
    pages.damaged = True
    pages.go.set()
    with pytest.raises(CheckpointDamaged, match="not what was saved"):
        Server(victim.connection, extents, pages, Journal(), {}).serve(keeper)
    victim.go()
    # It waits for its page, and never gets a wrong one.
    with pytest.raises(subprocess.TimeoutExpired):
        victim.process.wait(0.5)
    victim.end()


class Slow(HeldBack):
    """So that there is time to kill before all is there, and no wait once that is wanted."""

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        if len(buffer) > AROUND:
            time.sleep(0.2)
        self.go.set()
        super().read_into(name, offset, buffer)


@pytest.mark.parametrize("doomed", ["work", "keeper", "both in turn"])
@pytest.mark.parametrize("name", ["everything", "fork", "mremap unread", "madvise", "munmap"])
def test_kill_9_of_one_of_the_pair(
    tmp_path: Path, extents: dict[int, list[Extent]], name: str, doomed: str
) -> None:
    """Killed again and again, before all is there: every page is right."""
    code, expected = SCENARIOS[name]
    victim = Victim(tmp_path, code)
    read, write = os.pipe()
    main = os.fork()
    if main == 0:
        _run_pair(victim.connection, extents, write)
    os.close(write)
    with os.fdopen(read) as reports:
        keeper, worker = map(int, reports.readline().split())
        victim.go()
        for turn in range(6):
            work = doomed == "work" or (doomed != "keeper" and turn % 2 == 1)
            os.kill(worker if work else keeper, signal.SIGKILL)
            keeper, worker = map(int, reports.readline().split())
        if "readline" in code:
            victim.go()
        text = victim.result()
        assert text.strip() == expected.strip()
        assert reports.readline() == "done\n"
        assert reports.read() == ""  # both have ended
    os.waitpid(main, 0)


def _run_pair(connection: socket.socket, extents: dict[int, list[Extent]], report: int) -> None:
    """The pair in processes of its own; each that works tells who it and its keeper are."""
    journal = Journal()

    def work(keeper: int) -> int:
        os.write(report, f"{os.getppid()} {os.getpid()}\n".encode())
        Server(connection, extents, Slow(), journal, {}).serve(keeper)
        os.write(report, b"done\n")
        return 0

    try:
        os._exit(pair.run(work))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(99)
