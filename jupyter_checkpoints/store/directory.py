"""The first store: one directory for each checkpoint, whole, on the host's own file system.

::

    root/                    0700
      <id>/                  a checkpoint: exists completely, or not under this name
        manifest.json        0600: {"version": 1, "digest": …, "manifest": …}
        notes.json           what was changed since: name, pin; replaced by a rename
        images/              the process images, as CRIU wrote them
      .staging-<id>/         a checkpoint in the making; left by a crash until the next collect()
      .images-<…>/           the images of a checkpoint while it is resumed
      .deleting-<id>.<…>/    its name is gone, its files are on their way out

The rename of ``.staging-<id>`` to ``<id>`` is the commit, the rename of ``<id>`` to
``.deleting-…`` is the deletion. What a name vouches for is on the disk before the name is.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby, pairwise
from pathlib import Path

import msgspec
import numpy as np
from blake3 import blake3

from ..errors import (
    CheckpointDamaged,
    CheckpointsError,
    Conflict,
    InsufficientResources,
    InvalidRequest,
    NotFound,
    SaveFailed,
)
from ..models import RepairReport, VerifyReport, is_id
from . import envelope
from .content import ContentHasher
from .intake import ABSENT, Intake
from .pack import PAGE, Array
from .packed import PAGES_FILE
from .pagemap import Run
from .plain import PlainPages
from .source import PagesDescription, damaged
from .store import GRACE, MANIFEST_VERSION, FileRecord, Manifest, Notes, Progress, Staging, Store

log = logging.getLogger(__name__)

#: Bytes of the store's file system that no checkpoint may take: the host itself needs some.
RESERVE = 256 * 2**20
MANIFEST = "manifest.json"
NOTES = "notes.json"
IMAGES = "images"
_STAGING = ".staging-"
_DELETING = ".deleting-"
_IMAGES = ".images-"
_MEMORY = "memory"
_FULL = (errno.ENOSPC, errno.EDQUOT)

#: Whose memory is in which pages file, and where: from a directory of process images.
Memory = Callable[[Path], Mapping[str, Sequence[Run]]]


class DirectoryStore(Store):
    """Keeps each checkpoint as plain files below ``root``.

    Made once by the agent, which is the only one to touch ``root``; safe to use from many threads.

    Parameters
    ----------
    root:
        Made if missing, and made ``0700``.
    reserve:
        Bytes that have to stay free on the file system after a save.
    memory:
        Tells whose memory CRIU's pages files hold.
    """

    #: The newest version of a manifest's file that this store can read.
    _newest = envelope.PLAIN

    def __init__(
        self, root: Path, reserve: int = RESERVE, memory: Memory = lambda images: {}
    ) -> None:
        self.root = root
        self.memory = memory
        self._reserve = reserve
        self._lock = threading.Lock()
        #: Bytes promised to the checkpoints in the making, by id.
        self._promised: dict[str, int] = {}
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        root.chmod(0o700)

    def begin(self, checkpoint_id: str, needed: int, parent: str = "") -> DirectoryStaging:
        return DirectoryStaging(self, checkpoint_id, self._claim(checkpoint_id, needed))

    def forget(self, precopy_id: str) -> None:
        """There are none here."""

    def _claim(self, checkpoint_id: str, needed: int) -> Path:
        """Take an id and space for it; the staging directory."""
        if not is_id(checkpoint_id):
            raise InvalidRequest(
                f"{checkpoint_id!r} cannot be the id of a checkpoint.",
                hint="Use letters, digits, '-' and '_', at most 64 of them.",
            )
        directory = self.root / (_STAGING + checkpoint_id)
        with self._lock, explained(f"Checkpoint {checkpoint_id} could not be started"):
            taken = self._directory(checkpoint_id).exists() or directory.exists()
            if taken or checkpoint_id in self._promised:
                raise Conflict(f"There is a checkpoint {checkpoint_id} already.")
            self._check_space(needed)
            # CRIU has a umask of its own: until seal() only these directories keep others out.
            directory.mkdir(mode=0o700)
            (directory / IMAGES).mkdir(mode=0o700)
            self._promised[checkpoint_id] = needed
        return directory

    def _check_space(self, needed: int) -> None:
        """What other saves were promised and have not written yet is as good as taken."""
        free = _free_bytes(self.root)
        for other, promised in self._promised.items():
            free -= max(0, promised - _held_bytes(self.root / (_STAGING + other)))
        available = max(0, free - self._reserve)
        if needed > available:
            raise InsufficientResources(
                f"Not enough disk space for this checkpoint: it needs about {_size(needed)}, "
                f"{_size(available)} can be used.",
                reason=f"{_size(max(0, free))} are free at {self.root}, "
                f"of which {_size(self._reserve)} are kept in reserve.",
                hint="Delete checkpoints that are no longer needed, or make the disk larger.",
            )

    def list(self) -> list[Manifest]:
        found = []
        for checkpoint_id in self._ids():
            try:
                found.append(self.load(checkpoint_id))
            except NotFound:
                continue  # deleted meanwhile
            except CheckpointDamaged as error:
                log.warning("Leaving out a checkpoint: %s", error)
        found.sort(key=lambda m: (m.checkpoint.created, m.checkpoint.id), reverse=True)
        return found

    def load(self, checkpoint_id: str) -> Manifest:
        return _noted(self._read(checkpoint_id)[1], self._notes(checkpoint_id))

    def _read(self, checkpoint_id: str) -> tuple[envelope.Envelope, Manifest]:
        # An id that is none could be a path.
        directory = self._directory(checkpoint_id) if is_id(checkpoint_id) else None
        if directory is None or not directory.exists():
            raise NotFound(f"There is no checkpoint {checkpoint_id}.")
        try:
            content = (directory / MANIFEST).read_bytes()
        except OSError as error:
            if not directory.exists():
                raise NotFound(f"There is no checkpoint {checkpoint_id}.") from error
            raise damaged(
                checkpoint_id, f"its manifest cannot be read: {error.strerror}"
            ) from error
        return envelope.decode(checkpoint_id, content, self._newest)

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
        with self._lock, explained(f"Checkpoint {checkpoint_id} could not be changed"):
            temporary = directory / (NOTES + ".tmp")
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            with open(os.open(temporary, flags, 0o600), "wb") as file:
                file.write(msgspec.json.encode(change(self._notes(checkpoint_id))))
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(directory / NOTES)
            sync_directory(directory)

    def clone(self, checkpoint_id: str, manifest: Manifest) -> None:
        source = self._directory(self.load(checkpoint_id).checkpoint.id)
        clone = manifest.checkpoint.id
        staging = DirectoryStaging(self, clone, self._claim(clone, 0))
        try:
            with explained(f"Checkpoint {checkpoint_id} could not be copied"):
                for record in manifest.files:
                    target = staging.images.parent / record.path
                    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    try:
                        os.link(source / record.path, target, follow_symlinks=False)
                    except FileNotFoundError as error:
                        raise damaged(checkpoint_id, f"{record.path}: is missing") from error
                    sync_directory(target.parent)
            staging.adopt(manifest.files)
            staging.commit(manifest)
        except BaseException:
            staging.abandon()
            raise

    def held(self, checkpoint_id: str) -> dict[tuple[int, int], int]:
        try:
            return {
                (info.st_dev, info.st_ino): info.st_blocks * 512
                for _, info in walk(self._directory(checkpoint_id))
            }
        except FileNotFoundError:
            return {}

    def images(self, checkpoint_id: str) -> Path:
        """Where the process images are; what tests look at and nobody else."""
        if not is_id(checkpoint_id):
            raise NotFound(f"There is no checkpoint {checkpoint_id}.")
        return self._directory(checkpoint_id) / IMAGES

    def pages(self, checkpoint_id: str) -> PagesDescription:
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

    def read_image(self, checkpoint_id: str, name: str) -> bytes:
        files = {record.path: record for record in self.load(checkpoint_id).files}
        record = files.get(f"{IMAGES}/{name}")
        if record is None:
            raise damaged(checkpoint_id, f"{name}: there is none")
        try:
            content = (self._directory(checkpoint_id) / record.path).read_bytes()
        except OSError as error:
            raise damaged(checkpoint_id, f"{name}: cannot be read: {error.strerror}") from error
        if blake3(content).hexdigest() != record.digest:
            raise damaged(checkpoint_id, f"{name}: its content is not what was saved")
        return content

    def materialise(
        self,
        checkpoint_id: str,
        directory: Path,
        progress: Progress | None = None,
        *,
        pages: bool = True,
        share: bool = True,
    ) -> None:
        report = self.verify(self.load(checkpoint_id), progress)
        if not report.ok:
            raise damaged(checkpoint_id, "; ".join(report.problems[:5]))
        images = self.images(checkpoint_id)
        with explained(f"Checkpoint {checkpoint_id} could not be made ready"):
            for path, _ in walk(images):
                if not pages and PAGES_FILE.fullmatch(path):
                    continue
                target = directory / path
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                if not share or not link(images / path, target):
                    shutil.copyfile(images / path, target, follow_symlinks=False)

    @contextmanager
    def materialised(
        self,
        checkpoint_id: str,
        progress: Progress | None = None,
        *,
        pages: bool = True,
        share: bool = True,
    ) -> Iterator[Path]:
        temporary = Path(tempfile.mkdtemp(prefix=_IMAGES, dir=self.root))
        try:
            (temporary / IMAGES).mkdir(mode=0o700)
            target = temporary / IMAGES
            self.materialise(checkpoint_id, target, progress, pages=pages, share=share)
            yield temporary / IMAGES
        finally:
            # What cannot be removed is left to the next collect().
            shutil.rmtree(temporary, ignore_errors=True)

    def verify(
        self, manifest: Manifest, progress: Progress | None = None, *, read_data: bool = True
    ) -> VerifyReport:
        checkpoint_id = manifest.checkpoint.id
        problems: list[str] = []
        read = 0
        try:
            if saved(self.load(checkpoint_id)) != saved(manifest):
                problems.append(f"{MANIFEST}: not the manifest that was asked about")
            found = dict(walk(self._directory(checkpoint_id)))
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
            elif read_data:
                to_read.append(expected[path])
        meter = Meter(sum(record.size for record in to_read), progress)
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
            doomed = Path(tempfile.mkdtemp(prefix=f"{_DELETING}{checkpoint_id}.", dir=self.root))
            try:
                self._directory(checkpoint_id).rename(doomed)
            except FileNotFoundError as error:
                doomed.rmdir()
                raise NotFound(f"There is no checkpoint {checkpoint_id}.") from error
            sync_directory(self.root)
            shutil.rmtree(doomed)
        except OSError as error:
            raise CheckpointsError(
                f"Checkpoint {checkpoint_id} could not be deleted.", reason=str(error)
            ) from error

    def collect(self) -> Sequence[str]:
        removed = set()
        for entry in list(os.scandir(self.root)):
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
            if entry.name.startswith(_IMAGES):
                shutil.rmtree(entry.path, ignore_errors=True)
        sync_directory(self.root)
        return sorted(removed)

    def tidy(self, grace: float = GRACE) -> None:
        """Nothing is shared here, and nothing is left."""

    def compress(self, age: float, stopped: Callable[[], bool] = lambda: False) -> int:
        """CRIU reads the files as they are."""
        return 0

    def repair(self) -> RepairReport:
        lost = {}
        for checkpoint_id in self._ids():
            try:
                report = self.verify(self.load(checkpoint_id), read_data=False)
                problems = report.problems
            except NotFound:
                continue
            except CheckpointsError as error:
                problems = [f"{MANIFEST}: {error.reason or error.message}"]
            if problems:
                lost[checkpoint_id] = problems
        return RepairReport(repaired=[], lost=lost)

    def close(self) -> None:
        """Nothing is held."""

    def _ids(self) -> Sequence[str]:
        return [entry.name for entry in os.scandir(self.root) if is_id(entry.name)]

    def _directory(self, checkpoint_id: str) -> Path:
        return self.root / checkpoint_id

    def _publish(self, staging: Path, checkpoint_id: str) -> None:
        """The commit itself: afterwards the checkpoint is there for good, or nothing changed."""
        final = self._directory(checkpoint_id)
        staging.rename(final)
        try:
            sync_directory(self.root)
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
        self._memory = Intake(directory / _MEMORY)
        self._sealed: list[FileRecord] = []

    @property
    def id(self) -> str:
        return self._id

    @property
    def images(self) -> Path:
        return self._directory / IMAGES

    @property
    def memory(self) -> Intake:
        return self._memory

    def inherited(self, space: str) -> Array:
        return np.empty((0, 2), np.int64)

    def seal(self, progress: Progress | None = None) -> list[FileRecord]:
        with explained(f"The files of checkpoint {self._id} could not be written"):
            for name, runs in self._taken().items():
                self._complete(name, runs)
            self._memory.close()
            self._memory.path.unlink(missing_ok=True)
            directories = [self.images]
            files = self._files(directories)
            for path, _ in files:
                (self._directory / path).chmod(0o600)
            for directory in directories:
                directory.chmod(0o700)
            # The disk is the slow part, so it starts at once and with the largest file;
            # hashing reads the same pages from memory meanwhile.
            files.sort(key=lambda file: -file[1])
            meter = Meter(sum(size for _, size in files), progress)
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
                sync_directory(directory)
        self._sealed = sorted(records, key=lambda record: record.path)
        return self._sealed

    def precopy(self, progress: Progress | None = None) -> bool:
        """Nothing is shared here, and a copy would be written once more."""
        self.abandon()
        return False

    def _taken(self) -> dict[str, Sequence[Run]]:
        """The pages files that CRIU did not write, as their pages were taken otherwise."""
        return {
            name: runs
            for name, runs in self._store.memory(self.images).items()
            if PAGES_FILE.fullmatch(name) and not (self.images / name).exists()
        }

    def _numbers(self, name: str, runs: Sequence[Run]) -> Array:
        """For each page of such a file its number in what was taken, or what is in its place.

        Raises
        ------
        SaveFailed
            If a page was not taken.
        """
        numbers = np.full(sum(run.pages for run in runs), ABSENT, np.int64)
        first = 0
        for space, together in groupby(runs, key=lambda run: run.space):
            found = self._memory.numbers(
                space, np.concatenate([np.arange(r.address, r.address + r.pages) for r in together])
            )
            numbers[first : first + len(found)] = found
            first += len(found)
        if missing := int((numbers == ABSENT).sum()):
            raise SaveFailed(
                "Not all memory of the kernel was taken.",
                reason=f"{name}: {missing} pages are missing.",
                hint="This is a defect of the engine; please report it.",
            )
        return numbers

    def _complete(self, name: str, runs: Sequence[Run]) -> None:
        """Write a pages file of pages that were taken otherwise."""
        numbers = self._numbers(name, runs)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(self.images / name, flags, 0o600), "wb") as file:
            file.truncate(len(numbers) * PAGE)
            cut = np.flatnonzero(np.diff(numbers) != 1) + 1
            for first, stop in pairwise([0, *cut.tolist(), len(numbers)]):
                if first < stop and numbers[first] >= 0:
                    copy_range(
                        *(self._memory.fd, int(numbers[first]) * PAGE),
                        *(file.fileno(), first * PAGE, (stop - first) * PAGE),
                    )

    def _files(self, directories: list[Path]) -> list[tuple[str, int]]:
        """Path and size of all images, which have to be plain files; adds to ``directories``."""
        files = []
        for path, info in walk(self.images, directories):
            path = f"{IMAGES}/{path}"
            if not stat.S_ISREG(info.st_mode) or not path.isprintable():
                raise SaveFailed(
                    f"The process images hold something that is no plain file: {path!r}.",
                    hint="This is a defect of the engine; please report it.",
                )
            files.append((path, info.st_size))
        return files

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
        with explained(f"Checkpoint {self._id} could not be committed"):
            path = self._directory / MANIFEST
            # Left there by a commit that failed.
            path.unlink(missing_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(self._encode(manifest))
                file.flush()
                os.fsync(fd)
            sync_directory(self._directory)
            self._store._publish(self._directory, self._id)

    def _encode(self, manifest: Manifest) -> bytes:
        return envelope.encode(manifest)

    def abandon(self) -> None:
        self._memory.close()
        try:
            _remove(self._directory)
        except OSError as error:
            # The next collect() tries again; whoever abandons has an error of his own to tell.
            log.warning("Could not remove %s: %s", self._directory, error)
        self._store._forget(self._id)


class Meter:
    """Counts bytes and tells of it. Used by one thread at a time."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done = 0
        self._total = total
        self._progress = progress

    def advance(self, count: int) -> None:
        """So many bytes more are done."""
        self.done = min(self._total, self.done + count)
        if self._progress:
            self._progress(self.done, self._total)

    def finish(self) -> None:
        """All is done."""
        if self.done < self._total:
            self.advance(self._total)


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


def saved(manifest: Manifest) -> Manifest:
    """Without what notes may change."""
    return _noted(manifest, Notes(name=""))


@contextmanager
def explained(what: str) -> Iterator[None]:
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


def walk(root: Path, directories: list[Path] | None = None) -> Iterator[tuple[str, os.stat_result]]:
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


def copy_range(source: int, start: int, target: int, offset: int, size: int) -> None:
    """Copy ``size`` bytes of a file into another."""
    while size:
        count = os.copy_file_range(source, target, size, start, offset)
        if count == 0:
            raise OSError(errno.EIO, "a file was cut short")
        start, offset, size = start + count, offset + count, size - count


def sync_directory(path: Path) -> None:
    with _opened(path) as fd:
        os.fsync(fd)


def link(source: Path, target: Path) -> bool:
    """A hard link, or ``False`` where that is another file system."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True


def _remove(directory: Path) -> None:
    if directory.exists():
        shutil.rmtree(directory)


def _free_bytes(path: Path) -> int:
    info = os.statvfs(path)
    return info.f_bavail * info.f_frsize


def _held_bytes(directory: Path) -> int:
    try:
        return sum(info.st_blocks * 512 for _, info in walk(directory))
    except FileNotFoundError:
        return 0  # it changes meanwhile; too careful is right


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
