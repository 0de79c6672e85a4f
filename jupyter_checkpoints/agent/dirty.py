"""Which memory of a process was written since a moment, told by the Linux kernel without a cost.

Pages are write-protected through a userfaultfd in asynchronous mode (``UFFD_FEATURE_WP_ASYNC``,
Linux 6.7): the first write to one takes a fault that the Linux kernel settles by itself, and clears
the mark. ``PAGEMAP_SCAN`` on ``/proc/PID/pagemap`` finds the marks and sets them anew, at once.
See Documentation/admin-guide/mm/pagemap.rst. Soft-dirty bits, which CRIU uses, many kernels lack.

A new mapping, one that was moved, and those of a child have no mark: they count as written. So do
a process's after the agent has ended: its marks go with the descriptor.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import inject
from .process import start_isolated

_USERFAULTFD = 323
_API, _REGISTER = 0xC018AA3F, 0xC020AA00
_MODE_WP = 2
#: WP, WP_UNPOPULATED, WP_ASYNC
_FEATURES = 1 << 0 | 1 << 13 | 1 << 15

#: linux/fs.h
_SCAN = 0xC0606610
_WP_MATCHING = 1
_WPALLOWED, _WRITTEN, _PRESENT, _SWAPPED = 1, 1 << 1, 1 << 3, 1 << 4
_scan = struct.Struct("<12Q")
#: Start, end and categories of runs of pages: so many are fetched at a time.
_RUNS = 1 << 15

#: Names of anonymous memory in ``maps``; what else has one is the kernel's own, or a file.
_ANONYMOUS = ("[heap]", "[stack]", "[anon:")
_SECONDS = 10
#: Behind the last address that a process can have, with pages tables of four levels.
_END = (1 << 47) - 4096

Ranges = NDArray[np.int64]


class Untracked(OSError):
    """What a process writes cannot be known; why."""


def available() -> bool:
    """Whether this host's kernel can tell, and we know how to ask. Cheap."""
    if platform.machine() != "x86_64":
        return False
    fd = ctypes.CDLL(None).syscall(_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | 1)
    if fd < 0:
        return False
    try:
        _require_features(fd)
    except Untracked:
        return False
    finally:
        os.close(fd)
    return True


class Tracker:
    """Watches the private anonymous memory of one process. Blocking; for one thread at a time.

    Made when the process runs: it is stopped for about a millisecond. Must be closed.

    Parameters
    ----------
    pid:
        Of the process, as seen by the agent.

    Raises
    ------
    Untracked
        If the host's kernel is too old, or the process is traced, stopped, or gone.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = self._pagemap = -1
        try:
            self._pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
            self._fd = _userfaultfd_of(pid)
            _require_features(self._fd)
        except OSError as error:
            self.close()
            if isinstance(error, Untracked):
                raise
            raise Untracked(f"process {pid}: {error.strerror}") from error
        except BaseException:
            self.close()
            raise

    def unchanged(self) -> Ranges:
        """What was not written since the last call, as ``(n, 2)`` addresses in bytes, in order.

        Each range is ``[start, stop)``, of whole pages that are in memory or swapped out, and was
        watched since that call. Everything else may have been written; at the first call that is
        all. From now on new mappings are watched as well.

        Raises
        ------
        Untracked
            If the process is gone; everything counts as written then.
        """
        try:
            before = self._clean()
            self._watch_all()
            written = self._scan(_WPALLOWED | _WRITTEN, reset=True)
            # Whatever was mapped anew meanwhile is not watched, and not in the second one.
            return _selected([(before, 1), (self._clean(), 1), (written, -1)], 2)
        except OSError as error:
            raise Untracked(f"process {self.pid}: {error.strerror}") from error

    def unchanged_while_frozen(self) -> Ranges:
        """The same of a process that stands still: new mappings are not watched yet, but counted
        as written, at the next call.

        Raises
        ------
        Untracked
            If the process is gone.
        """
        try:
            clean = self._clean()
            self._scan(_WPALLOWED | _WRITTEN, reset=True)
        except OSError as error:
            raise Untracked(f"process {self.pid}: {error.strerror}") from error
        return clean

    def _clean(self) -> Ranges:
        return self._scan(_WPALLOWED | _WRITTEN, inverted=_WRITTEN, any_of=_PRESENT | _SWAPPED)

    def _watch_all(self) -> None:
        for start, stop in _private_memory(self.pid):
            # It may just have gone, or be watched by a userfaultfd of somebody else's.
            with contextlib.suppress(OSError):
                fcntl.ioctl(
                    self._fd,
                    _REGISTER,
                    bytearray(struct.pack("<QQQQ", start, stop - start, _MODE_WP, 0)),
                )

    def _scan(
        self, wanted: int, *, inverted: int = 0, any_of: int = 0, reset: bool = False
    ) -> Ranges:
        """The pages that are of all ``wanted`` categories and one of ``any_of``, as ranges.

        Of ``inverted`` categories they must not be. ``reset``: they are write-protected, at once.
        """
        runs = np.empty((_RUNS, 3), np.int64)
        found = []
        at = 0
        while at < _END:
            argument = bytearray(
                _scan.pack(
                    _scan.size,
                    _WP_MATCHING if reset else 0,
                    *(at, _END, 0, runs.ctypes.data, _RUNS, 0),
                    *(inverted, wanted, any_of, wanted),
                )
            )
            count = fcntl.ioctl(self._pagemap, _SCAN, argument)
            found.append(runs[:count, :2].copy())
            at = _scan.unpack(argument)[4]
        return np.concatenate(found)

    def close(self) -> None:
        """Stop watching. The process loses its marks, and the cost of them."""
        for fd in (self._fd, self._pagemap):
            if fd >= 0:
                os.close(fd)
        self._fd = self._pagemap = -1

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _userfaultfd_of(pid: int) -> int:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            child = start_isolated(inject.__file__, theirs, str(pid))
        ours.settimeout(_SECONDS)
        try:
            said, fds, _, _ = socket.recv_fds(ours, 1000, 1)
        except TimeoutError:
            said, fds = b"it could not be stopped in time", []
        finally:
            child.wait()
    if not fds:
        raise Untracked(f"process {pid}: {said.decode(errors='replace') or 'no answer'}")
    return fds[0]


def _require_features(fd: int) -> None:
    try:
        fcntl.ioctl(fd, _API, bytearray(struct.pack("<QQQ", 0xAA, _FEATURES, 0)))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise Untracked("this kernel cannot tell what is written (Linux 6.7 can)") from error


def _private_memory(pid: int) -> Iterator[tuple[int, int]]:
    """Mappings of private anonymous memory: what CRIU lets come later at a restore."""
    for line in Path(f"/proc/{pid}/maps").read_text(errors="surrogateescape").splitlines():
        fields = line.split(maxsplit=5)
        name = fields[5] if len(fields) > 5 else ""
        if fields[1][3] == "p" and fields[4] == "0" and (not name or name.startswith(_ANONYMOUS)):
            start, stop = fields[0].split("-")
            yield int(start, 16), int(stop, 16)


def _selected(parts: list[tuple[Ranges, int]], wanted: int) -> Ranges:
    """Where the weights of the ranges, each of which are disjoint, come to ``wanted``."""
    edges = np.concatenate([part.T.ravel() for part, _ in parts])
    steps = np.concatenate([np.repeat((weight, -weight), len(part)) for part, weight in parts])
    order = np.argsort(edges, kind="stable")
    edges, sums = edges[order], np.cumsum(steps[order])
    # Of several edges at one place the last has the sum.
    last = np.flatnonzero(np.diff(edges, append=-1))
    edges, inside = edges[last], np.concatenate(([False], sums[last] == wanted))
    change = np.diff(inside.astype(np.int8))
    return np.stack((edges[change > 0], edges[change < 0]), axis=1)
