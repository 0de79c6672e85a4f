"""What has happened to the processes' memory, in memory of two processes: it outlives either.

What is missing is what the checkpoint holds less what happened since, so whoever has the journal
and the descriptors can go on. The kernel writes its messages right into it: between their being
read and their being written down there is no moment in which a process could die.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from .userfaultfd import MESSAGE, PAGEFAULT, messages

#: Address space, not memory: what is not written costs nothing.
_SIZE = 256 * 2**20
#: Messages read at once.
_BATCH = 32
#: The kinds of slots that are ours; the kernel's are its events, and 0 is the end.
_JOINED, _OF = 1, 2
_FINISHED = 0x52535446

_ours = struct.Struct("<BxxxiiI")


class Joined(NamedTuple):
    """A process came: its pid in the images, and its descriptor (-1: not received yet)."""

    pid: int
    fd: int


class Happened(NamedTuple):
    """An event of the task with this number: tasks are counted as they joined or were forked."""

    task: int
    event: int
    words: tuple[int, int, int]


class JournalFull(Exception):
    """There was more than anybody would have thought possible."""


class Journal:
    """Made once, before the processes part; written by one of them at a time."""

    def __init__(self) -> None:
        fd = os.memfd_create("pager-journal")
        os.ftruncate(fd, _SIZE)
        self._memory = memoryview(mmap.mmap(fd, _SIZE))
        os.close(fd)
        self._end = 0

    def replay(self) -> Iterator[Joined | Happened | None]:
        """All of it from the start; afterwards it goes on from there.

        ``None`` stands for CRIU's word that the restore is finished.
        """
        at, task = 0, -1
        while kind := self._memory[at]:
            _, first, second, _ = _ours.unpack_from(self._memory, at)
            if kind == _OF:
                task = first
            elif kind == _JOINED:
                if not first:
                    break  # nobody came
                yield Joined(first, second) if first != _FINISHED else None
            elif kind != PAGEFAULT:
                # A fault is told of again when whoever waits is woken. Those that lie behind the
                # end are the rest of a larger batch, so nothing else can be among them.
                [(event, words)] = messages(self._slot(at))
                yield Happened(task, event, words)
            at += MESSAGE
        self._end = at

    def join(self, connection: socket.socket) -> Joined | None:
        """Receive CRIU's next word: a process, or that the restore is finished (``None``).

        Raises
        ------
        ConnectionError
            If it has hung up without that.
        """
        slot = self._advance(MESSAGE)
        _ours.pack_into(slot, 0, _JOINED, 0, -1, 0)
        count = connection.recv_into(slot[4:8], 4, socket.MSG_WAITALL)
        pid = _ours.unpack_from(slot)[1]
        if count < 4:
            raise ConnectionError("CRIU has given the restore up")
        if pid == _FINISHED:
            return None
        # Of a process that has ended already there is no descriptor.
        return Joined(pid, self.receive(connection, slot) if pid > 0 else -1)

    def receive(self, connection: socket.socket, slot: memoryview | None = None) -> int:
        """The descriptor that belongs to the newest process."""
        _, fds, _, _ = socket.recv_fds(connection, 1, 1)
        if not fds:
            raise ConnectionError("CRIU has given the restore up")
        self.keep(fds[0], slot)
        return fds[0]

    def keep(self, fd: int, slot: memoryview | None = None) -> None:
        """Write down the descriptor of the newest process."""
        slot = self._slot(self._end - MESSAGE) if slot is None else slot
        slot[8:12] = fd.to_bytes(4, "little")

    def read(self, task: int, fd: int) -> list[tuple[int, tuple[int, int, int]]]:
        """The messages of a task's descriptor; empty if there are none.

        Raises
        ------
        JournalFull
        """
        begin = self._end
        _ours.pack_into(self._advance((1 + _BATCH) * MESSAGE), 0, _OF, task, 0, 0)
        self._end = begin
        slots = self._memory[begin + MESSAGE : begin + (1 + _BATCH) * MESSAGE]
        try:
            size = os.readv(fd, [slots])
        except BlockingIOError:
            return []
        found = list(messages(slots[:size]))
        if any(event != PAGEFAULT for event, _ in found):
            self._end += MESSAGE + size
        return found

    def _advance(self, size: int) -> memoryview:
        if self._end + size + MESSAGE > _SIZE:
            raise JournalFull("too much happened while memory was still arriving")
        self._end += size
        return self._memory[self._end - size : self._end]

    def _slot(self, at: int) -> memoryview:
        return self._memory[at : at + MESSAGE]
