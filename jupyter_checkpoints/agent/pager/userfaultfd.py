"""userfaultfd(2): the calls and messages that a pager needs."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import struct
from collections.abc import Iterator
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
#: Bytes of one message, and of one slot of what is read.
MESSAGE = 32

PAGEFAULT, FORK, REMAP, REMOVE, UNMAP = range(0x12, 0x17)

_API = 0xC018AA3F
_UNREGISTER = 0x8010AA01
_WAKE = 0x8010AA02
_COPY = 0xC028AA03
_ZEROPAGE = 0xC020AA04
#: No process has memory below.
_LOWEST = 1 << 16
#: Fork, remap, remove and unmap are told: CRIU asks for all of them.
_EVENTS = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6
_SYSCALLS = {"x86_64": 323, "aarch64": 282}

_copy = struct.Struct("<QQQQq")
_zero = struct.Struct("<QQQq")
_range = struct.Struct("<QQ")
_words = struct.Struct("<QQQ")


def available() -> bool:
    """Whether this kernel has userfaultfd with all that CRIU asks of it, for us."""
    number = _SYSCALLS.get(platform.machine())
    if number is None:
        return False
    fd = ctypes.CDLL(None).syscall(number, os.O_CLOEXEC | os.O_NONBLOCK)
    if fd < 0:
        return False
    try:
        fcntl.ioctl(fd, _API, bytearray(struct.pack("<QQQ", 0xAA, _EVENTS, 0)))
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def for_everybody() -> bool:
    """Whether also processes without any privilege on this host may have one, as it is set now."""
    try:
        return Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() == "1"
    except OSError:
        return False


def copy(fd: int, address: int, source: int, size: int) -> tuple[int, int]:
    """Give the process ``size`` bytes that lie at ``source`` here, and wake who waits for them.

    Returns how many bytes were taken and the error number of why not all: ``EEXIST`` (a page is
    there already), ``EAGAIN`` (an event has to be read first), ``ENOENT`` (no memory of this
    descriptor at that address), ``ESRCH`` (the process is gone), …
    """
    argument = bytearray(_copy.pack(address, source, size, 0, 0))
    try:
        fcntl.ioctl(fd, _COPY, argument)
    except OSError as error:
        return max(_copy.unpack(argument)[4], 0), error.errno or errno.EIO
    return size, 0


def zero(fd: int, address: int, size: int) -> int:
    """Give the process zeros; the error number, or 0 if all of them are there."""
    try:
        fcntl.ioctl(fd, _ZEROPAGE, bytearray(_zero.pack(address, size, 0, 0)))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def wake(fd: int, address: int, size: int) -> None:
    """Let whoever waits for these pages look again; whoever finds nothing asks again."""
    fcntl.ioctl(fd, _WAKE, bytearray(_range.pack(address, size)))


def wake_all(fd: int) -> None:
    """The same for all memory, whatever its processor lets a process have."""
    for bits in (48, 47, 42, 39):
        with contextlib.suppress(OSError):
            wake(fd, _LOWEST, (1 << bits) - _LOWEST - PAGE)
            return


def unregister(fd: int, address: int, size: int) -> None:
    """Leave a range to the kernel again: nobody is asked for its pages, they are zeros."""
    try:
        fcntl.ioctl(fd, _UNREGISTER, bytearray(_range.pack(address, size)))
    except OSError as error:
        # It may be gone, or be something else by now, which says nothing about the rest.
        if error.errno not in (errno.ENOENT, errno.EINVAL, errno.ESRCH, errno.ENOMEM):
            raise


def messages(data: memoryview) -> Iterator[tuple[int, tuple[int, int, int]]]:
    """(event, its three words) of what was read.

    PAGEFAULT: flags, address. FORK: descriptor. REMAP: from, to, length. REMOVE, UNMAP: start, end.
    """
    for at in range(0, len(data), MESSAGE):
        a, b, c = _words.unpack_from(data, at + 8)
        yield data[at], (a, b, c)
