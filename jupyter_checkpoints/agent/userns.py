"""User namespaces: an ordinary user's kernel is root inside, and that user outside.

Of the ids inside, 0 is the caller himself; so what the kernel writes into a mounted directory is
his, and what he may read it may read. His supplementary groups are themselves. All others, 1 to
65535, are the caller's subordinate range, which is nobody's outside (:mod:`.subids`).

Images and writable layers keep the ids of the image on disk: they are mounted with the mapping
(``mount_setattr``, MOUNT_ATTR_IDMAP), so that one snapshot fits every caller. The mapping of a
saved process comes from no checkpoint either: it is written anew for each resume.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import filter as fnmatch_filter
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from msgspec import Struct

from ..errors import HostNotReady, ResumeFailed
from . import mounting
from .identity import Identity
from .subids import SIZE

#: As many mappings are kept ready; each is a descriptor.
_KEPT = 64


class Extent(Struct, frozen=True):
    """``size`` ids, from ``inside`` on, are ``outside`` and the following outside."""

    inside: int
    outside: int
    size: int


class IdMap(Struct, frozen=True):
    """What the ids of a container are outside of it."""

    uids: tuple[Extent, ...]
    gids: tuple[Extent, ...]

    @property
    def root(self) -> tuple[int, int]:
        """Uid and gid that root of the container is outside."""
        return self.uids[0].outside, self.gids[0].outside

    @property
    def keeper(self) -> tuple[int, int]:
        """Owner of what root inside may pass, by its capabilities, and the caller outside not.

        ``nobody`` of the container.
        """
        return _outside(self.uids, 65534), _outside(self.gids, 65534)


def id_map(identity: Identity, start: int) -> IdMap:
    """The mapping for a caller whose subordinate range begins at ``start``.

    Groups of 65536 and above are left out: inside there are no such ids.
    """
    groups = sorted({g for g in identity.groups if 0 < g < SIZE and g != identity.gid})
    return IdMap(
        uids=(Extent(0, identity.uid, 1), *_extents(start, [])),
        gids=(Extent(0, identity.gid, 1), *_extents(start, groups)),
    )


def _extents(start: int, own: list[int]) -> list[Extent]:
    """Ids 1 to 65535 in the range, but for the caller's own, which are themselves."""
    found = []
    first = 1
    for number in [*own, SIZE]:
        if number > first:
            found.append(Extent(first, start + first, number - first))
        if number < SIZE:
            found.append(Extent(number, number, 1))
        first = number + 1
    return found


def _outside(extents: tuple[Extent, ...], number: int) -> int:
    return next(
        e.outside + number - e.inside for e in extents if e.inside <= number < e.inside + e.size
    )


def supplementary_groups(ids: IdMap) -> list[int]:
    """The caller's groups that are themselves inside."""
    return [e.inside for e in ids.gids[1:] if e.inside == e.outside]


class UserNamespaces:
    """Descriptors of user namespaces with given mappings, for mounting with them. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[IdMap, int] = {}

    @contextmanager
    def get(self, ids: IdMap) -> Iterator[int]:
        """A descriptor, for as long as the context lasts. Blocking.

        Raises
        ------
        HostNotReady
            If the host has no user namespaces.
        """
        with self._lock:
            descriptor = self._open.pop(ids, -1)
            if descriptor < 0:
                descriptor = _make(ids)
            self._open[ids] = descriptor
            while len(self._open) > _KEPT:
                os.close(self._open.pop(next(iter(self._open))))
            descriptor = os.dup(descriptor)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def close(self) -> None:
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])


def _make(ids: IdMap) -> int:
    try:
        return mounting.user_namespace(*map(_lines, (ids.uids, ids.gids)))
    except OSError as error:
        raise HostNotReady(
            "A user namespace could not be made.",
            reason=str(error),
            hint="The kernel needs CONFIG_USER_NS, and user.max_user_namespaces above 0.",
        ) from error


def _lines(extents: tuple[Extent, ...]) -> str:
    return "".join(f"{e.inside} {e.outside} {e.size}\n" for e in extents)


def oci_mappings(extents: tuple[Extent, ...]) -> list[dict[str, Any]]:
    """``linux.uidMappings`` and ``gidMappings`` of an OCI configuration."""
    return [{"containerID": e.inside, "hostID": e.outside, "size": e.size} for e in extents]


def is_namespaced(images: Path) -> bool:
    """Whether CRIU saved processes that had a user namespace of their own."""
    return bool(list(images.glob(_MAPPINGS)))


#: Before a restored process has its ids it is nobody, and reads these.
_MAPPINGS, _CLOCKS = "userns-*.img", "timens-*.img"
_SAVED = ".saved"


def mapped_images(images: Path, ids: IdMap, namespace: int, directory: Path) -> Path:
    """A directory for CRIU with the images of a checkpoint, and with the mapping ``ids``.

    What is restored reads its own images: as root of the container, with the caller's ids, so they
    are shown with their ids mapped by ``namespace``. Blocking. A mount is left in ``directory``,
    which is of no use any more when the container is up.

    Raises
    ------
    ResumeFailed
        If what was saved is not in one user namespace.
    """
    directory.mkdir(mode=0o711)
    directory.chmod(0o711)
    saved = directory / _SAVED
    mounting.attach(os.fspath(images), os.fspath(saved), namespace)
    names = [path.name for path in images.iterdir()]
    for name in names:
        if not fnmatch(name, _MAPPINGS) and not fnmatch(name, _CLOCKS):
            (directory / name).symlink_to(Path(saved.name, name))
    for name in fnmatch_filter(names, _CLOCKS):
        shutil.copyfile(images / name, directory / name)
        (directory / name).chmod(0o644)
    found = fnmatch_filter(names, _MAPPINGS)
    if len(found) != 1:
        raise ResumeFailed(
            "The kernel's state could not be resumed.",
            reason=f"It was saved with {len(found)} user namespaces, and needs one.",
            hint="Start the kernel fresh.",
        )
    with (images / found[0]).open("rb") as file:
        magic = file.read(8)
    (directory / found[0]).write_bytes(magic + _mapping_entry(ids))
    return directory


def drop_images(directory: Path) -> None:
    """Unmount what :func:`mapped_images` has mounted, if it has. Blocking."""
    mounting.detach(os.fspath(directory / _SAVED))


def _mapping_entry(ids: IdMap) -> bytes:
    # userns.proto: userns_entry: uid_map = 1, gid_map = 2;
    # uid_gid_extent: first = 1, lower_first = 2, count = 3.
    message = b"".join(
        _field(number, _numbers(e.inside, e.outside, e.size))
        for number, extents in ((1, ids.uids), (2, ids.gids))
        for e in extents
    )
    return len(message).to_bytes(4, "little") + message


def _numbers(*values: int) -> bytes:
    return b"".join(_varint(n << 3) + _varint(value) for n, value in enumerate(values, 1))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    encoded = b""
    while value > 127:
        encoded += bytes((value & 0x7F | 0x80,))
        value >>= 7
    return encoded + bytes((value,))
