"""Gives processes their missing pages: first what they touch, meanwhile all else."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable

from ...store.source import PageSource
from . import userfaultfd
from .journal import Happened, Joined, Journal
from .missing import Extent, Missing
from .pair import KeeperKilled
from .userfaultfd import FORK, PAGE, PAGEFAULT, REMAP, REMOVE

#: Bytes around a page that somebody waits for, which come with it.
AROUND = 256 * 2**10
#: Bytes that are read, and given, at once while nobody waits.
_READ = 2**20
_GIVE = 256 * 2**10
_FILLERS = 2
#: Bytes ahead of somebody who goes through memory in order that are brought before all else.
_AHEAD = 64 * 2**20
_RETRY_SECONDS = 0.001


class Task:
    """A process whose memory is still arriving."""

    def __init__(self, number: int, fd: int, pid: int, missing: Missing) -> None:
        self.number = number
        self.fd = fd
        self.pid = pid
        """In the images; 0 if it was forked since."""
        self.missing = missing
        self.lock = threading.Lock()
        """Held while messages are read and while pages are given: after an event was read no page
        of before may be given."""
        self.ended = False
        """The process is gone. Its descriptor stays open, so that no other gets its number."""


class Buffer:
    """Memory to read pages into, with its address."""

    def __init__(self, size: int) -> None:
        self._memory = ctypes.create_string_buffer(size + PAGE)
        base = ctypes.addressof(self._memory)
        skip = -base % PAGE
        self.address = base + skip
        self.view = memoryview(self._memory).cast("B")[skip : skip + size]


class Server:
    """One resume. Made anew in the process that replaces one that was killed.

    Parameters
    ----------
    connection:
        CRIU's, from ``lazy-pages.socket``.
    extents:
        What may come later, by pid, see :func:`~.images.lazy_extents`.
    touched:
        What was touched first after earlier resumes of this checkpoint, by pid: it comes first.
    """

    def __init__(
        self,
        connection: socket.socket,
        extents: dict[int, list[Extent]],
        pages: PageSource,
        journal: Journal,
        touched: dict[int, list[tuple[int, int]]],
    ) -> None:
        self._connection = connection
        self._extents = extents
        self._pages = pages
        self._journal = journal
        self._before = touched
        #: What was waited for, in order: (pid, start, end).
        self.touched: list[tuple[int, int, int]] = []
        self._tasks: list[Task] = []
        self._finished = False
        self._waiting: list[tuple[Task, int]] = []
        """Who could not be given the page at this address yet."""
        self._plan: deque[tuple[Task, int, int]] = deque()
        self._reader: tuple[Task, int, int] | None = None
        """Who goes through memory in order; from where to where it is to be brought first."""
        self._last_end = 0
        self._plan_lock = threading.Lock()
        self._quiet = threading.Event()
        """Nobody waits for a page: the fillers may go on."""
        self._quiet.set()
        self._stopping = False
        self._failure: Exception | None = None
        self._buffer = Buffer(AROUND)
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def serve(self, keeper: int) -> None:
        """Until all pages of all processes are there.

        Raises
        ------
        KeeperKilled
        ConnectionError
            If CRIU has given the restore up.
        CheckpointDamaged, OSError, ValueError, JournalFull
            If they cannot be brought. Descriptors stay open: no process may go on without.
        """
        self._recover()
        fillers = [threading.Thread(target=self._fill) for _ in range(_FILLERS)]
        for filler in fillers:
            filler.start()
        try:
            self._loop(keeper)
        finally:
            self._stopping = True
            self._quiet.set()
            for filler in fillers:
                filler.join()
            os.close(self._wake_read)
            os.close(self._wake_write)
        for task in self._tasks:
            if task.fd in _userfaultfds():
                os.close(task.fd)

    # -- who there is --------------------------------------------------------------------------

    def _recover(self) -> None:
        """Go on where a process that was killed has left off, if there was one."""
        unnamed: Joined | None = None
        for entry in self._journal.replay():
            if entry is None:
                self._finished = True
            elif isinstance(entry, Happened):
                self._happened(entry)
            elif entry.pid > 0 and entry.fd < 0:
                unnamed = entry
            else:
                self._join(entry)
        held = _userfaultfds()
        if unnamed is not None:
            # Killed just before, or just after, it was received.
            strays = held - {task.fd for task in self._tasks}
            fd = strays.pop() if strays else self._journal.receive(self._connection)
            self._journal.keep(fd)
            self._join(Joined(unnamed.pid, fd))
        for task in self._tasks:
            if task.fd in held:
                # Whoever was waiting asks again.
                userfaultfd.wake_all(task.fd)
            else:
                task.ended = True  # all was there, and they were being closed

    def _join(self, joined: Joined) -> None:
        if joined.pid < 0:
            return  # a zombie
        extents = self._extents[joined.pid]
        task = self._add(joined.fd, joined.pid, Missing(extents))
        # Small areas are what every program uses; large ones are data.
        by_size = sorted(extents, key=lambda extent: extent.end - extent.start)
        with self._plan_lock:
            for start, end in [*self._before.get(joined.pid, []), *_chunks(by_size)]:
                self._plan.append((task, start, end))

    def _add(self, fd: int, pid: int, missing: Missing) -> Task:
        os.set_blocking(fd, False)
        task = Task(len(self._tasks), fd, pid, missing)
        self._tasks.append(task)
        return task

    def _happened(self, entry: Happened) -> None:
        """Apply an event to what is missing. The task's lock is held, or nobody else is there."""
        task = self._tasks[entry.task]
        first, second, size = entry.words
        if entry.event == FORK:
            child = self._add(first, 0, task.missing.copy())
            with self._plan_lock:
                self._plan.extend((child, *chunk) for chunk in _chunks(child.missing))
        elif entry.event == REMAP:
            task.missing.move(first, second, size)
        else:
            task.missing.drop(first, second)

    # -- who waits -----------------------------------------------------------------------------

    def _loop(self, keeper: int) -> None:
        poller = select.poll()
        poller.register(keeper, select.POLLIN)
        poller.register(self._wake_read, select.POLLIN)
        if not self._finished:
            poller.register(self._connection, select.POLLIN)
        watched = 0
        while True:
            if self._failure is not None:
                raise self._failure
            for task in self._tasks[watched:]:
                poller.register(task.fd, select.POLLIN)
                watched += 1
            if self._finished and all(task.ended or not task.missing for task in self._tasks):
                return
            ready = {fd for fd, _ in poller.poll(1 if self._waiting else None)}
            if keeper in ready:
                raise KeeperKilled
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            if self._connection.fileno() in ready:
                joined = self._journal.join(self._connection)
                if joined is not None:
                    self._join(joined)
                else:
                    self._finished = True
                    poller.unregister(self._connection)
            asking = [task for task in self._tasks[:watched] if task.fd in ready]
            for task in asking:
                if task.ended:
                    poller.unregister(task.fd)
            if asking or self._waiting:
                self._answer(asking)

    def _answer(self, asking: list[Task]) -> None:
        """Read what tasks have to say, and give what is asked for."""
        self._quiet.clear()
        waiting, self._waiting = self._waiting, []
        for task in asking:
            waiting += [(task, address) for address in self._read(task)]
        for task, address in waiting:
            if not self._serve(task, address):
                self._waiting.append((task, address))
        self._quiet.set()

    def _read(self, task: Task) -> list[int]:
        """Read a task's messages; the pages that are waited for."""
        waiting = []
        with task.lock:
            while not task.ended and (batch := self._journal.read(task.number, task.fd)):
                for event, words in batch:
                    if event == PAGEFAULT:
                        waiting.append(words[1] & -PAGE)
                    else:
                        self._happened(Happened(task.number, event, words))
                        if event == REMOVE:
                            userfaultfd.unregister(task.fd, words[0], words[1] - words[0])
        return waiting

    def _serve(self, task: Task, address: int) -> bool:
        """Give a task the page that it waits for; whether that could be done now."""
        start = address & -AROUND
        with task.lock:
            if task.ended:
                return True
            wanted = task.missing.find(start, start + AROUND)
            asked = [extent for extent in wanted if extent.start <= address < extent.end]
            if not asked:
                return self._serve_zero(task, address, start + AROUND)
            self.touched.append((task.pid, start, start + AROUND))
            self._look_ahead(task, address, start + AROUND)
            # Only what is asked for has to be there now.
            for extent in [*asked, *(extent for extent in wanted if extent not in asked)]:
                size = extent.end - extent.start
                self._pages.read_into(extent.file, extent.offset, self._buffer.view[:size])
                if not self._give(task, extent, self._buffer.address):
                    return not task.missing.find(address, address + PAGE)
        return True

    def _look_ahead(self, task: Task, address: int, end: int) -> None:
        """Send the fillers ahead of a task that waits for one page after the other.

        It would reach most pages before they do, and each wait costs it far more than the page.
        """
        follows = 0 <= address - self._last_end < _READ
        self._last_end = end
        with self._plan_lock:
            if self._reader is not None:
                reader, at, _ = self._reader
                if reader is task and at - 2 * _FILLERS * _READ <= address < at:
                    self._reader = task, at, at + _AHEAD  # it has only caught up with them
                    return
                self._reader = None
            if follows:
                self._reader = task, end, end + _AHEAD

    def _serve_zero(self, task: Task, address: int, end: int) -> bool:
        """A page that the checkpoint does not hold, and its neighbours; or it is there already."""
        error = userfaultfd.zero(task.fd, address, PAGE)
        if error == errno.EAGAIN:
            return False
        if error == errno.ESRCH:
            task.ended = True
        elif error:
            userfaultfd.wake(task.fd, address, PAGE)
        else:
            following = task.missing.next(address)
            end = end if following is None else min(end, following)
            if end > address + PAGE:
                # It does not matter if that cannot be done, or only in part.
                userfaultfd.zero(task.fd, address + PAGE, end - address - PAGE)
        return True

    def _give(self, task: Task, extent: Extent, source: int) -> bool:
        """Give a task bytes that lie at ``source``; whether that is done, or need not be.

        The task's lock is held.
        """
        at = extent.start
        while at < extent.end:
            count, error = userfaultfd.copy(
                task.fd, at, source + at - extent.start, extent.end - at
            )
            at += count
            if count or not error:
                continue
            if error == errno.EEXIST:
                at += PAGE
            elif error == errno.ESRCH:
                task.ended = True
                return True
            elif error == errno.ENOENT and self._finished:
                break  # that memory is no longer there
            elif error in (errno.EAGAIN, errno.ENOENT, errno.ENOMEM):
                # An event is to be read first; CRIU has not come that far; it may use no more.
                task.missing.drop(extent.start, at)
                return False
            else:
                raise OSError(error, os.strerror(error))
        task.missing.drop(extent.start, extent.end)
        return True

    # -- all else ------------------------------------------------------------------------------

    def _fill(self) -> None:
        """One thread that brings what nobody has asked for yet."""
        buffer = Buffer(_READ)
        try:
            while not self._stopping:
                self._quiet.wait()
                chunk = self._next()
                if chunk is None:
                    time.sleep(_RETRY_SECONDS)
                    continue
                task, start, end = chunk
                self._bring(task, start, end, buffer)
                if task.ended or not task.missing:
                    self._notify()
        except Exception as error:
            self._failure = error
            self._notify()

    def _next(self) -> tuple[Task, int, int] | None:
        while (reader := self._reader) is not None:
            task, at, until = reader
            with task.lock:
                start = None if task.ended else task.missing.next(at)
            with self._plan_lock:
                if self._reader is not reader:
                    continue  # the other filler has taken it, or it is elsewhere now
                if start is None or start >= until:
                    self._reader = None
                else:
                    self._reader = task, start + _READ, until
                    return task, start, start + _READ
        with self._plan_lock:
            if self._plan:
                return self._plan.popleft()
        # What has moved meanwhile; and what another thread is just about to give.
        for task in list(self._tasks):
            with task.lock:
                chunks = [] if task.ended else _chunks(task.missing)
            if chunks:
                return (task, *chunks[0])
        return None

    def _bring(self, task: Task, start: int, end: int, buffer: Buffer) -> None:
        with task.lock:
            wanted = [] if task.ended else task.missing.find(start, end)
        for extent in wanted:
            size = extent.end - extent.start
            self._pages.read_into(extent.file, extent.offset, buffer.view[:size])
            at = extent.start
            while at < extent.end:
                self._quiet.wait()
                if self._stopping or task.ended:
                    return
                until = min(at + _GIVE, extent.end)
                with task.lock:
                    # What is still missing, and still these bytes: it may have moved.
                    given = all(
                        self._give(task, piece, buffer.address + piece.start - extent.start)
                        for piece in task.missing.find(at, until)
                        if piece == extent.part(piece.start, piece.end)
                    )
                if given:
                    at = until
                else:
                    time.sleep(_RETRY_SECONDS)

    def _notify(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"x")


def _chunks(extents: Iterable[Extent]) -> list[tuple[int, int]]:
    return [
        (at, min(at + _READ, extent.end))
        for extent in extents
        for at in range(extent.start, extent.end, _READ)
    ]


def _userfaultfds() -> set[int]:
    """The descriptors of this kind that this process has."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[userfaultfd]":
                found.add(int(name))
    return found
