"""The first store: one directory for each checkpoint, whole, on the host's own file system.

::

    root/                    0700
      <id>/                  a checkpoint: exists completely, or not under this name
        manifest.json        0600: {"version": 1, "digest": …, "manifest": …}
        notes.json           what was changed since: name, pin; replaced by a rename
        images/              the process images, as CRIU wrote them
      .staging-<id>/         a checkpoint in the making; left by a crash until the next collect()
      .deleting-<id>.<…>/    its name is gone, its files are on their way out

The rename of ``.staging-<id>`` to ``<id>`` is the commit, the rename of ``<id>`` to
``.deleting-…`` is the deletion. What a name vouches for is on the disk before the name is.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec
from blake3 import blake3
from msgspec import Raw, Struct

from ..errors import (
    CheckpointDamaged,
    CheckpointsError,
    Conflict,
    InsufficientResources,
    InvalidRequest,
    NotFound,
    SaveFailed,
)
from ..models import VerifyReport, is_id
from .content import ContentHasher
from .plain import PlainPages
from .source import damaged as _damaged
from .store import MANIFEST_VERSION, FileRecord, Manifest, Notes, Progress, Staging, Store

log = logging.getLogger(__name__)

#: Bytes of the store's file system that no checkpoint may take: the host itself needs some.
RESERVE = 256 * 2**20
MANIFEST = "manifest.json"
NOTES = "notes.json"
IMAGES = "images"
#: The files that hold memory, among those that CRIU writes.
PAGES_FILE = re.compile(r"pages-[0-9]+\.img")
_STAGING = ".staging-"
_DELETING = ".deleting-"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Versioned(Struct):
    """What is read of a manifest's file before anything else."""

    version: int


class _Envelope(Struct):
    """The file around a manifest; ``digest`` is that of the manifest's bytes as they stand."""

    version: int
    digest: str
    manifest: Raw


class DirectoryStore(Store):
    """Keeps each checkpoint as plain files below ``root``.

    Made once by the agent, which is the only one to touch ``root``; safe to use from many threads.

    Parameters
    ----------
    root:
        Made if missing, and made ``0700``.
    reserve:
        Bytes that have to stay free on the file system after a save.
    """

    def __init__(self, root: Path, reserve: int = RESERVE) -> None:
        self._root = root
        self._reserve = reserve
        self._lock = threading.Lock()
        #: Bytes promised to the checkpoints in the making, by id.
        self._promised: dict[str, int] = {}
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        root.chmod(0o700)

    def begin(self, checkpoint_id: str, needed: int) -> DirectoryStaging:
        if not is_id(checkpoint_id):
            raise InvalidRequest(
                f"{checkpoint_id!r} cannot be the id of a checkpoint.",
                hint="Use letters, digits, '-' and '_', at most 64 of them.",
            )
        directory = self._root / (_STAGING + checkpoint_id)
        with self._lock, _explained(f"Checkpoint {checkpoint_id} could not be started"):
            taken = self._directory(checkpoint_id).exists() or directory.exists()
            if taken or checkpoint_id in self._promised:
                raise Conflict(f"There is a checkpoint {checkpoint_id} already.")
            self._check_space(needed)
            # CRIU has a umask of its own: until seal() only these directories keep others out.
            directory.mkdir(mode=0o700)
            (directory / IMAGES).mkdir(mode=0o700)
            self._promised[checkpoint_id] = needed
        return DirectoryStaging(self, checkpoint_id, directory)

    def _check_space(self, needed: int) -> None:
        """What other saves were promised and have not written yet is as good as taken."""
        free = _free_bytes(self._root)
        for other, promised in self._promised.items():
            free -= max(0, promised - _held_bytes(self._root / (_STAGING + other)))
        available = max(0, free - self._reserve)
        if needed > available:
            raise InsufficientResources(
                f"Not enough disk space for this checkpoint: it needs about {_size(needed)}, "
                f"{_size(available)} can be used.",
                reason=f"{_size(max(0, free))} are free at {self._root}, "
                f"of which {_size(self._reserve)} are kept in reserve.",
                hint="Delete checkpoints that are no longer needed, or make the disk larger.",
            )

    def list(self) -> list[Manifest]:
        found = []
        for entry in os.scandir(self._root):
            if not is_id(entry.name):
                continue
            try:
                found.append(self.load(entry.name))
            except NotFound:
                continue  # deleted meanwhile
            except CheckpointDamaged as error:
                log.warning("Leaving out a checkpoint: %s", error)
        found.sort(key=lambda m: (m.checkpoint.created, m.checkpoint.id), reverse=True)
        return found

    def load(self, checkpoint_id: str) -> Manifest:
        # An id that is none could be a path.
        directory = self._directory(checkpoint_id) if is_id(checkpoint_id) else None
        if directory is None or not directory.exists():
            raise NotFound(f"There is no checkpoint {checkpoint_id}.")
        try:
            content = (directory / MANIFEST).read_bytes()
        except OSError as error:
            if not directory.exists():
                raise NotFound(f"There is no checkpoint {checkpoint_id}.") from error
            raise _damaged(
                checkpoint_id, f"its manifest cannot be read: {error.strerror}"
            ) from error
        return _noted(_decode(checkpoint_id, content), self._notes(checkpoint_id))

    def _notes(self, checkpoint_id: str) -> Notes:
        try:
            return msgspec.json.decode(
                (self._directory(checkpoint_id) / NOTES).read_bytes(), type=Notes
            )
        except FileNotFoundError:
            return Notes()
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("The notes of checkpoint %s cannot be read: %s", checkpoint_id, error)
            return Notes()

    def annotate(self, checkpoint_id: str, change: Callable[[Notes], Notes]) -> None:
        self.load(checkpoint_id)
        directory = self._directory(checkpoint_id)
        with self._lock, _explained(f"Checkpoint {checkpoint_id} could not be changed"):
            temporary = directory / (NOTES + ".tmp")
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            with open(os.open(temporary, flags, 0o600), "wb") as file:
                file.write(msgspec.json.encode(change(self._notes(checkpoint_id))))
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(directory / NOTES)
            _sync_directory(directory)

    def clone(self, checkpoint_id: str, manifest: Manifest) -> None:
        source = self._directory(self.load(checkpoint_id).checkpoint.id)
        staging = self.begin(manifest.checkpoint.id, 0)
        try:
            with _explained(f"Checkpoint {checkpoint_id} could not be copied"):
                for record in manifest.files:
                    target = staging.images.parent / record.path
                    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    try:
                        os.link(source / record.path, target, follow_symlinks=False)
                    except FileNotFoundError as error:
                        raise _damaged(checkpoint_id, f"{record.path}: is missing") from error
                    _sync_directory(target.parent)
            staging.adopt(manifest.files)
            staging.commit(manifest)
        except BaseException:
            staging.abandon()
            raise

    def held(self, checkpoint_id: str) -> dict[tuple[int, int], int]:
        try:
            return {
                (info.st_dev, info.st_ino): info.st_blocks * 512
                for _, info in _walk(self._directory(checkpoint_id))
            }
        except FileNotFoundError:
            return {}

    def images(self, checkpoint_id: str) -> Path:
        if not is_id(checkpoint_id):
            raise NotFound(f"There is no checkpoint {checkpoint_id}.")
        return self._directory(checkpoint_id) / IMAGES

    def pages(self, checkpoint_id: str) -> PlainPages:
        manifest = self.load(checkpoint_id)
        return PlainPages(
            checkpoint=checkpoint_id,
            directory=str(self.images(checkpoint_id)),
            files={
                name: (record.size, record.digest)
                for record in manifest.files
                if PAGES_FILE.fullmatch(name := record.path.removeprefix(f"{IMAGES}/"))
            },
        )

    def materialise(
        self, checkpoint_id: str, directory: Path, progress: Progress | None = None
    ) -> None:
        report = self.verify(self.load(checkpoint_id), progress)
        if not report.ok:
            raise _damaged(checkpoint_id, "; ".join(report.problems[:5]))
        images = self.images(checkpoint_id)
        with _explained(f"Checkpoint {checkpoint_id} could not be made ready"):
            for path, _ in _walk(images):
                target = directory / path
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                try:
                    os.link(images / path, target, follow_symlinks=False)
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
                    shutil.copyfile(images / path, target, follow_symlinks=False)

    def verify(self, manifest: Manifest, progress: Progress | None = None) -> VerifyReport:
        checkpoint_id = manifest.checkpoint.id
        problems: list[str] = []
        read = 0
        try:
            if _saved(self.load(checkpoint_id)) != _saved(manifest):
                problems.append(f"{MANIFEST}: not the manifest that was asked about")
            found = dict(_walk(self._directory(checkpoint_id)))
        except CheckpointsError as error:
            problems.append(f"{MANIFEST}: {error.reason or error.message}")
            found = {}
        except OSError as error:
            problems.append(f"cannot be listed: {error.strerror}")
            found = {}
        expected = {record.path: record for record in manifest.files}
        for name in (MANIFEST, NOTES, NOTES + ".tmp"):
            found.pop(name, None)
        missing, extra = expected.keys() - found.keys(), found.keys() - expected.keys()
        problems += [f"{path}: is missing" for path in sorted(missing)]
        problems += [f"{path}: does not belong here" for path in sorted(extra)]
        to_read = []
        for path in sorted(expected.keys() & found.keys()):
            if not stat.S_ISREG(found[path].st_mode):
                problems.append(f"{path}: is not a regular file")
            elif found[path].st_size != expected[path].size:
                size, due = found[path].st_size, expected[path].size
                problems.append(f"{path}: has {size} bytes, should have {due}")
            else:
                to_read.append(expected[path])
        meter = _Meter(sum(record.size for record in to_read), progress)
        with ContentHasher() as hasher:
            for record in to_read:
                try:
                    with _opened(self._directory(checkpoint_id) / record.path) as fd:
                        digest, size = hasher.digest(fd, meter.advance)
                except OSError as error:
                    problems.append(f"{record.path}: cannot be read: {error.strerror}")
                    continue
                read += size
                if digest.hex() != record.digest:
                    problems.append(f"{record.path}: its content is not what was saved")
        return VerifyReport(id=checkpoint_id, ok=not problems, problems=problems, bytes_read=read)

    def delete(self, checkpoint_id: str) -> None:
        if not is_id(checkpoint_id):
            raise NotFound(f"There is no checkpoint {checkpoint_id}.")
        try:
            # An empty directory to be renamed onto: a name that no other deletion has.
            doomed = Path(tempfile.mkdtemp(prefix=f"{_DELETING}{checkpoint_id}.", dir=self._root))
            try:
                self._directory(checkpoint_id).rename(doomed)
            except FileNotFoundError as error:
                doomed.rmdir()
                raise NotFound(f"There is no checkpoint {checkpoint_id}.") from error
            _sync_directory(self._root)
            shutil.rmtree(doomed)
        except OSError as error:
            raise CheckpointsError(
                f"Checkpoint {checkpoint_id} could not be deleted.", reason=str(error)
            ) from error

    def collect(self) -> Sequence[str]:
        removed = set()
        for entry in list(os.scandir(self._root)):
            for prefix in (_STAGING, _DELETING):
                if not entry.name.startswith(prefix):
                    continue
                checkpoint_id = entry.name.removeprefix(prefix).partition(".")[0]
                if prefix == _STAGING and checkpoint_id in self._promised:
                    continue
                try:
                    _remove(Path(entry.path))
                    removed.add(checkpoint_id)
                except OSError as error:
                    log.warning("Could not remove %s: %s", entry.path, error)
        _sync_directory(self._root)
        return sorted(removed)

    def _directory(self, checkpoint_id: str) -> Path:
        return self._root / checkpoint_id

    def _publish(self, staging: Path, checkpoint_id: str) -> None:
        """The commit itself: afterwards the checkpoint is there for good, or nothing changed."""
        final = self._directory(checkpoint_id)
        staging.rename(final)
        try:
            _sync_directory(self._root)
        except OSError:
            final.rename(staging)
            raise
        self._forget(checkpoint_id)

    def _forget(self, checkpoint_id: str) -> None:
        with self._lock:
            self._promised.pop(checkpoint_id, None)


class DirectoryStaging(Staging):
    """A checkpoint in the making of a :class:`DirectoryStore`, which alone makes these."""

    def __init__(self, store: DirectoryStore, checkpoint_id: str, directory: Path) -> None:
        self._store = store
        self._id = checkpoint_id
        self._directory = directory
        self._sealed: list[FileRecord] = []

    @property
    def id(self) -> str:
        return self._id

    @property
    def images(self) -> Path:
        return self._directory / IMAGES

    def seal(self, progress: Progress | None = None) -> list[FileRecord]:
        with _explained(f"The files of checkpoint {self._id} could not be written"):
            files: list[tuple[str, int]] = []
            directories = [self.images]
            for path, info in _walk(self._directory, directories):
                if not stat.S_ISREG(info.st_mode) or not path.isprintable():
                    raise SaveFailed(
                        f"The process images hold something that is no plain file: {path!r}.",
                        hint="This is a defect of the engine; please report it.",
                    )
                (self._directory / path).chmod(0o600)
                files.append((path, info.st_size))
            for directory in directories:
                directory.chmod(0o700)
            # The disk is the slow part, so it starts at once and with the largest file;
            # hashing reads the same pages from memory meanwhile.
            files.sort(key=lambda file: -file[1])
            meter = _Meter(sum(size for _, size in files), progress)
            with ThreadPoolExecutor(1, thread_name_prefix="writeback") as disk:
                written = [disk.submit(_sync_file, self._directory / path) for path, _ in files]
                records = []
                with ContentHasher() as hasher:
                    for path, _ in files:
                        with _opened(self._directory / path) as fd:
                            digest, size = hasher.digest(fd, meter.advance)
                        records.append(FileRecord(path=path, size=size, digest=digest.hex()))
                for one in written:
                    one.result()
            for directory in reversed(directories):
                _sync_directory(directory)
        self._sealed = sorted(records, key=lambda record: record.path)
        return self._sealed

    def adopt(self, files: list[FileRecord]) -> None:
        """Take files for sealed that are, under these very digests, in another checkpoint."""
        self._sealed = list(files)

    def commit(self, manifest: Manifest) -> None:
        if (manifest.checkpoint.id, manifest.version) != (self._id, MANIFEST_VERSION):
            raise CheckpointsError(f"The manifest of checkpoint {self._id} is another one's.")
        if manifest.files != self._sealed:
            raise CheckpointsError(
                f"The manifest of checkpoint {self._id} does not list what was sealed."
            )
        with _explained(f"Checkpoint {self._id} could not be committed"):
            path = self._directory / MANIFEST
            # Left there by a commit that failed.
            path.unlink(missing_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(_encode(manifest))
                file.flush()
                os.fsync(fd)
            _sync_directory(self._directory)
            self._store._publish(self._directory, self._id)

    def abandon(self) -> None:
        try:
            _remove(self._directory)
        except OSError as error:
            # The next collect() tries again; whoever abandons has an error of his own to tell.
            log.warning("Could not remove %s: %s", self._directory, error)
        self._store._forget(self._id)


class _Meter:
    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done = 0
        self._total = total
        self._progress = progress

    def advance(self, count: int) -> None:
        self._done += count
        if self._progress:
            self._progress(self._done, self._total)


def _noted(manifest: Manifest, notes: Notes) -> Manifest:
    checkpoint = msgspec.structs.replace(
        manifest.checkpoint,
        name=manifest.checkpoint.name if notes.name is None else notes.name,
        pinned=notes.pinned,
        touched=notes.touched,
        shares=notes.shares,
        verified=notes.verified,
    )
    return msgspec.structs.replace(manifest, checkpoint=checkpoint)


def _saved(manifest: Manifest) -> Manifest:
    """Without what notes may change."""
    return _noted(manifest, Notes(name=""))


def _encode(manifest: Manifest) -> bytes:
    body = msgspec.json.encode(manifest)
    envelope = _Envelope(
        version=manifest.version, digest=blake3(body).hexdigest(), manifest=Raw(body)
    )
    return msgspec.json.encode(envelope)


def _decode(checkpoint_id: str, content: bytes) -> Manifest:
    try:
        version = msgspec.json.decode(content, type=_Versioned).version
        if version != MANIFEST_VERSION:
            raise CheckpointDamaged(
                f"Checkpoint {checkpoint_id} cannot be read.",
                reason=f"its manifest has version {version}, "
                f"this release knows versions up to {MANIFEST_VERSION}",
                hint="If a newer release made it, upgrade jupyter-runtime-checkpoints.",
            )
        envelope = msgspec.json.decode(content, type=_Envelope)
        if blake3(bytes(envelope.manifest)).hexdigest() != envelope.digest:
            raise _damaged(checkpoint_id, "its manifest is not what was saved")
        manifest = msgspec.json.decode(envelope.manifest, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _damaged(checkpoint_id, f"its manifest makes no sense: {error}") from error
    if manifest.checkpoint.id != checkpoint_id:
        raise _damaged(checkpoint_id, f"its manifest is that of {manifest.checkpoint.id}")
    return manifest


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn an error of the disk into one that says what could not be done."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise InsufficientResources(
                f"{what}: the disk is full.",
                reason=str(error),
                hint="Delete checkpoints that are no longer needed, or make the disk larger.",
            ) from error
        raise SaveFailed(f"{what}.", reason=str(error)) from error


def _walk(
    root: Path, directories: list[Path] | None = None
) -> Iterator[tuple[str, os.stat_result]]:
    """Path below ``root`` and ``lstat`` of all but directories; those go to ``directories``."""
    pending = [root]
    while pending:
        for entry in list(os.scandir(pending.pop())):
            if entry.is_dir(follow_symlinks=False):
                pending.append(Path(entry.path))
                if directories is not None:
                    directories.append(Path(entry.path))
            else:
                yield os.path.relpath(entry.path, root), entry.stat(follow_symlinks=False)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _sync_file(path: Path) -> None:
    with _opened(path) as fd:
        os.fsync(fd)


def _sync_directory(path: Path) -> None:
    with _opened(path) as fd:
        os.fsync(fd)


def _remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)


def _free_bytes(path: Path) -> int:
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize


def _held_bytes(directory: Path) -> int:
    try:
        return sum(info.st_blocks * 512 for _, info in _walk(directory))
    except FileNotFoundError:
        return 0  # it changes meanwhile; too careful is right


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
