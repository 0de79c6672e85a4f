"""The digest of a whole directory tree: what a manifest says about a writable layer.

Two trees have the same digest exactly if a container shows the same files from them: names, kinds,
permissions, owners, link targets, device numbers (an overlay's deleted names are character devices
0:0), extended attributes, which names are one file, and content. Times, inode numbers, and how a
file lies on the disk are left out.

So are five kinds of attributes that say something about this host or this mount and not about the
files, and that overlayfs changes by itself (seen on Linux 6.18 with ``index=on,nfs_export=on``):

``trusted.overlay.origin``
    the inode number, in the image, of the file this is a copy of: differs where the same image was
    unpacked again
``trusted.overlay.uuid``
    made up at a layer's first mount
``trusted.overlay.impure``
    a hint for listing directories, set at a copy and dropped at leisure
``trusted.overlay.nlink``
    relative to entries of the work directory, which every resume makes anew
``btrfs.*``
    properties of the pool

Deleted names are one inode each or share one, as the kernel likes (all those made through the same
work directory do), so they never count as one file under several names.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from ..errors import CheckpointDamaged
from .content import ContentHasher
from .store import Progress

_VOLATILE = frozenset(f"trusted.overlay.{name}" for name in ("origin", "uuid", "impure", "nlink"))
#: Directories held open at once, at most. A user makes trees as deep as he likes; the agent's
#: descriptors are for everybody.
_OPEN = 64
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC


def tree_digest(root: Path, progress: Progress | None = None) -> tuple[str, int]:
    """The digest of everything at and below ``root``, in hex, and the bytes it holds on the disk.

    Called after each save for the snapshot that was taken, and by verify. The tree must not change
    meanwhile. Needs root: other users see neither all files nor all attributes. Blocking: call it
    in a thread. ``progress`` counts bytes of content.

    Raises
    ------
    CheckpointDamaged
        If something cannot be read.
    """
    try:
        total = sum(_content_size(entry) for entry in _walk(root)) if progress else 0
        return _digest(root, total, progress)
    except OSError as error:
        raise CheckpointDamaged(
            "The files of the container cannot be read.",
            reason=f"{error.strerror}: {os.fsdecode(error.filename or root)}",
            hint="Look into the system's log for errors of the disk.",
        ) from error


class _Entry(NamedTuple):
    depth: int
    """0 for the root itself. In the order of the walk, depths and names say where everything is."""
    directory: int
    """An open descriptor of the directory it is in; good until the next entry is asked for."""
    name: bytes
    info: os.stat_result


class _Level(NamedTuple):
    names: list[bytes]
    """What is still to come, last first."""
    info: os.stat_result


def _digest(root: Path, total: int, progress: Progress | None) -> tuple[str, int]:
    tree = blake3()
    seen: dict[tuple[int, int], int] = {}
    held = done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    with ContentHasher() as hasher:
        for number, entry in enumerate(_walk(root)):
            info = entry.info
            kind = stat.S_IFMT(info.st_mode)
            head = (entry.depth, kind, stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid)
            fields = [struct.pack("<QIIII", *head), entry.name]
            inode = (info.st_dev, info.st_ino)
            if info.st_nlink > 1 and kind != stat.S_IFDIR and not _is_whiteout(info):
                if inode in seen:
                    _add(tree, [*fields, b"same as", struct.pack("<Q", seen[inode])])
                    continue
                seen[inode] = number
            held += info.st_blocks * 512
            fields += _attributes(entry)
            match kind:
                case stat.S_IFREG:
                    fd = os.open(entry.name, _FILE, dir_fd=entry.directory)
                    try:
                        fields += [b"content", hasher.sparse_digest(fd, advance)]
                    finally:
                        os.close(fd)
                case stat.S_IFLNK:
                    fields += [b"target", os.readlink(entry.name, dir_fd=entry.directory)]
                case stat.S_IFCHR | stat.S_IFBLK:
                    device = (os.major(info.st_rdev), os.minor(info.st_rdev))
                    fields += [b"device", struct.pack("<II", *device)]
            _add(tree, fields)
    return tree.hexdigest(), held


def _add(tree: blake3, fields: list[bytes]) -> None:
    """Lengths first, so that no two different lists of fields give the same bytes."""
    lengths = struct.pack(f"<{len(fields) + 1}Q", len(fields), *map(len, fields))
    tree.update(lengths + b"".join(fields))


def _attributes(entry: _Entry) -> list[bytes]:
    # Through /proc, because a link, a device or a socket cannot be opened to ask it.
    path = b"/proc/self/fd/%d/%s" % (entry.directory, entry.name)
    fields = []
    for name in sorted(os.listxattr(path, follow_symlinks=False)):
        if name not in _VOLATILE and not name.startswith("btrfs."):
            fields += [os.fsencode(name), os.getxattr(path, name, follow_symlinks=False)]
    return fields


def _is_whiteout(info: os.stat_result) -> bool:
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def _content_size(entry: _Entry) -> int:
    return entry.info.st_size if stat.S_ISREG(entry.info.st_mode) else 0


def _walk(root: Path) -> Iterator[_Entry]:
    """Everything, each directory before what is in it, names in the order of their bytes.

    Follows no link, and reaches trees deeper than a path may be long.
    """
    # The descriptors of the last levels; those further up are opened again on the way back.
    open_levels = [os.open(root, _DIRECTORY)]
    try:
        info = os.fstat(open_levels[0])
        yield _Entry(0, open_levels[0], b".", info)
        levels = [_Level(_names(open_levels[0]), info)]
        while levels:
            names = levels[-1].names
            if not names:
                levels.pop()
                if levels and len(open_levels) == 1:
                    open_levels.insert(0, _parent(open_levels[0], levels[-1]))
                os.close(open_levels.pop())
                continue
            name, here = names.pop(), open_levels[-1]
            info = os.stat(name, dir_fd=here, follow_symlinks=False)
            yield _Entry(len(levels), here, name, info)
            if stat.S_ISDIR(info.st_mode):
                if len(open_levels) == _OPEN:
                    os.close(open_levels.pop(0))
                fd = os.open(name, _DIRECTORY, dir_fd=here)
                open_levels.append(fd)
                levels.append(_Level(_names(fd), info))
    finally:
        for fd in open_levels:
            os.close(fd)


def _names(directory: int) -> list[bytes]:
    return sorted(map(os.fsencode, os.listdir(directory)), reverse=True)


def _parent(directory: int, expected: _Level) -> int:
    fd = os.open("..", _DIRECTORY, dir_fd=directory)
    if not os.path.samestat(os.fstat(fd), expected.info):
        os.close(fd)
        raise CheckpointDamaged(
            "The files of the container changed while they were read.",
            reason="a directory was moved",
        )
    return fd
