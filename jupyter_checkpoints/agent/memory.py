"""Reading the memory of running or frozen processes into a checkpoint that is being made."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import queue
import struct
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from ..store.intake import Intake
from ..store.pack import bytes_of
from . import ranges
from .ranges import Array

PAGE = 4096
#: Bytes of one portion, and how many may wait to be written. What is read in a frozen window goes
#: into them at the speed of memory; only more than all of them waits for the file system.
PORTION = 4 * 2**20
_PORTIONS = 16
#: The kernel's limit of ranges for one call (UIO_MAXIOV).
_VECTORS = 1024

# linux/fs.h: PAGEMAP_SCAN, struct pm_scan_arg, PAGE_IS_*.
_SCAN = 0xC0606610
_scan_arg = struct.Struct("<12Q")
_FILE, _PRESENT, _SWAPPED, _PFNZERO = (1 << bit for bit in (2, 3, 4, 5))
_REGIONS = 4096

_libc = ctypes.CDLL(None, use_errno=True)
_libc.process_vm_readv.restype = ctypes.c_ssize_t
_libc.process_vm_readv.argtypes = [
    ctypes.c_int,
    *(ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong),
]


class ProcessMemory:
    """The memory of one process. Safe to use from many threads.

    Raises
    ------
    OSError
        If the process is gone, or is none of ours to read.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def read(self, wanted: Array, buffer: Array) -> None:
        """Fill ``buffer`` (bytes) with these ranges, one after the other. Blocking.

        Raises
        ------
        OSError
            If not all of it is there (any more).
        """
        done, at, skipped = 0, 0, 0
        while at < len(wanted):
            remote = wanted[at : at + _VECTORS].astype(np.uint64)
            remote[:, 1] -= remote[:, 0]
            remote[0] += np.array([skipped, -skipped], np.int64).astype(np.uint64)
            size = int(remote[:, 1].sum())
            local = np.array([buffer.ctypes.data + done, size], np.uint64)
            count = _libc.process_vm_readv(
                self.pid, local.ctypes.data, 1, remote.ctypes.data, len(remote), 0
            )
            if count < 0:
                if ctypes.get_errno() != errno.EFAULT:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
                count = 0
            ends = np.cumsum(remote[:, 1])
            if count < size:
                # Memory that the process itself may not read: only this way leads to it.
                stopped = int(np.searchsorted(ends, count, "right"))
                start = int(remote[stopped, 0]) + count - int(ends[stopped] - remote[stopped, 1])
                piece = bytes_of(buffer)[done + count : done + int(ends[stopped])]
                got = os.preadv(self._fd, [piece], start)
                if got == 0:
                    raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
                count += got
            done += count
            passed = int(np.searchsorted(ends, count, "right"))
            before = int(ends[passed - 1]) if passed else 0
            skipped = count - before + (0 if passed else skipped)
            at += passed


class Copy:
    """Takes memory of processes into a checkpoint in the making. Used by one save.

    Reading and writing go on at once, so reading is done as soon as the last is in a buffer.

    Parameters
    ----------
    began:
        Called by the thread that writes.
    """

    def __init__(self, intake: Intake, began: Callable[[], None] = lambda: None) -> None:
        self._intake = intake
        self._free: queue.LifoQueue[Array] = queue.LifoQueue()
        self._made = 0
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="intake", initializer=began)
        self._written: list[Future[None]] = []

    def take(
        self,
        space: str,
        memory: ProcessMemory,
        wanted: Array,
        *,
        all_of_it: bool,
        compare: bool = False,
        between: Callable[[], None] = lambda: None,
    ) -> Array:
        """Read ranges of a process; those that were read. Blocking.

        Parameters
        ----------
        all_of_it:
            False for a process that runs: what is not there any more is left out, with what is
            near it.
        compare:
            As for :meth:`~jupyter_checkpoints.store.intake.Intake.write`.
        between:
            Called before each portion; what it raises ends the reading.

        Raises
        ------
        OSError
            If it cannot be read, or what was read before cannot be written.
        """
        taken = []
        for portion in ranges.portions(wanted, PORTION):
            between()
            size = ranges.size(portion)
            buffer = self._buffer()
            try:
                memory.read(portion, buffer[:size])
            except OSError:
                self._free.put(buffer)
                if all_of_it:
                    raise
                continue
            write = self._writer.submit(self._write, space, portion, buffer, size, compare)
            self._written.append(write)
            taken.append(portion)
        return ranges.normal(np.concatenate(taken)) if taken else ranges.EMPTY

    def _buffer(self) -> Array:
        if self._made < _PORTIONS and self._free.empty():
            self._made += 1
            return np.empty(PORTION, np.uint8)
        return self._free.get()

    def _write(self, space: str, portion: Array, buffer: Array, size: int, compare: bool) -> None:
        content = buffer[:size].reshape(-1, PAGE)
        try:
            self._intake.write(space, portion // PAGE, content, compare=compare)
        finally:
            self._free.put(buffer)

    def settle(self) -> None:
        """Wait until all that was taken is in the checkpoint. Blocking.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        written, self._written = self._written, []
        for one in written:
            one.result()

    def close(self) -> None:
        """Wait for what is under way, whatever comes of it. Blocking."""
        self._writer.shutdown()


def anonymous(pid: int) -> int:
    """Bytes of anonymous memory of a process; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return 0
    kilobytes = sum(int(x.split()[1]) for x in lines if x.startswith(("RssAnon:", "VmSwap:")))
    return kilobytes * 1024


def populated(pid: int) -> Array:
    """The private anonymous memory of a process that has pages. Blocking.

    Raises
    ------
    OSError
        If the process is gone, or the kernel cannot tell (before Linux 6.7).
    """
    found = []
    vector = np.empty((_REGIONS, 3), np.uint64)
    fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for start, stop in _anonymous(pid):
            while start < stop:
                argument = bytearray(
                    _scan_arg.pack(
                        *(_scan_arg.size, 0, start, stop, 0, vector.ctypes.data, _REGIONS, 0),
                        *(_PFNZERO | _FILE, _PFNZERO | _FILE, _PRESENT | _SWAPPED, _FILE),
                    )
                )
                count = fcntl.ioctl(fd, _SCAN, argument)
                found.append(vector[:count, :2].astype(np.int64))
                start = _scan_arg.unpack(argument)[4]
    finally:
        os.close(fd)
    return ranges.normal(np.concatenate(found)) if found else ranges.EMPTY


def _anonymous(pid: int) -> list[tuple[int, int]]:
    found = []
    for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
        addresses, permissions, _, _, inode, *name = line.split(maxsplit=5)
        if permissions[3] == "p" and inode == "0" and name[:1] not in (["[vvar]"], ["[vsyscall]"]):
            start, _, stop = addresses.partition("-")
            found.append((int(start, 16), int(stop, 16)))
    return found
