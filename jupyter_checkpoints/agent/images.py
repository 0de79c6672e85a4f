"""The images of a host: read-only root file systems, named by what is in them.

On disk, below the store's root (``0700``)::

    <digest>/rootfs/       the tree, never written again
    <digest>/image.json    an ImageModel without a name
    names.json             {"python3:latest": "<digest>", ...}
    .staging-*             trees in the making; what a crash leaves there is removed later

An image exists from the moment its directory has its final name, complete. An image whose name
went to a newer one stays until it is removed, as checkpoints may need it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Container, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Protocol

import msgspec
from blake3 import blake3
from msgspec.structs import replace

from .. import layout
from ..errors import Conflict, HostNotReady, InvalidRequest, NotFound
from ..models import IMAGE_PATTERN, ImageModel
from .image_archive import unpack_archive
from .image_build import Built, Progress, build_rootfs, require_root
from .image_spec import ImageSpec, shipped_spec
from .tools import SETUP_HINT

#: The image that an empty reference means.
DEFAULT_IMAGE = "python3"
#: Linked statically, so that it runs in any image.
_INIT = Path("/usr/bin/tini-static")
_SHORTEST_PREFIX = 6


class Images(Protocol):
    """The images that kernels may start from, wherever an engine keeps them. All methods block."""

    def list(self) -> list[ImageModel]: ...

    def resolve(self, ref: str) -> ImageModel:
        """The image that ``ref`` means. Raises ``NotFound``, ``InvalidRequest``."""

    def require(self, digest: str) -> None:
        """Raises ``NotFound`` if there is no image with this digest."""

    def build(self, spec: ImageSpec, name: str, progress: Progress) -> ImageModel:
        """Build an image and give it ``name``."""

    def import_archive(self, path: Path, name: str, progress: Progress) -> ImageModel:
        """Make an image of an archive and give it ``name``."""

    def remove(self, ref: str, *, in_use: Container[str] = ()) -> None:
        """Remove an image. Raises ``NotFound``, ``Conflict``."""


class ImageStore:
    """The images below ``root``. All methods block; any number of processes may use one store."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def list(self) -> list[ImageModel]:
        """Every image, newest first; one with several names appears under each of them."""
        names = self._names()
        images = []
        for record in self._records():
            own = sorted(name for name, digest in names.items() if digest == record.digest)
            images += [replace(record, name=_shown(name)) for name in own or [""]]
        return sorted(images, key=lambda image: (image.created, image.name), reverse=True)

    def resolve(self, ref: str) -> ImageModel:
        """The image that ``ref`` means: a name, ``name:tag``, a digest or a unique prefix of one.

        Called for every kernel that starts, with ``""`` for the default image.

        Raises
        ------
        NotFound
            If there is none; the hint lists those that are there.
        InvalidRequest
            If a prefix fits several.
        """
        wanted = ref or DEFAULT_IMAGE
        digest = self._names().get(_tagged(wanted))
        if digest is not None and (record := self._record(digest)) is not None:
            return replace(record, name=_shown(_tagged(wanted)))
        if len(wanted) >= _SHORTEST_PREFIX and all(c in "0123456789abcdef" for c in wanted):
            fitting = {
                image.digest: image for image in self.list() if image.digest.startswith(wanted)
            }
            if len(fitting) > 1:
                raise InvalidRequest(
                    f"{wanted} fits {len(fitting)} images", hint="Give more of the digest."
                )
            if fitting:
                return next(iter(fitting.values()))
        there = ", ".join(sorted({image.name or image.digest[:12] for image in self.list()}))
        raise NotFound(
            f"There is no image {wanted!r}" if ref else "There is no default image yet",
            reason=f"images on this host: {there or 'none'}",
            hint="`jupyter checkpoints image build` or `image import` makes one."
            if ref
            else SETUP_HINT,
        )

    def require(self, digest: str) -> None:
        """Raises :class:`NotFound` if there is no such image (the whole digest is needed)."""
        if self._record(digest) is None:
            raise NotFound(f"There is no image {digest[:12]!r}", reason="it was removed")

    def rootfs(self, digest: str) -> Path:
        """The root directory of an image, to be mounted read-only.

        Raises :class:`NotFound` if there is no such image (the whole digest is needed).
        """
        self.require(digest)
        return self.root / digest / "rootfs"

    def build(self, spec: ImageSpec, name: str, progress: Progress) -> ImageModel:
        """Build an image and give it ``name``, which then no longer means any former image.

        One is built at a time; see :func:`~.image_build.build_rootfs` for what it raises.
        """
        key = _checked(name)
        require_root()
        with self._building(progress):
            return self._build(spec, key, progress)

    def import_archive(self, path: Path, name: str, progress: Progress) -> ImageModel:
        """Make an image of an OCI or ``docker save`` archive and give it ``name``.

        See :func:`~.image_archive.unpack_archive` for what it raises.
        """
        key = _checked(name)
        require_root()
        with self._staging() as staging:
            rootfs = staging / "rootfs"
            rootfs.mkdir()
            built = unpack_archive(path, rootfs, staging, progress)
            return self._commit(staging, built, key, f"import of {path.name}", progress)

    def ensure_default(self, progress: Progress) -> tuple[ImageModel, bool]:
        """The default image, built first if it is not there; and whether it was built.

        Called by ``setup`` and by a test session's start; may be called by several at once.
        """
        with contextlib.suppress(NotFound):
            return self.resolve(""), False
        require_root()
        with self._building(progress):
            with contextlib.suppress(NotFound):  # another one has just built it
                return self.resolve(""), False
            spec = shipped_spec(DEFAULT_IMAGE)
            return self._build(spec, _tagged(DEFAULT_IMAGE), progress), True

    def remove(self, ref: str, *, in_use: Container[str] = ()) -> None:
        """Remove a name, and with its last name (or by digest) the image itself.

        ``in_use``: digests that kernels or checkpoints still need.

        Raises
        ------
        NotFound
            As :meth:`resolve`.
        Conflict
            If the image itself would go and is in use.
        """
        image = self.resolve(ref)
        with self._exclusive():
            names = self._names()
            key = _tagged(ref or DEFAULT_IMAGE)
            gone = [n for n, digest in names.items() if digest == image.digest]
            if key in gone and len(gone) > 1:
                gone = [key]
                doomed = None
            else:
                doomed = self.root / image.digest
                if image.digest in in_use:
                    raise Conflict(
                        f"The image {image.name or image.digest[:12]} is in use",
                        reason="kernels run in it, or checkpoints need it to be resumed",
                        hint="End those kernels and delete those checkpoints first.",
                    )
            self._write_names({n: d for n, d in names.items() if n not in gone})
            if doomed is not None:
                hidden = self.root / f".staging-removed-{image.digest}"
                doomed.rename(hidden)
                shutil.rmtree(hidden)

    def _build(self, spec: ImageSpec, key: str, progress: Progress) -> ImageModel:
        with self._staging() as staging:
            built = build_rootfs(spec, staging / "rootfs", progress)
            source = f"build of {spec.description or spec.suite}"
            return self._commit(staging, built, key, source, progress)

    def _commit(
        self, staging: Path, built: Built, key: str, source: str, progress: Progress
    ) -> ImageModel:
        """Give a complete tree its init, digest, place and name."""
        rootfs = staging / "rootfs"
        _place_init(rootfs)
        rootfs.chmod(0o755)
        progress("commit", "computing the image's digest")
        digest, size = tree_digest(rootfs, built.env, built.cwd)
        image = ImageModel(
            name="",
            digest=digest,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            size=size,
            env=built.env,
            cwd=built.cwd,
            packages=built.packages,
            source=source,
        )
        (staging / "image.json").write_bytes(msgspec.json.encode(image))
        _sync_file_system(staging)
        with self._exclusive():
            if (there := self._record(digest)) is None:
                staging.rename(self.root / digest)
            self._write_names(self._names() | {key: digest})
        return replace(there or image, name=_shown(key))

    def _records(self) -> Iterator[ImageModel]:
        try:
            entries = sorted(os.listdir(self.root))
        except FileNotFoundError:
            return
        for name in entries:
            if (record := self._record(name)) is not None:
                yield record

    def _record(self, digest: str) -> ImageModel | None:
        if len(digest) != 64 or not digest.isalnum():
            return None
        try:
            return msgspec.json.decode(
                (self.root / digest / "image.json").read_bytes(), type=ImageModel
            )
        except FileNotFoundError:
            return None

    def _names(self) -> dict[str, str]:
        try:
            return msgspec.json.decode((self.root / "names.json").read_bytes(), type=dict[str, str])
        except FileNotFoundError:
            return {}

    def _write_names(self, names: dict[str, str]) -> None:
        with tempfile.NamedTemporaryFile(dir=self.root, prefix=".names-", delete=False) as file:
            file.write(msgspec.json.encode(names, order="sorted"))
            file.flush()
            os.fsync(file.fileno())
        os.rename(file.name, self.root / "names.json")
        directory = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @contextmanager
    def _staging(self) -> Iterator[Path]:
        """A new directory, locked as long as its maker lives; removed unless it was renamed."""
        with self._exclusive():  # a new directory must not look abandoned before it is locked
            self._remove_abandoned()
            path = Path(tempfile.mkdtemp(prefix=".staging-", dir=self.root))
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield path
        finally:
            # Renamed into place, the directory is no longer found under this name.
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)

    def _remove_abandoned(self) -> None:
        for path in self.root.glob(".staging-*"):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:  # its maker has just removed it
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            except BlockingIOError:
                continue
            finally:
                os.close(descriptor)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        self._make_root()
        with self._lock_file("lock") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _building(self, progress: Progress) -> Iterator[None]:
        self._make_root()
        with self._lock_file("building") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress("wait", "waiting for another image to be built")
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _lock_file(self, name: str) -> IO[str]:
        return open(self.root / f".{name}", "w", encoding="ascii")

    def _make_root(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.root.chmod(0o700)


def tree_digest(rootfs: Path, env: dict[str, str], cwd: str) -> tuple[str, int]:
    """BLAKE3 (64 hex digits) over all that an image is, and the bytes of its files.

    Over every entry in order of its path: path, mode (with type), owner, group, size, link's
    target, extended attributes, content. Moments are left out: the same files are the same image.
    Reads every file; 2 s for 500 MB that are cached.
    """
    whole = blake3(msgspec.json.encode([env, cwd], order="sorted"))
    total = 0
    counted: set[int] = set()
    pending = [""]
    while pending:
        relative = pending.pop()
        path = f"{rootfs}{relative}"
        facts = os.lstat(path)
        target, content = "", ""
        if stat.S_ISREG(facts.st_mode):
            content = _content_digest(path, facts.st_size)
            if facts.st_ino not in counted:
                counted.add(facts.st_ino)
                total += facts.st_size
        elif stat.S_ISLNK(facts.st_mode):
            target = os.readlink(path)
        elif stat.S_ISDIR(facts.st_mode):
            names = sorted(os.listdir(path), key=os.fsencode)
            pending += [f"{relative}/{name}" for name in reversed(names)]
        attributes = {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in sorted(os.listxattr(path, follow_symlinks=False))
        }
        line = [
            os.fsencode(relative),
            facts.st_mode,
            facts.st_uid,
            facts.st_gid,
            facts.st_size if content else 0,
            os.fsencode(target),
            attributes,
            content,
        ]
        whole.update(msgspec.msgpack.encode(line))
    return whole.hexdigest(), total


def _content_digest(path: str, size: int) -> str:
    hasher = blake3()
    if size > 1 << 20:
        hasher.update_mmap(path)
    else:
        with open(path, "rb") as file:
            hasher.update(file.read())
    return hasher.hexdigest()


def _place_init(rootfs: Path) -> None:
    """Put the small init into the tree, over whatever an imported image has in its place."""
    place = rootfs / layout.INIT_PATH.lstrip("/")
    parent = place.parent
    if parent.is_symlink() or parent.is_file():
        parent.unlink()
    elif parent.exists():
        shutil.rmtree(parent)
    parent.mkdir(mode=0o755)
    parent.chmod(0o755)
    try:
        shutil.copyfile(_INIT, place)
    except FileNotFoundError as error:
        raise HostNotReady(
            "tini is not installed", reason=f"{_INIT} is missing", hint=SETUP_HINT
        ) from error
    place.chmod(0o755)


def _sync_file_system(path: Path) -> None:
    """Write out all of one file system: one call instead of an fsync per file of a tree."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)


def _checked(name: str) -> str:
    if re.fullmatch(IMAGE_PATTERN, name) is None:
        raise InvalidRequest(
            f"{name!r} cannot be the name of an image",
            hint="Use lower-case letters, digits, '.', '_', '-' and '/', and a tag after ':'.",
        )
    return _tagged(name)


def _tagged(name: str) -> str:
    return name if ":" in name else f"{name}:latest"


def _shown(name: str) -> str:
    return name.removesuffix(":latest")
