"""Unpack one layer of an image, as a program of its own: ``unpack_layer.py ROOT BYTES ENTRIES``.

The layer, an uncompressed tar, comes on standard input and is hostile until proven otherwise.
This program changes its root to the tree first, so that no link in the layer or in the layers
below leads out of it, and knows nothing but that tree and the pipe. It therefore uses nothing but
the standard library, imported before.

It ends with one JSON object on standard output: ``{"bytes", "entries", "devices"}``, or
``{"error"}`` and status 1.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import tarfile
from typing import NoReturn

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
#: Other attributes are overlayfs's own or a security module's: an image must not set them.
_ATTRIBUTES = ("security.capability", "user.")
_LARGEST_ID = 2**32 - 2
_CHUNK = 1 << 20


class Refused(Exception):
    """The layer holds something that no image needs."""


class Unpacker:
    """Applies the entries of one layer to the tree at ``/``."""

    def __init__(self, max_bytes: int, max_entries: int) -> None:
        self._max_bytes, self._max_entries = max_bytes, max_entries
        self.bytes = self.entries = self.devices = 0
        self._made: set[str] = set()  # by this layer: what its whiteouts do not concern
        self._directories: list[tuple[str, float]] = []

    def apply(self, layer: tarfile.TarFile) -> None:
        """Unpack everything; raises Refused, OSError or tarfile.TarError."""
        while (member := layer.next()) is not None:
            self.entries += 1
            if self.entries > self._max_entries:
                raise Refused(f"more than {self._max_entries} entries")
            parts = _parts(member.name)
            if parts:
                self._apply_entry(layer, member, parts)
            layer.members.clear()  # type: ignore[attr-defined]  # it keeps every member it has seen
        for path, moment in reversed(self._directories):
            if os.path.isdir(path) and not os.path.islink(path):
                os.utime(path, (moment, moment))

    def _apply_entry(
        self, layer: tarfile.TarFile, member: tarfile.TarInfo, parts: list[str]
    ) -> None:
        name = parts[-1]
        parent = self._parent(parts[:-1])
        if name == _OPAQUE:
            self._clear(parent)
            return
        if name.startswith(_WHITEOUT):
            hidden = name.removeprefix(_WHITEOUT)
            # `.wh..wh.*` is bookkeeping of AUFS; `.wh.` alone and `.wh...` name no file
            if hidden.startswith(_WHITEOUT):
                return
            if hidden in ("", ".", ".."):
                raise Refused(f"the whiteout {member.name!r} names no file")
            if (path := os.path.join(parent, hidden)) not in self._made:
                _remove(path)
            return
        if member.ischr() or member.isblk():
            if parts[0] != "dev":  # every container has a /dev of its own over this one
                raise Refused(f"{member.name!r} is a device")
            self.devices += 1
            return
        path = os.path.join(parent, name)
        self._create(layer, member, path)
        self._made.add(path)
        if not member.islnk():
            self._describe(member, path)

    def _create(self, layer: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
        if member.isdir():
            if not os.path.isdir(path) or os.path.islink(path):
                _remove(path)
                os.mkdir(path, 0o700)
            self._directories.append((path, member.mtime))
            return
        _remove(path)
        if member.isreg():
            source = layer.extractfile(member)
            assert source is not None
            with open(path, "xb", opener=_open_private) as target:
                while chunk := source.read(_CHUNK):
                    self.bytes += len(chunk)
                    if self.bytes > self._max_bytes:
                        raise Refused(f"more than {self._max_bytes} bytes")
                    target.write(chunk)
        elif member.issym():
            os.symlink(member.linkname, path)
        elif member.islnk():
            parts = _parts(member.linkname)
            if not parts:
                raise Refused(f"{member.name!r} is a link to the root directory")
            original = os.path.join(self._parent(parts[:-1], make=False), parts[-1])
            if not stat.S_ISREG(os.lstat(original).st_mode):
                raise Refused(f"{member.name!r} is a hard link to no regular file")
            os.link(original, path, follow_symlinks=False)
        elif member.isfifo():
            os.mkfifo(path, 0o600)
        else:
            raise Refused(f"{member.name!r} has an unknown type")

    def _describe(self, member: tarfile.TarInfo, path: str) -> None:
        """Owner, then mode and attributes (a change of owner takes some of them away), moment."""
        if not (0 <= member.uid <= _LARGEST_ID and 0 <= member.gid <= _LARGEST_ID):
            raise Refused(f"{member.name!r} has an impossible owner")
        os.chown(path, member.uid, member.gid, follow_symlinks=False)
        if not member.issym():
            os.chmod(path, member.mode & 0o7777)
        for key, value in member.pax_headers.items():
            attribute = key.removeprefix("SCHILY.xattr.")
            if attribute != key and attribute.startswith(_ATTRIBUTES):
                content = value.encode("utf-8", "surrogateescape")
                os.setxattr(path, attribute, content, follow_symlinks=False)
        os.utime(path, (member.mtime, member.mtime), follow_symlinks=False)

    def _parent(self, parts: list[str], *, make: bool = True) -> str:
        """The real path of a directory; links on the way lead where they lead in the container."""
        path = "/"
        for part in parts:
            path = os.path.join(path, part)
            if make and not os.path.lexists(path):
                os.mkdir(path, 0o755)
                self._made.add(path)
            real = os.path.realpath(path)
            if not os.path.isdir(real):
                raise Refused(f"{path!r} is not a directory, but has entries")
            path = real
        return path

    def _clear(self, directory: str) -> None:
        """Remove what lower layers have in a directory."""
        for name in os.listdir(directory):
            path = os.path.join(directory, name)
            if path not in self._made:
                _remove(path)
            elif os.path.isdir(path) and not os.path.islink(path):
                self._clear(path)


def _parts(name: str) -> list[str]:
    if name.startswith("/"):
        raise Refused(f"{name!r} is an absolute path")
    if "\0" in name:
        raise Refused(f"{name!r} holds a zero byte")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Refused(f"{name!r} leads out of its directory")
    return parts


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def main(root: str, max_bytes: str, max_entries: str) -> NoReturn:
    """Change the root, unpack standard input, say how it went, and end."""
    os.umask(0)
    unpacker = Unpacker(int(max_bytes), int(max_entries))
    os.chroot(root)
    os.chdir("/")
    try:
        with tarfile.open(
            fileobj=sys.stdin.buffer, mode="r|", encoding="utf-8", errors="surrogateescape"
        ) as layer:
            unpacker.apply(layer)
        while sys.stdin.buffer.read(_CHUNK):  # padding; the sender wants to hash all of it
            pass
    except (Refused, OSError, tarfile.TarError, ValueError, OverflowError) as error:
        answer: dict[str, object] = {"error": str(error) or type(error).__name__}
    else:
        answer = {
            "bytes": unpacker.bytes,
            "entries": unpacker.entries,
            "devices": unpacker.devices,
        }
    sys.stdout.write(json.dumps(answer))
    sys.exit(1 if "error" in answer else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
