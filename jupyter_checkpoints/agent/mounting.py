"""Mounts that map ids, and overlays: system calls that the command ``mount`` has no words for.

Only the standard library: the OCI runtime for Docker has a copy of this file
(:mod:`.docker_setup`). Everything here blocks, and raises ``OSError``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping

# The same numbers everywhere.
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8
_IDMAP = 0x100000
_MS_PRIVATE = 1 << 18
_MNT_DETACH = 2
_CAPABILITY_VERSION_3 = 0x20080522
_LIBC = ctypes.CDLL(None, use_errno=True)
_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


def user_namespace(uids: str, gids: str) -> int:
    """A descriptor of a new user namespace with these mappings, as ``/proc/PID/uid_map`` has them.

    It lives as long as its descriptor: the process that made it ends.
    """
    with subprocess.Popen(
        ["unshare", "--user", "cat"],
        env=_ENV,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as child:
        assert child.stdin is not None and child.stdout is not None and child.stderr is not None
        child.stdin.write(b".")
        # What comes back has passed a process that is in its namespace.
        if child.stdout.read(1) != b".":
            raise OSError(child.stderr.read().decode(errors="replace").strip())
        for name, lines in (("uid_map", uids), ("gid_map", gids)):
            with open(f"/proc/{child.pid}/{name}", "w", encoding="ascii") as file:
                file.write(lines)
        descriptor = os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        child.stdin.close()
        return descriptor


def bind(source: int, name: str, place: str, attributes: int) -> None:
    """Mount what a descriptor is of at ``place``, privately; ``name`` is for errors."""
    _attach(source, name, place, attributes, 0)


def attach(source: str, place: str, namespace: int) -> None:
    """Mount a directory of root's own at ``place``, its ids mapped by a user namespace.

    ``EINVAL`` where the file system cannot do it.
    """
    os.mkdir(place, 0o700)
    descriptor = os.open(source, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        _attach(descriptor, source, place, NOSUID | NODEV | _IDMAP, namespace)
    finally:
        os.close(descriptor)


def detach(place: str) -> None:
    """Unmount what is mounted at ``place`` and below, if anything is."""
    _LIBC.umount2(os.fsencode(place), _MNT_DETACH)


@contextlib.contextmanager
def attached(places: Mapping[str, str], namespace: int) -> Iterator[None]:
    """:func:`attach` each source at its place, for as long as the context lasts."""
    try:
        for place, source in places.items():
            attach(source, place, namespace)
        yield
    finally:
        for place in places:
            detach(place)
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(place)


def overlay(target: str, options: str, flags: int = 0) -> None:
    """Mount an overlay.

    The system call itself: ``mount`` would take ten times as long, at every start.
    """
    strings = (b"overlay", os.fsencode(target), b"overlay")
    if _LIBC.mount(*strings, flags, os.fsencode(options)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"mount: {os.strerror(code)}", target)


def mapped_overlay(target: str, options: str, root: tuple[int, int]) -> None:
    """Mount an overlay of attached layers (:func:`attached`), in whose mapping ``root`` is root.

    Set-uid bits and device nodes mean nothing in it.
    """
    # Whoever mounts is whom the overlay's own files belong to: root has no id in that mapping.
    as_user(root, lambda: overlay(target, options, NOSUID | NODEV))
    if os.statvfs(target).f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, "the overlay cannot be written", target)


def as_user(user: tuple[int, int], work: Callable[[], None]) -> None:
    """Do something with a user's ids for all that concerns files, and root's capabilities.

    In a thread of its own, whose credentials end with it. Raises what ``work`` raises.
    """
    failure: list[BaseException] = []

    def run() -> None:
        try:
            _LIBC.setfsgid(user[1])
            _LIBC.setfsuid(user[0])  # takes the capabilities that concern files with it
            header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
            sets = (ctypes.c_uint32 * 6)()
            if _LIBC.capget(header, sets):
                raise OSError(ctypes.get_errno(), "capget")
            sets[0], sets[3] = sets[1], sets[4]  # effective, of permitted
            if _LIBC.capset(header, sets):
                raise OSError(ctypes.get_errno(), "capset")
            work()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="as user")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


def _attach(source: int, name: str, place: str, attributes: int, namespace: int) -> None:
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH
    tree = _call(_SYS_OPEN_TREE, name, source, b"", flags)
    try:
        # struct mount_attr: set, clear, propagation, user namespace
        wanted = struct.pack("QQQQ", attributes, 0, _MS_PRIVATE, namespace)
        size = ctypes.c_size_t(len(wanted))
        _call(_SYS_MOUNT_SETATTR, name, tree, b"", _AT_EMPTY_PATH, wanted, size)
        target = os.fsencode(place)
        flags = _MOVE_MOUNT_F_EMPTY_PATH
        _call(_SYS_MOVE_MOUNT, name, tree, b"", _AT_FDCWD, target, flags)
    finally:
        os.close(tree)


def _call(number: int, path: str, *arguments: object) -> int:
    result: int = _LIBC.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return result
