"""Two processes with one table of descriptors: whichever is killed, the other goes on.

They share the table itself (``CLONE_FILES``), so also a descriptor that the kernel has just put
there, and of which nobody knows yet, does not end with the process it was made for.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
from collections.abc import Callable

_CLONE_FILES = 0x400
_SYSCALLS = {"x86_64": 56, "aarch64": 220}


class KeeperKilled(Exception):
    """Raised by the work when the process that would replace it has ended."""


def run(work: Callable[[int], int]) -> int:
    """Do the work in one process, keep its descriptors in another; returns in either at the end.

    Called with a single thread.

    Parameters
    ----------
    work:
        Gets a descriptor that can be read from when the keeper has ended (then it raises
        :class:`KeeperKilled`, with no other thread left), and returns the exit status. When it was
        killed it is called again, in a new process.
    """
    while True:
        keeper = os.pidfd_open(os.getpid())
        pid = _clone()
        if pid == 0:
            try:
                return work(keeper)
            except KeeperKilled:
                os.close(keeper)
                continue
        _, status = os.waitpid(pid, 0)
        os.close(keeper)
        if os.WIFEXITED(status):
            return os.WEXITSTATUS(status)


def _clone() -> int:
    """fork(2), but the child has this process's very descriptors. The child's pid, or 0 in it."""
    # PyDLL keeps the interpreter's lock: both sides are to have it.
    number = _SYSCALLS[platform.machine()]
    libc = ctypes.PyDLL(None, use_errno=True)
    pid = int(libc.syscall(number, _CLONE_FILES | signal.SIGCHLD, 0, 0, 0, 0))
    if pid < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return pid
