"""Reading the images of a checkpoint whose pages are in packs."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from blake3 import blake3

from .content import Advance
from .pack import PAGE, Array, Pack, PackDamaged, Scratch
from .pagemap import ZERO, MappedFile, PageMap
from .source import PagesDescription, PageSource, damaged

#: The files that hold memory, among those that CRIU writes.
PAGES_FILE = re.compile(r"pages-[0-9]+\.img")
#: Pages that are read in one go where a whole file is read.
_CHUNK = 1024
#: Pieces that are read one by one.
_FEW = 3
_THREADS = max(2, min(4, os.cpu_count() or 1))


class PackedPages(PagesDescription, frozen=True, kw_only=True, tag="packed"):
    """A page map and the directory of the packs it names."""

    checkpoint: str
    map: str
    digest: str
    packs: str

    def open(self) -> PackedSource:
        return PackedSource(self)


def read_map(checkpoint_id: str, path: Path, digest: str) -> PageMap:
    """The page map in a file.

    Raises
    ------
    CheckpointDamaged
        If it is not the one with that digest.
    """
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise damaged(checkpoint_id, f"{path.name}: cannot be read: {error.strerror}") from error
    if blake3(encoded).hexdigest() != digest:
        raise damaged(checkpoint_id, f"{path.name}: is not what was saved")
    try:
        return PageMap.decode(encoded)
    except ValueError as error:
        raise damaged(checkpoint_id, f"{path.name}: makes no sense: {error}") from error


class PackedSource(PageSource):
    """Made by :meth:`PackedPages.open`. Each extent is verified whenever it is read."""

    def __init__(self, description: PackedPages) -> None:
        self._id = description.checkpoint
        self._directory = Path(description.packs)
        self.map = read_map(self._id, Path(description.map), description.digest)
        self._images = {file.name: file for file in self.map.row.files}
        self._packs: dict[str, Pack] = {}
        self._lock = threading.Lock()

    def files(self) -> dict[str, int]:
        return {n: file.size for n, file in self._images.items() if PAGES_FILE.fullmatch(n)}

    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        file = self._images.get(name)
        size = file.size if file else 0
        if file is None or not 0 <= offset <= offset + len(buffer) <= size:
            raise ValueError(f"{name} has {size} bytes")
        if not buffer:
            return
        first, skipped = divmod(offset, PAGE)
        stop = -(-(offset + len(buffer)) // PAGE)
        try:
            if skipped or len(buffer) % PAGE:
                pages = memoryview(bytearray((stop - first) * PAGE))
                self.read_pages(file.first + first, pages)
                buffer[:] = pages[skipped : skipped + len(buffer)]
            else:
                self.read_pages(file.first + first, buffer)
        except PackDamaged as error:
            raise damaged(self._id, f"{name}: {error}") from error

    def read_pages(self, first: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from a page of the map's row on.

        Raises
        ------
        PackDamaged
            If a page is missing or is not what was saved.
        """
        pieces = list(self.map.between(first, first + len(buffer) // PAGE))
        stored = 0
        for start, pages, pack, number in pieces:
            piece = buffer[(start - first) * PAGE : (start - first + pages) * PAGE]
            if pack == ZERO:
                piece[:] = bytes(len(piece))
            elif len(pieces) <= _FEW:
                self.pack(self.map.packs[pack]).read(number, piece)
            else:
                stored += pages
        if stored:
            self._gather(np.array(pieces), first, buffer)

    def _gather(self, pieces: Array, first: int, buffer: memoryview) -> None:
        """Read many small pieces, all of one pack at once, so that no extent is read twice."""
        scratch = Scratch()
        out = np.frombuffer(buffer, np.uint8).reshape(-1, PAGE)
        for pack in np.unique(pieces[:, 2]).tolist():
            if pack == ZERO:
                continue
            starts, pages, _, numbers = pieces[pieces[:, 2] == pack].T
            within = np.arange(pages.sum()) - np.repeat(np.cumsum(pages) - pages, pages)
            fetched = self.pack(self.map.packs[pack]).fetch(
                (np.repeat(numbers, pages) + within).astype(np.uint64), scratch
            )
            fetched.require_intact()
            out[np.repeat(starts, pages) + within - first] = fetched.pages()

    def pack(self, pack_id: str) -> Pack:
        """An open pack; ``PackDamaged`` if it cannot be opened."""
        with self._lock:
            if pack_id not in self._packs:
                self._packs[pack_id] = Pack(self._directory, pack_id)
            return self._packs[pack_id]

    def content(self, name: str) -> bytes:
        """All of one image; the caller knows that it is small. Errors as :meth:`read_into`."""
        return bytes(self.read(name, 0, self._images[name].size))

    def each_piece(
        self, file: MappedFile, take: Callable[[int, memoryview], None], advance: Advance
    ) -> None:
        """Call ``take`` with (offset, content) of all of a file that is not zero, in any order.

        By several threads at once; what it gets is good until it returns.

        Raises
        ------
        PackDamaged
            If something is missing or is not what was saved.
        """
        local = threading.local()

        def read(piece: tuple[int, int]) -> int:
            if not hasattr(local, "buffer"):
                local.buffer = memoryview(bytearray(_CHUNK * PAGE))
            start, stop = piece
            content = local.buffer[: (stop - start) * PAGE]
            self.read_pages(start, content)
            for at, end in self.map.stored(start, stop):
                offset = (at - file.first) * PAGE
                part = content[(at - start) * PAGE : (end - start) * PAGE]
                take(offset, part[: file.size - offset])
            return (min(file.size, (stop - file.first) * PAGE)) - (start - file.first) * PAGE

        pieces = [
            (at, min(at + _CHUNK, file.first + file.pages))
            for at in range(file.first, file.first + file.pages, _CHUNK)
        ]
        if len(pieces) == 1:
            advance(read(pieces[0]))
            return
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="pages") as pool:
            futures = [pool.submit(read, piece) for piece in pieces]
            try:
                for future in futures:
                    advance(future.result())
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def check(self, file: MappedFile) -> None:
        """Whether all of a file's pages are where they have to be, without reading them.

        Raises
        ------
        PackDamaged
            If not.
        """
        for _, pages, pack, number in self.map.between(file.first, file.first + file.pages):
            if pack != ZERO:
                opened = self.pack(self.map.packs[pack])
                opened.extents(number, number + pages)
                if not opened.complete():
                    raise PackDamaged(f"pack {opened.id}: was cut short")

    def plain_pack(self, file: MappedFile) -> Pack | None:
        """The pack whose file begins with this very file, if there is one."""
        found: Pack | None = None
        for start, pages, pack, number in self.map.between(file.first, file.first + file.pages):
            if pack == ZERO:
                continue
            opened = self.pack(self.map.packs[pack])
            if number != start - file.first or found not in (None, opened):
                return None
            if not opened.plain(*opened.extents(number, number + pages)):
                return None
            found = opened
        return found

    def close(self) -> None:
        while self._packs:
            self._packs.popitem()[1].close()

    def __iter__(self) -> Iterator[MappedFile]:
        return iter(self.map.row.files)
