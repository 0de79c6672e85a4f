"""Unpack the container's files from an archive: ``unpack_archive.py ROOT BYTES ENTRIES``.

The archive, a seekable tar on standard input, is hostile until its digest has proven otherwise.
This program changes its root to an empty directory first, so that nothing in it leads out, and
knows nothing but that directory and the archive. It uses nothing but the standard library,
imported before. Only entries below ``upper/`` are its business.

It ends with one JSON object on standard output: ``{}``, or ``{"error"}`` and status 1.
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
from typing import Any, NoReturn

_TREE = "upper"
#: What a writable layer's files may have of extended attributes; the rest says something about
#: the host or the mount they came from, and overlayfs refuses some of that elsewhere.
_ATTRIBUTES = ("security.capability", "user.", "trusted.overlay.")
_LEFT_OUT = {f"trusted.overlay.{name}" for name in ("origin", "uuid", "impure", "nlink")}
_LARGEST_ID = 2**32 - 2
_CHUNK = 1 << 20


class Refused(Exception):
    """The archive holds something that no container's files are."""


class Unpacker:
    """Makes the entries at ``/``; none of them exists before."""

    def __init__(self, max_bytes: int, max_entries: int) -> None:
        self._bytes, self._entries = max_bytes, max_entries
        self._directories: list[tuple[str, float]] = []

    def apply(self, archive: tarfile.TarFile) -> None:
        """Unpack everything; raises Refused, OSError or tarfile.TarError."""
        while (member := archive.next()) is not None:
            path = _path(member.name)
            if path:
                self._entries -= 1
                if self._entries < 0:
                    raise Refused("it has too many entries")
                self._create(archive, member, path)
            archive.members.clear()  # type: ignore[attr-defined]  # it keeps all it has seen
        for path, moment in reversed(self._directories):
            os.utime(path, (moment, moment))

    def _create(self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        if member.isdir():
            os.mkdir(path, 0o700)
            self._directories.append((path, member.mtime))
        elif member.isreg():
            self._write(archive, member, path)
        elif member.issym():
            os.symlink(member.linkname, path)
        elif member.islnk():
            os.link(_path(member.linkname), path, follow_symlinks=False)
            return
        elif member.isfifo():
            os.mkfifo(path, 0o600)
        elif member.ischr() and (member.devmajor, member.devminor) == (0, 0):
            os.mknod(path, 0o600 | 0o020000, 0)  # a deleted name
        else:
            raise Refused(f"{member.name!r} is of a kind that no container can make")
        self._describe(member, path)

    def _write(self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        # Where there are holes, sparse entries have zeros here: the limit is for what is read.
        source = archive.extractfile(member)
        assert source is not None
        with open(path, "xb", opener=_open_private) as target:
            holes: Any = member
            for start, size in holes.sparse or [(0, member.size)]:
                source.seek(start)
                target.seek(start)
                while size and (chunk := source.read(min(size, _CHUNK))):
                    size -= len(chunk)
                    self._bytes -= len(chunk)
                    if self._bytes < 0:
                        raise Refused("it is larger than it may be")
                    target.write(chunk)
            target.truncate(member.size)

    def _describe(self, member: tarfile.TarInfo, path: str) -> None:
        """Owner, then mode and attributes (a change of owner takes some of them away), moment."""
        if not (0 <= member.uid <= _LARGEST_ID and 0 <= member.gid <= _LARGEST_ID):
            raise Refused(f"{member.name!r} has an impossible owner")
        os.chown(path, member.uid, member.gid, follow_symlinks=False)
        if not member.issym():
            os.chmod(path, member.mode & 0o7777)
        for key, value in member.pax_headers.items():
            attribute = key.removeprefix("SCHILY.xattr.")
            if attribute == key or attribute in _LEFT_OUT:
                continue
            if attribute.startswith(_ATTRIBUTES):
                content = value.encode("utf-8", "surrogateescape")
                os.setxattr(path, attribute, content, follow_symlinks=False)
        os.utime(path, (member.mtime, member.mtime), follow_symlinks=False)


def _path(name: str) -> str:
    """Where an entry goes; empty if it is none of the tree's. No link is followed on the way."""
    parts = name.rstrip("/").split("/")
    if parts[0] != _TREE:
        return ""
    if "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise Refused(f"{name!r} is no path of the container's files")
    for end in range(1, len(parts)):
        if os.path.islink("/" + "/".join(parts[:end])):
            raise Refused(f"{name!r} lies behind a link")
    return "/" + "/".join(parts)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def main(root: str, max_bytes: str, max_entries: str) -> NoReturn:
    """Change the root, unpack standard input, say how it went, and end."""
    os.umask(0)
    os.chroot(root)
    os.chdir("/")
    answer = {}
    try:
        with tarfile.open(
            fileobj=sys.stdin.buffer, mode="r:", encoding="utf-8", errors="surrogateescape"
        ) as archive:
            Unpacker(int(max_bytes), int(max_entries)).apply(archive)
    except (Refused, OSError, tarfile.TarError, ValueError, OverflowError, KeyError) as error:
        answer["error"] = str(error) or type(error).__name__
    sys.stdout.write(json.dumps(answer))
    sys.exit(1 if answer else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
