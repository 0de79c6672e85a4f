"""A process whose memory comes from a pager, as CRIU would leave it: run by ``test_pager``.

Takes the path of the pager's socket, the address of its memory, how many MiB that is, and Python
code to run when it has been handed over. The code sees ``base``, ``size`` and a few calls below;
what it prints is its result. Every page is its number in the file of pages plus 1, 8 bytes again
and again.
"""

import array
import ctypes
import fcntl
import os
import platform
import socket
import struct
import sys

PAGE = 4096
MIB = 2**20
MREMAP_MAYMOVE, MREMAP_FIXED = 1, 2
MADV_DONTNEED = 4
libc = ctypes.CDLL(None, use_errno=True)
for call in ("mmap", "mremap"):
    getattr(libc, call).restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
libc.mremap.argtypes += [ctypes.c_void_p]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def map_memory(address: int, size: int) -> None:
    # PROT_READ | PROT_WRITE; MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS
    assert libc.mmap(address, size, 3, 0x32, -1, 0) == address


def word(address: int) -> int:
    """The first word of the page at an address."""
    return int(ctypes.c_uint64.from_address(address).value)


def words(address: int, size: int) -> list[int]:
    return [word(at) for at in range(address, address + size, PAGE)]


def expected(first: int, size: int) -> list[int]:
    """The words of pages from the page with this number on."""
    return list(range(first + 1, first + 1 + size // PAGE))


def whole(address: int, first: int) -> bool:
    """Whether a page is that with this number, to its last byte."""
    return ctypes.string_at(address, PAGE) == (first + 1).to_bytes(8, "little") * (PAGE // 8)


def move(old: int, size: int, new: int) -> None:
    assert libc.mremap(old, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, new) == new


def drop(address: int, size: int) -> None:
    assert libc.madvise(address, size, MADV_DONTNEED) == 0


def unmap(address: int, size: int) -> None:
    assert libc.munmap(address, size) == 0


def in_child(code: str) -> str:
    """What a child, forked now, makes of an expression."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, repr(eval(code, globals())).encode())
        os._exit(0)
    os.close(write)
    with open(read) as result:
        text = result.read()
    assert os.waitpid(pid, 0)[1] == 0
    return text


def hand_over(path: str, base: int, size: int) -> None:
    number = {"x86_64": 323, "aarch64": 282}[platform.machine()]
    fd = libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK)
    events = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6
    fcntl.ioctl(fd, 0xC018AA3F, bytearray(struct.pack("<QQQ", 0xAA, events, 0)))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(struct.pack("<i", 1))
        fds = array.array("i", [fd]).tobytes()
        connection.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        # UFFDIO_REGISTER for missing pages
        fcntl.ioctl(fd, 0xC020AA00, bytearray(struct.pack("<QQQQ", base, size, 1, 0)))
        os.close(fd)
        connection.sendall(struct.pack("<I", 0x52535446))


if __name__ == "__main__":
    base, size = int(sys.argv[2]), int(sys.argv[3]) * MIB
    map_memory(base, size)
    hand_over(sys.argv[1], base, size)
    sys.stdin.readline()  # when the test says so
    exec(sys.argv[4], globals())
