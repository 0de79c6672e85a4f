"""The store that keeps each page once: checkpoints share what is the same in them.

::

    root/<id>/               a checkpoint, as in :mod:`.directory`, but for its images:
      manifest.json            version 2: with the digest of the page map
      pages.map                where each page of each image is
    packs/<id>.pack          pages of one or many checkpoints, see :mod:`.pack`
    packs/<id>.index         what is in it, once more
    packs/lock               who may change all this

A save writes what is new in it: pages that are neither zero nor as they were in its parent. A
pages file of which most is new becomes a pack as it lies there, written once, by CRIU; of others
what is new is copied, and the file is gone before it reaches the disk. Packs are on the disk before
the manifest is, so a crash leaves whole checkpoints and at most packs that no one needs.

A pre-copy is a page map that is kept in memory only, and packs that no checkpoint needs yet.

Checkpoints of the first store are read where they are, and stay as they are until they are deleted.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from blake3 import blake3

from ..errors import CheckpointsError, InsufficientResources, NotFound
from ..models import RepairReport, VerifyReport
from . import envelope
from .changes import CHUNK, Changes, Earlier, Region, find_changes, surplus
from .compression import compress
from .directory import (
    IMAGES,
    MANIFEST,
    NOTES,
    RESERVE,
    DirectoryStaging,
    DirectoryStore,
    Memory,
    Meter,
    explained,
    link,
    saved,
    sync_directory,
    walk,
)
from .intake import KEPT, Intake
from .lock import DirectoryLock
from .pack import (
    PAGE,
    Array,
    PackDamaged,
    PackWriter,
    Scratch,
    index_beside,
    index_path,
    opened,
    pack_path,
    read_table,
    write_index,
)
from .packed import PAGES_FILE, PackedPages, PackedSource
from .pagemap import ZERO, MappedFile, PageMap, Row, runs_of
from .references import References, punch
from .source import PagesDescription, damaged
from .store import GRACE, FileRecord, Manifest, Progress

log = logging.getLogger(__name__)

MAP = "pages.map"
#: Files smaller than this are stored together and compressed, and have a digest of their content.
_LARGE = 2**20
#: The share of a file that has to be new for it to become a pack as it is.
_ADOPTED = 0.25
#: So many new pages of a further save are compressed at once: it takes a few milliseconds.
_FEW = 1024


class PackStore(DirectoryStore):
    """Keeps images in packs. Made once by the agent; safe to use from many threads.

    Parameters
    ----------
    root, reserve, memory:
        As for :class:`~.directory.DirectoryStore`. What ``memory`` does not tell of is compared by
        its place in the file.
    packs:
        The directory of packs, on the same file system; made if missing.

    Raises
    ------
    Conflict
        If another process has the store.
    """

    has_precopies = True
    _newest = envelope.PACKED

    def __init__(
        self,
        root: Path,
        packs: Path,
        reserve: int = RESERVE,
        memory: Memory = lambda images: {},
    ) -> None:
        super().__init__(root, reserve, memory)
        self.packs = packs
        packs.mkdir(mode=0o700, parents=True, exist_ok=True)
        packs.chmod(0o700)
        self._owner = DirectoryLock(packs / "lock")
        #: Packs that are as small as they get, as far as is known.
        self._compressed: set[str] = set()
        self._precopies: dict[str, PageMap] = {}
        self.references = References(packs, self.map)
        for checkpoint_id in self._ids():
            self._count(checkpoint_id)
        self.references.strangers()

    def _count(self, checkpoint_id: str) -> None:
        try:
            if self._is_packed(checkpoint_id):
                self.references.add(checkpoint_id, self.map(checkpoint_id).packs)
        except NotFound:
            pass
        except CheckpointsError as error:
            log.warning("Nothing is given back while there is a damaged checkpoint: %s", error)
            self.references.add_unknown(checkpoint_id)

    def close(self) -> None:
        self._owner.close()

    def begin(self, checkpoint_id: str, needed: int, parent: str = "") -> PackStaging:
        directory = self._claim(checkpoint_id, needed)
        return PackStaging(self, checkpoint_id, directory, self._earlier(parent))

    def _earlier(self, parent: str) -> PageMap | None:
        """The map of a checkpoint or a pre-copy to build on, pinned."""
        pages = None
        try:
            if parent and self._has_map(parent):
                pages = self.map(parent)
                self.references.pin(pages.packs)
                # If it is gone meanwhile its packs may be so too.
                self._has_map(parent)
        except CheckpointsError as error:
            log.info("Saving without a parent: %s", error)
            if pages is not None:
                self.references.unpin(pages.packs)
            return None
        return pages

    def _has_map(self, parent: str) -> bool:
        return parent in self._precopies or self._is_packed(parent)

    def _keep(self, precopy_id: str, pages: PageMap) -> None:
        self._precopies[precopy_id] = pages
        self.references.add(precopy_id, pages.packs)

    def forget(self, precopy_id: str) -> None:
        if precopy_id in self._precopies:
            # As long as it needs a pack its map may be asked for.
            self.references.remove(precopy_id)
            self._precopies.pop(precopy_id, None)

    def _check_space(self, needed: int) -> None:
        try:
            super()._check_space(needed)
        except InsufficientResources:
            for precopy_id in list(self._precopies):
                self.forget(precopy_id)
            self.tidy(0)
            super()._check_space(needed)

    # -- reading -------------------------------------------------------------------------------

    def _is_packed(self, checkpoint_id: str) -> bool:
        return self._read(checkpoint_id)[0].version == envelope.PACKED

    def map(self, checkpoint_id: str) -> PageMap:
        """The page map of a pre-copy, or of a checkpoint in packs. Errors as :meth:`load`."""
        precopied = self._precopies.get(checkpoint_id)
        if precopied is not None:
            return precopied
        with self._described(checkpoint_id).open() as source:
            return source.map

    def _described(self, checkpoint_id: str) -> PackedPages:
        return PackedPages(
            checkpoint=checkpoint_id,
            map=str(self._directory(checkpoint_id) / MAP),
            digest=self._read(checkpoint_id)[0].map,
            packs=str(self.packs),
        )

    def pages(self, checkpoint_id: str) -> PagesDescription:
        if not self._is_packed(checkpoint_id):
            return super().pages(checkpoint_id)
        return self._described(checkpoint_id)

    def read_image(self, checkpoint_id: str, name: str) -> bytes:
        if not self._is_packed(checkpoint_id):
            return super().read_image(checkpoint_id, name)
        with self._described(checkpoint_id).open() as source:
            if source.map.row.file(name) is None:
                raise damaged(checkpoint_id, f"{name}: there is none")
            return source.content(name)

    def materialise(
        self,
        checkpoint_id: str,
        directory: Path,
        progress: Progress | None = None,
        *,
        pages: bool = True,
        share: bool = True,
    ) -> None:
        if not self._is_packed(checkpoint_id):
            super().materialise(checkpoint_id, directory, progress, pages=pages, share=share)
            return
        with (
            self._described(checkpoint_id).open() as source,
            explained(f"Checkpoint {checkpoint_id} could not be made ready"),
        ):
            files = [file for file in source if pages or not PAGES_FILE.fullmatch(file.name)]
            meter = Meter(sum(file.size for file in files), progress)
            for file in files:
                target = directory / file.name
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                try:
                    if not share or not self._link(source, file, target, meter):
                        _write(source, file, target, meter)
                except PackDamaged as error:
                    raise damaged(checkpoint_id, f"{file.name}: {error}") from error

    def _link(self, source: PackedSource, file: MappedFile, target: Path, meter: Meter) -> bool:
        """Whether a pack is the file, and was linked, after all of it was verified."""
        if file.size < _LARGE or file.size % PAGE:
            return False
        pack = source.plain_pack(file)
        if pack is None or not link(pack_path(self.packs, pack.id), target):
            return False
        with opened(target) as fd:
            if not pack.is_in(fd):
                # It was compressed meanwhile: its file is not the one that was looked at.
                target.unlink()
                return False
            for start, count, owner, _ in source.map.between(file.first, file.first + file.pages):
                if owner == ZERO and not _is_zero(fd, start - file.first, count):
                    target.unlink()
                    return False
        source.each_piece(file, lambda offset, content: None, meter.advance)
        return True

    def verify(
        self, manifest: Manifest, progress: Progress | None = None, *, read_data: bool = True
    ) -> VerifyReport:
        checkpoint_id = manifest.checkpoint.id
        problems: list[str] = []
        read = 0
        try:
            if not self._is_packed(checkpoint_id):
                return super().verify(manifest, progress, read_data=read_data)
            if saved(self.load(checkpoint_id)) != saved(manifest):
                problems.append(f"{MANIFEST}: not the manifest that was asked about")
            found = {path for path, _ in walk(self._directory(checkpoint_id))}
            extra = found - {MANIFEST, NOTES, NOTES + ".tmp", MAP}
            problems += [f"{path}: does not belong here" for path in sorted(extra)]
            with self._described(checkpoint_id).open() as source:
                meter = Meter(sum(file.size for file in source) if read_data else 0, progress)
                records = {record.path: record for record in manifest.files}
                for file in source:
                    path = f"{IMAGES}/{file.name}"
                    problem = self._problem(source, file, records.pop(path, None), meter, read_data)
                    if problem:
                        problems.append(f"{path}: {problem}")
                problems += [f"{path}: is missing" for path in sorted(records)]
                read = meter.done
        except OSError as error:
            problems.append(f"cannot be listed: {error.strerror}")
        except CheckpointsError as error:
            problems.append(f"{MANIFEST}: {error.reason or error.message}")
        return VerifyReport(id=checkpoint_id, ok=not problems, problems=problems, bytes_read=read)

    @staticmethod
    def _problem(
        source: PackedSource,
        file: MappedFile,
        record: FileRecord | None,
        meter: Meter,
        read_data: bool,
    ) -> str:
        if record is None:
            return "does not belong here"
        try:
            source.check(file)
            if not read_data:
                return ""
            if record.digest == source.map.digest(file):
                source.each_piece(file, lambda offset, content: None, meter.advance)
                return ""
            content = source.content(file.name)
            meter.advance(len(content))
            if blake3(content).hexdigest() != record.digest:
                return "its content is not what was saved"
        except PackDamaged as error:
            return str(error)
        except CheckpointsError as error:
            return error.reason
        return ""

    def held(self, checkpoint_id: str) -> dict[tuple[int, int], int]:
        held = super().held(checkpoint_id)
        for pack in self.references.of(checkpoint_id):
            for path in (pack_path(self.packs, pack), index_path(self.packs, pack)):
                try:
                    info = path.stat()
                except FileNotFoundError:
                    continue
                held[info.st_dev, info.st_ino] = info.st_blocks * 512
        return held

    # -- changing ------------------------------------------------------------------------------

    def clone(self, checkpoint_id: str, manifest: Manifest) -> None:
        if not self._is_packed(checkpoint_id):
            super().clone(checkpoint_id, manifest)
            return
        report = self.verify(self.load(checkpoint_id), read_data=False)
        if not report.ok:
            raise damaged(checkpoint_id, "; ".join(report.problems[:5]))
        staging = self.begin(manifest.checkpoint.id, 0, checkpoint_id)
        try:
            staging.adopt_map(manifest.files)
            staging.commit(manifest)
        except BaseException:
            staging.abandon()
            raise

    def delete(self, checkpoint_id: str) -> None:
        super().delete(checkpoint_id)
        self.references.remove(checkpoint_id)

    def collect(self) -> Sequence[str]:
        removed = super().collect()
        # Nobody reads what an earlier agent has left of unfinished saves.
        self.references.give_back(0)
        for path in list(self.packs.iterdir()):
            stray = path.suffix == ".index" and not path.with_suffix(".pack").exists()
            if path.suffix == ".tmp" or stray:
                path.unlink(missing_ok=True)
        return removed

    def tidy(self, grace: float = GRACE) -> None:
        self.references.give_back(grace)

    def compress(self, age: float, stopped: Callable[[], bool] = lambda: False) -> int:
        gained = 0
        for pack in self.references.at_rest():
            if pack in self._compressed:
                continue
            path = pack_path(self.packs, pack)
            self.references.pin([pack])
            try:
                info = path.stat()
                # Linked: a restore reads it as the file of pages that it was.
                if info.st_nlink == 1 and time.time() - info.st_mtime >= age:
                    super()._check_space(info.st_blocks * 512)
                    gained += compress(self.packs, pack, self.references.unused, stopped)
                    if not stopped():
                        self._compressed.add(pack)
            except (OSError, PackDamaged, CheckpointsError) as error:
                log.warning("Pack %s is not compressed: %s", pack, error)
            finally:
                self.references.unpin([pack])
            if stopped():
                break
        return gained

    def repair(self) -> RepairReport:
        repaired = []
        for path in sorted(self.packs.glob("*.pack")):
            try:
                if done := _repair_tables(self.packs, path.stem):
                    repaired.append(f"pack {path.stem}: {done}")
            except (OSError, PackDamaged) as error:
                log.warning("Pack %s cannot be repaired: %s", path.stem, error)
        return RepairReport(repaired=repaired, lost=super().repair().lost)


class PackStaging(DirectoryStaging):
    """A checkpoint in the making of a :class:`PackStore`, which alone makes these."""

    def __init__(
        self, store: PackStore, checkpoint_id: str, directory: Path, earlier: PageMap | None
    ) -> None:
        super().__init__(store, checkpoint_id, directory)
        self._packs = store
        self.earlier = earlier
        self._before: _Before | None = None
        if earlier is not None:
            self._before = _Before(store.packs, earlier)
            self._memory = Intake(self._memory.path, self._before.unchanged)
        self.map = PageMap.of(Row.of([], {}), [], np.empty(0, np.uint32), np.empty(0, np.uint64))
        self._pinned = list(earlier.packs) if earlier else []
        #: Finished packs that are not in the directory of packs yet, by id.
        self._finished: dict[str, Path] = {}

    def inherited(self, space: str) -> Array:
        if self.earlier is None:
            return super().inherited(space)
        return self.earlier.addresses(space, surplus(self.earlier))

    def seal(self, progress: Progress | None = None) -> list[FileRecord]:
        with explained(f"The files of checkpoint {self._id} could not be written"):
            prefix = len(IMAGES) + 1
            found = sorted((path[prefix:], size) for path, size in self._files([]))
            small = [(name, size) for name, size in found if size < _LARGE]
            large = [(name, size) for name, size in found if size >= _LARGE]
            taken = self._taken()
            made = [(n, PAGE * sum(run.pages for run in runs)) for n, runs in taken.items()]
            meter = Meter(sum(size for _, size in found) + self._memory.pages * PAGE, progress)
            row = Row.of([*made, *small, *large], self._packs.memory(self.images))
            content, digests = _read_small(
                self.images, row.files[len(made) : len(made) + len(small)]
            )
            numbers = [self._numbers(name, runs) for name, runs in taken.items()]
            with ExitStack() as stack:
                fds = []
                for name, _ in large:
                    fds.append(stack.enter_context(opened(self.images / name)))
                self.map = self._pack(
                    stack, row, np.concatenate([_NO_PAGES, *numbers]), content, fds, meter
                )
            self._memory.close()
            self._memory.path.unlink(missing_ok=True)
            shutil.rmtree(self.images)
            meter.finish()
        self._sealed = sorted(
            (
                FileRecord(
                    path=f"{IMAGES}/{file.name}",
                    size=file.size,
                    digest=digests.get(file.name) or self.map.digest(file),
                )
                for file in row.files
            ),
            key=lambda record: record.path,
        )
        return self._sealed

    def precopy(self, progress: Progress | None = None) -> bool:
        taken = self._memory.addresses()
        if not taken:
            self.abandon()
            return False
        with explained("What was copied ahead of a save could not be written"):
            # What is not memory is as it was in the checkpoint before.
            before = () if self.earlier is None else self.earlier.row.without_runs()
            row = Row.of(
                [*((space, len(at) * PAGE) for space, at in taken.items()), *before],
                {space: runs_of(space, at) for space, at in taken.items()},
            )
            numbers = [self._memory.numbers(space, at) for space, at in taken.items()]
            known = sum(map(len, numbers))
            numbers.append(np.full(row.length - known, KEPT, np.int64))
            meter = Meter(self._memory.pages * PAGE, progress)
            with ExitStack() as stack:
                self.map = self._pack(
                    stack, row, np.concatenate(numbers), memoryview(b""), [], meter
                )
            meter.finish()
            self._land()
        self._packs._keep(self._id, self.map)
        self.abandon()
        return True

    def _pack(
        self,
        stack: ExitStack,
        row: Row,
        numbers: Array,
        content: memoryview,
        fds: list[int],
        meter: Meter,
    ) -> PageMap:
        """Make packs of what is new.

        The row begins with pages that were taken, of which ``numbers`` says which they are; their
        file is looked at as if it came behind the row.
        """
        taken = len(numbers)
        small_pages = len(content) // PAGE
        large = row.files[len(row.files) - len(fds) :]
        paths = [self.images / file.name for file in large]
        stored = numbers >= 0
        unwanted = None
        length = row.length
        counterparts = None if self.earlier is None else row.counterparts(self.earlier.row)
        if stored.any():
            file = MappedFile("", self._memory.pages * PAGE, row.length)
            large, paths = [*large, file], [*paths, self._memory.path]
            fds = [*fds, self._memory.fd]
            length += file.pages
            where = row.length + numbers[stored]
            unwanted = np.zeros(length, bool)
            unwanted[row.length :] = True
            unwanted[where] = False
            if counterparts is not None:
                counterparts = np.concatenate([counterparts, np.full(file.pages, -1, np.int64)])
                counterparts[where] = counterparts[:taken][stored]
        earlier = None
        if self._before is not None:
            earlier = stack.enter_context(self._before.pages)
        # Files of which nothing is known before are on their way to the disk while they are hashed.
        disk = stack.enter_context(ThreadPoolExecutor(2, thread_name_prefix="writeback"))
        flushed: list[Future[None]] = [
            disk.submit(os.fsync, fd)
            for file, fd in zip(large, fds, strict=True)
            if counterparts is None
            or not (counterparts[file.first : file.first + file.pages] >= 0).any()
        ]
        regions = [Region(taken, small_pages, content)] + [
            Region(file.first, file.pages, fd) for file, fd in zip(large, fds, strict=True)
        ]
        changes = find_changes(length, regions, earlier, counterparts, meter.advance, unwanted)
        for one in flushed:
            one.result()
        packs = [] if self.earlier is None else list(self.earlier.packs)
        pack = np.full(length, ZERO, np.uint32)
        number = np.zeros(length, np.uint64)
        if earlier is not None and counterparts is not None:
            same = changes.same
            same[:taken] = numbers == KEPT
            before = counterparts[same]
            assert (before >= 0).all(), "only what is inherited may be kept"
            pack[same], number[same] = earlier.pack[before], earlier.number[before]
        new = ~(changes.zero | changes.same)
        new[:taken] = False
        writers = self._write(
            *(stack, changes, new, range(taken, taken + small_pages)),
            *(content, large, paths, fds),
        )
        for place, (_, pages, their) in enumerate(writers):
            pack[pages], number[pages] = len(packs) + place, their
        finished = list(disk.map(lambda part: part[0].finish(), writers))
        for (writer, _, _), pack_id in zip(writers, finished, strict=True):
            self._finished[pack_id] = writer.path
        if stored.any():
            rows = np.flatnonzero(stored)
            pack[rows], number[rows] = pack[where], number[where]
        return PageMap.of(row, packs + finished, pack[: row.length], number[: row.length])

    def _write(
        self,
        stack: ExitStack,
        changes: Changes,
        new: Array,
        small: range,
        content: memoryview,
        large: Sequence[MappedFile],
        paths: Sequence[Path],
        fds: Sequence[int],
    ) -> list[tuple[PackWriter, Array, Array]]:
        """The packs of all that is new: each with the pages of the row in it and their numbers."""
        few = 0 if self.earlier is None else _FEW
        parts: list[tuple[PackWriter, list[Array], list[Array]]] = []
        copied: list[tuple[MappedFile, int]] = []
        for file, source, fd in zip(large, paths, fds, strict=True):
            mine = new[file.first : file.first + file.pages]
            if file.size % PAGE or mine.sum() <= few or mine.sum() < _ADOPTED * file.pages:
                copied.append((file, fd))
                continue
            path = self._directory / f"new-{len(parts)}.pack"
            source.rename(path)
            writer = PackWriter(path, file.pages)
            stack.callback(writer.close)
            low, high = np.searchsorted(changes.starts, [file.first, file.first + file.pages])
            starts = (changes.starts[low:high] - file.first).astype(np.uint64)
            writer.adopt(
                starts, changes.pages[low:high].astype(np.uint32), _hashes(changes, low, high)
            )
            old = np.flatnonzero(~mine) * PAGE
            punch(writer.fd, old, old + PAGE)
            pages = np.flatnonzero(mine)
            parts.append((writer, [pages + file.first], [pages.astype(np.uint64)]))
        if not parts:
            writer = PackWriter(self._directory / "new-0.pack")
            stack.callback(writer.close)
            parts.append((writer, [], []))
        # The rest goes into the first of them.
        writer, all_pages, all_numbers = parts[0]
        for file, fd in copied:
            low, high = np.searchsorted(changes.starts, [file.first, file.first + file.pages])
            if low == high:
                continue
            starts, pages = changes.starts[low:high] - file.first, changes.pages[low:high]
            rows = np.flatnonzero(new[file.first : file.first + file.pages]) + file.first
            if len(rows) <= few:
                first = writer.next_page
                all_of_it = memoryview(b"".join(bytes(run) for run in _runs(fd, starts, pages)))
                ends = np.cumsum(pages) * PAGE
                for at, end in enumerate(ends.tolist(), low):
                    size = int(pages[at - low]) * PAGE
                    extent = all_of_it[end - size : end]
                    writer.append_compressed(extent, _hashes(changes, at, at + 1))
            else:
                first = writer.append(
                    _runs(fd, starts, pages), pages.astype(np.uint32), _hashes(changes, low, high)
                )
            all_pages.append(rows)
            all_numbers.append(np.uint64(first) + np.arange(len(rows), dtype=np.uint64))
        for at in range(*np.searchsorted(changes.starts, [small.start, small.stop]).tolist()):
            start, count = int(changes.starts[at]), int(changes.pages[at])
            within = (start - small.start) * PAGE
            first = writer.append_compressed(
                content[within : within + count * PAGE], _hashes(changes, at, at + 1)
            )
            all_pages.append(np.arange(start, start + count))
            all_numbers.append(np.uint64(first) + np.arange(count, dtype=np.uint64))
        if not all_pages:
            writer.path.unlink()
        return [
            (writer, np.concatenate(pages), np.concatenate(numbers))
            for writer, pages, numbers in parts
            if pages
        ]

    def adopt_map(self, files: list[FileRecord]) -> None:
        """Become a copy of the checkpoint this one was begun with.

        Raises
        ------
        CheckpointDamaged
            If that is gone, or its map cannot be read.
        """
        if self.earlier is None:
            raise damaged(self._id, f"{MAP} of its source cannot be read")
        self.map = self.earlier
        self.adopt(files)

    def commit(self, manifest: Manifest) -> None:
        with explained(f"Checkpoint {self._id} could not be committed"):
            encoded = self.map.encode()
            self._map_digest = blake3(encoded).hexdigest()
            with open(os.open(self._directory / MAP, _NEW, 0o600), "wb") as file:
                file.write(encoded)
                file.flush()
                os.fsync(file.fileno())
            self._land()
            shutil.rmtree(self.images, ignore_errors=True)
        super().commit(manifest)
        self._packs.references.add(self._id, self.map.packs)
        self._unpin()

    def _land(self) -> None:
        """Put the new packs where packs are; nobody gives them back before they are needed."""
        self._packs.references.pin(self._finished)
        self._pinned += self._finished
        for pack_id, path in self._finished.items():
            path.rename(pack_path(self._packs.packs, pack_id))
            index_beside(path).rename(index_path(self._packs.packs, pack_id))
        if self._finished:
            sync_directory(self._packs.packs)
        self._finished = {}

    def _encode(self, manifest: Manifest) -> bytes:
        return envelope.encode(manifest, self._map_digest)

    def abandon(self) -> None:
        super().abandon()
        if self._before is not None:
            self._before.pages.close()
        self._unpin()
        self._packs.references.strangers()

    def _unpin(self) -> None:
        self._packs.references.unpin(self._pinned)
        self._pinned = []


class _Before:
    """The memory that a checkpoint in the making is compared with while it comes in."""

    def __init__(self, packs: Path, earlier: PageMap) -> None:
        self.pages = Earlier(packs, earlier)
        self._local = threading.local()

    def unchanged(self, space: str, addresses: Array, content: Array) -> Array:
        """See :data:`~.intake.Comparison`."""
        found = np.zeros(len(addresses), bool)
        rows = self.pages.map.row.at(space, addresses)
        if not hasattr(self._local, "scratch"):
            self._local.scratch = Scratch()
        for first in range(0, len(addresses), CHUNK):
            part = slice(first, first + CHUNK)
            if (rows[part] >= 0).any():
                found[part] = self.pages.same(rows[part], content[part], self._local.scratch)
        return found


_NO_PAGES = np.empty(0, np.int64)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


def _read_small(images: Path, files: Iterable[MappedFile]) -> tuple[memoryview, dict[str, str]]:
    """Content of files, each filled up to whole pages, and BLAKE3 in hex of each."""
    content, digests = bytearray(), {}
    for file in files:
        with opened(images / file.name) as fd:
            read = os.pread(fd, file.size, 0)
        if len(read) != file.size:
            raise OSError(errno.EIO, f"{file.name} was cut short")
        digests[file.name] = blake3(read).hexdigest()
        content += read
        content += bytes(file.pages * PAGE - file.size)
    return memoryview(content), digests


def _runs(fd: int, starts: Array, pages: Array) -> Iterator[memoryview]:
    """The content of extents of a file, a few megabytes at a time."""
    joined = np.ones(len(starts), bool)
    joined[1:] = starts[1:] != starts[:-1] + pages[:-1]
    first = np.flatnonzero(joined)
    last = np.append(first[1:], len(starts)) - 1
    buffer = memoryview(bytearray(4 * 2**20))
    filled = 0
    for begin, end in zip(
        starts[first].tolist(), (starts[last] + pages[last]).tolist(), strict=True
    ):
        at, stop = begin * PAGE, end * PAGE
        while at < stop:
            piece = buffer[filled : filled + stop - at]
            count = os.preadv(fd, [piece], at)
            if count == 0:
                # The last page of a file may not be a whole one.
                piece[:] = bytes(len(piece))
                count = len(piece)
            at += count
            filled += count
            if filled == len(buffer):
                yield buffer
                filled = 0
    yield buffer[:filled]


def _hashes(changes: Changes, low: int, high: int) -> bytes:
    return changes.hashes[low * 32 : high * 32]


def _is_zero(fd: int, first: int, count: int) -> bool:
    """Whether some pages of a file are zero; quick where there is a hole."""
    at, stop = first * PAGE, (first + count) * PAGE
    while at < stop:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            return True
        at = max(at, data)
        piece = os.pread(fd, max(0, min(stop - at, 2**20)), at)
        if piece.count(0) != len(piece):
            return False
        at += len(piece) or stop
    return True


def _write(source: PackedSource, file: MappedFile, target: Path, meter: Meter) -> None:
    fd = os.open(target, _NEW | os.O_EXCL, 0o600)
    try:

        def write(offset: int, content: memoryview) -> None:
            while content:
                count = os.pwrite(fd, content, offset)
                offset += count
                content = content[count:]

        os.ftruncate(fd, file.size)
        source.each_piece(file, write, meter.advance)
    finally:
        os.close(fd)


def _repair_tables(packs: Path, pack_id: str) -> str:
    """Make one of a pack's two tables from the other; what was done, if anything.

    Raises
    ------
    PackDamaged, OSError
        If neither is right, or it cannot be written.
    """
    pack, index = pack_path(packs, pack_id), index_path(packs, pack_id)
    table = {}
    for path in (index, pack):
        try:
            with opened(path) as fd:
                table[path] = read_table(fd, pack_id)
        except FileNotFoundError:
            pass
        except PackDamaged as error:
            problem = error
    if not table:
        raise problem
    if index not in table:
        write_index(index, table[pack].encode())
        return "its index was made again"
    if pack in table and table[pack].encode() != table[index].encode():
        # The pack was compressed, and then there was no time for its index.
        write_index(index, table[pack].encode())
        return "its index was made again"
    if pack not in table:
        encoded = table[index].encode()
        where = table[index].where
        end = int((where["offset"] + where["stored"]).max()) if len(where) else 0
        if pack.stat().st_size >= end:
            with open(os.open(pack, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "wb") as file:
                file.seek(max(end, pack.stat().st_size - len(encoded)))
                file.write(encoded)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
            return "its table was made again"
    return ""
