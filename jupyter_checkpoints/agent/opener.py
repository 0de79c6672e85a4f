"""The process that looks at paths for the agent with the eyes of the user who names them.

The agent starts one and sends it, for each question, one end of a socket. A child that has become
that user, for good and in all respects, reads the question there, answers, and ends: so no path
that a user names is ever resolved with more rights than that user has, and what was opened is what
is used. The agent gets descriptors and never resolves the path again.

A question is ``{"uid", "gid", "groups", "paths", "kind"}`` in JSON; its sender then closes its side
for writing. The answer is a list of integers in JSON, one for each path, and the descriptors: for
``"open"`` 0 (a descriptor follows, in order) or an errno, for ``"size"`` bytes or a negative errno.

Only the standard library, and little of it: it must start in a few milliseconds.
"""

import array
import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import struct
import sys
import time

#: Seconds for one question: what a user names may lie in a file system that never answers.
PATIENCE = 10.0

SYS_OPENAT2 = 437  # the same everywhere
AT_FDCWD = -100
RESOLVE_NO_MAGICLINKS = 0x02
_LIBC = ctypes.CDLL(None, use_errno=True)


def open_path(path: str, *, anything: bool = False) -> int:
    """A descriptor of a directory or file that this process may read; raises ``OSError``.

    Not ``O_PATH``, which opens what may not be read (``anything``: that will do, to look at it).
    ``O_NONBLOCK``: a FIFO must not wait. Symbolic links are followed as far as this process may;
    the links of ``/proc``, which lead past all permissions, are not.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    if anything:
        flags = os.O_PATH | os.O_CLOEXEC
    how = struct.pack("QQQ", flags, 0, RESOLVE_NO_MAGICLINKS)
    size = ctypes.c_size_t(len(how))
    descriptor: int = _LIBC.syscall(SYS_OPENAT2, AT_FDCWD, os.fsencode(path), how, size)
    if descriptor < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return descriptor


def receive(end: socket.socket, size: int, most: int) -> tuple[bytes, list[int]]:
    """Data and at most ``most`` descriptors; as ``socket.recv_fds``, which forgets its flags."""
    found = array.array("i")
    data, extra, _, _ = end.recvmsg(
        size, socket.CMSG_SPACE(most * found.itemsize), socket.MSG_CMSG_CLOEXEC
    )
    for level, kind, content in extra:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(content[: len(content) - len(content) % found.itemsize])
    return data, list(found)


def size_of(path: str) -> int:
    """The size of a file that this process can reach; raises ``OSError``."""
    descriptor = open_path(path, anything=True)
    try:
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def become(uid: int, gid: int, groups: list[int]) -> None:
    """Become a user for good. Raises ``PermissionError`` if anything of root is left."""
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    # As bytes: what has not been imported by now may lie where this user cannot read it.
    with open("/proc/self/status", "rb") as file:
        facts = dict(line.split(b":", 1) for line in file)
    if os.getresuid() != (uid, uid, uid) or int(facts[b"CapEff"], 16) or int(facts[b"CapPrm"], 16):
        raise PermissionError("privileges could not be given up")


def answer(asked: socket.socket) -> None:
    """In the child: read the question, become the user, look, answer."""
    question = b""
    while part := asked.recv(1 << 16):
        question += part
    wanted = json.loads(question)
    become(wanted["uid"], wanted["gid"], wanted["groups"])
    said: list[int] = []
    descriptors: list[int] = []
    for path in wanted["paths"]:
        try:
            if wanted["kind"] == "size":
                said.append(size_of(path))
            else:
                descriptors.append(open_path(path))
                said.append(0)
        except OSError as error:
            code = error.errno or 0
            said.append(-code if wanted["kind"] == "size" else code)
    if descriptors:
        socket.send_fds(asked, [b" "], descriptors)
    asked.sendall(json.dumps(said).encode())


def main() -> int:
    control = socket.socket(fileno=0)
    running: dict[int, float] = {}
    while True:
        readable, _, _ = select.select([control], [], [], 1.0 if running else None)
        now = time.monotonic()
        for pid, deadline in list(running.items()):
            if now > deadline:
                os.kill(pid, signal.SIGKILL)
            if os.waitpid(pid, os.WNOHANG)[0]:
                del running[pid]
        if not readable:
            continue
        _, received = receive(control, 1, 1)
        if not received:
            return 0  # the agent has ended
        asked = socket.socket(fileno=received[0])
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(OSError, ValueError, KeyError):
                control.close()
                answer(asked)
            os._exit(0)
        asked.close()
        running[pid] = now + PATIENCE


if __name__ == "__main__":
    sys.exit(main())
