"""Memory that was not written by CRIU, in either store."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_checkpoints.errors import NotFound, SaveFailed
from jupyter_checkpoints.store.directory import DirectoryStore
from jupyter_checkpoints.store.pack import PAGE
from jupyter_checkpoints.store.packs import PackStore
from jupyter_checkpoints.store.pagemap import Run
from jupyter_checkpoints.store.store import Staging, Store

from .saving import files_of, flip, manifest_of, packs_of, place_of, write_files

SPACE = "pagemap-1"
#: Pages by address: what a process has.
Pages = dict[int, bytes]


class Saved:
    """A store that is told whose memory is in which pages file."""

    def __init__(self, root: Path, kind: str) -> None:
        self.root = root
        self.layout: dict[str, Sequence[Run]] = {}
        self.store: Store
        if kind == "packs":
            self.store = PackStore(root, packs_of(root), memory=self._memory)
        else:
            self.store = DirectoryStore(root, memory=self._memory)

    def _memory(self, images: Path) -> Mapping[str, Sequence[Run]]:
        return self.layout

    def begin(self, name: str, pages: Pages, parent: str = "") -> Staging:
        self.layout = {"pages-1.img": [Run(SPACE, address, 1) for address in sorted(pages)]}
        staging = self.store.begin(name, 0, parent)
        write_files(staging.images, {"core-1.img": name.encode()})
        return staging

    def commit(self, staging: Staging) -> None:
        staging.commit(manifest_of(staging.id, staging.seal()))

    def require(self, name: str, pages: Pages) -> None:
        content = b"".join(pages[address] for address in sorted(pages))
        assert files_of(self.store, name) == {"core-1.img": name.encode(), "pages-1.img": content}
        assert self.store.verify(self.store.load(name)).ok


@pytest.fixture(params=["packs", "directory"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Saved]:
    made = Saved(tmp_path / "store", request.param)
    yield made
    made.store.close()


def write(staging: Staging, pages: Pages, *, compare: bool = False) -> None:
    for address, content in pages.items():
        rows = np.frombuffer(content, np.uint8).reshape(-1, PAGE)
        where = np.array([[address, address + len(rows)]])
        staging.memory.write(SPACE, where, rows, compare=compare)


def page(chance: random.Random) -> bytes:
    return chance.choice([bytes(PAGE), chance.randbytes(PAGE)])


def test_what_was_taken_last_counts(saved: Saved) -> None:
    chance = random.Random(1)
    pages = {address: page(chance) for address in range(100, 1000)}
    staging = saved.begin("c1", pages)
    write(staging, {100: b"".join(pages.values())})
    for address in chance.sample(range(100, 1000), 50):
        write(staging, {address: page(chance)})
        pages[address] = page(chance)
        write(staging, {address: pages[address]})
    write(staging, {5000: chance.randbytes(20 * PAGE)})  # gone before the end
    saved.commit(staging)
    saved.require("c1", pages)


def test_what_was_not_taken_fails_the_save(saved: Saved) -> None:
    pages = {address: bytes([1]) * PAGE for address in range(10, 20)}
    staging = saved.begin("c1", pages)
    write(staging, {address: pages[address] for address in range(10, 19)})
    with pytest.raises(SaveFailed, match="1 pages are missing"):
        staging.seal()
    staging.abandon()
    assert not saved.store.list()
    assert [path.name for path in Path(saved.store.root).iterdir()] == []  # type: ignore[attr-defined]


def test_only_the_parent_s_pages_can_be_kept(saved: Saved) -> None:
    pages = {address: bytes([1]) * PAGE for address in (5, 6, 7, 10)}
    staging = saved.begin("c1", pages)
    assert staging.inherited(SPACE).tolist() == []
    write(staging, pages)
    saved.commit(staging)
    staging = saved.begin("c2", pages, parent="c1")
    packed = isinstance(saved.store, PackStore)
    assert staging.inherited(SPACE).tolist() == ([[5, 8], [10, 11]] if packed else [])
    assert staging.inherited("pagemap-2").tolist() == []
    staging.abandon()


def test_what_is_as_in_the_parent_is_not_written(saved: Saved) -> None:
    chance = random.Random(1)
    pages = {address: page(chance) for address in range(100, 3000)}
    staging = saved.begin("c1", pages)
    write(staging, {100: b"".join(pages.values())})
    saved.commit(staging)
    changed = chance.sample(range(100, 3000), 10)
    pages |= {address: chance.randbytes(PAGE) for address in changed}
    # It begins at another address than what the parent knows of, and ends at another.
    pages |= {address: chance.randbytes(PAGE) for address in (*range(90, 100), *range(3000, 3010))}
    staging = saved.begin("c2", pages, parent="c1")
    write(staging, {90: b"".join(pages[address] for address in sorted(pages))}, compare=True)
    nought = sum(not any(content) for content in pages.values())
    packed = isinstance(saved.store, PackStore)
    assert staging.memory.pages == (30 if packed else len(pages) - nought)
    saved.commit(staging)
    saved.require("c2", pages)


def test_what_was_copied_ahead_is_not_written_again(saved: Saved) -> None:
    chance = random.Random(1)
    pages = {address: page(chance) for address in range(100, 3000)}
    ahead = saved.begin("ahead", {})
    write(ahead, {100: b"".join(pages.values())})
    packed = isinstance(saved.store, PackStore)
    assert ahead.precopy() == packed
    assert not saved.store.list()
    with pytest.raises(NotFound):
        saved.store.load("ahead")
    saved.store.tidy(0)
    stored = sum(any(content) for content in pages.values()) * PAGE
    assert sum(saved.store.held("ahead").values()) >= (stored if packed else 0)
    changed = chance.sample(range(100, 3000), 10)
    pages |= {address: chance.randbytes(PAGE) for address in changed}
    staging = saved.begin("c1", pages, parent="ahead")
    assert staging.inherited(SPACE).tolist() == ([[100, 3000]] if packed else [])
    if packed:
        same = np.array([a for a in sorted(pages) if a not in changed])
        staging.memory.keep(SPACE, np.stack([same, same + 1], axis=1))
    write(staging, {a: c for a, c in pages.items() if a in changed or not packed})
    saved.commit(staging)
    saved.require("c1", pages)
    saved.store.forget("ahead")
    saved.store.forget("ahead")
    saved.store.tidy(0)
    assert saved.store.held("ahead") == {}
    saved.require("c1", pages)
    if packed:
        assert sum(saved.store.held("c1").values()) < 1.1 * stored


def test_of_nothing_there_is_no_precopy(saved: Saved) -> None:
    ahead = saved.begin("ahead", {})
    assert not ahead.precopy()
    pages = {1: bytes([1]) * PAGE}
    staging = saved.begin("c1", pages, parent="ahead")
    write(staging, pages)
    saved.commit(staging)
    saved.require("c1", pages)


def test_a_precopy_has_the_images_of_the_checkpoint_before(saved: Saved) -> None:
    pages = {address: bytes([address]) * PAGE for address in range(10, 20)}
    staging = saved.begin("c1", pages)
    write(staging, pages)
    write_files(staging.images, {"core-1.img": bytes(range(256)) * 2000})
    saved.commit(staging)
    ahead = saved.begin("ahead", {}, parent="c1")
    write(ahead, pages, compare=True)
    if not ahead.precopy():
        return
    staging = saved.begin("c2", pages, parent="ahead")
    write_files(staging.images, {"core-1.img": bytes(range(256)) * 2000})
    write(staging, pages, compare=True)
    saved.commit(staging)
    # There was nothing new.
    assert saved.store.held("c2").keys() & saved.store.held("c1").keys()
    packs = {key for key in saved.store.held("c2") if key not in saved.store.held("c1")}
    assert len(packs) == len(list((saved.root / "c2").iterdir()))


def test_nothing_is_kept_of_a_damaged_parent(saved: Saved) -> None:
    if not isinstance(saved.store, PackStore):
        pytest.skip("it is compared with nothing")
    pages = {address: bytes([address]) * PAGE for address in range(10, 20)}
    staging = saved.begin("c1", pages)
    write(staging, pages)
    saved.commit(staging)
    flip(*place_of(saved.store.root, saved.store.packs, "c1", "pages-1.img"))
    staging = saved.begin("c2", pages, parent="c1")
    write(staging, {10: b"".join(pages.values())}, compare=True)
    assert staging.memory.pages == len(pages)
    saved.commit(staging)
    saved.require("c2", pages)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["packs", "directory"]))
def test_any_generations_come_back(
    tmp_path_factory: pytest.TempPathFactory, seed: int, kind: str
) -> None:
    """What is the same is kept or taken again, what is not is taken, once or more often."""
    chance = random.Random(seed)
    made = Saved(tmp_path_factory.mktemp("generations") / "store", kind)
    pages: Pages = {}
    states: dict[str, Pages] = {}
    parent = ""
    for turn in range(6):
        before = dict(pages)
        for _ in range(chance.randrange(4)):
            at, size = chance.randrange(600), chance.randrange(300)
            for address in range(at, at + size):
                if chance.random() < 0.1:
                    pages.pop(address, None)
                else:
                    pages[address] = page(chance)
        if chance.random() < 0.5:
            # Copied ahead while it changed, from the middle of that.
            copied = before | {a: c for a, c in pages.items() if chance.random() < 0.5}
            ahead = made.begin(f"a{turn}", {}, parent)
            write(ahead, copied, compare=chance.random() < 0.5)
            if ahead.precopy():
                parent, before = f"a{turn}", copied
        staging = made.begin(f"c{turn}", pages, parent)
        kept = {
            address
            for start, stop in staging.inherited(SPACE).tolist()
            for address in range(start, stop)
            if before.get(address) == pages.get(address) and chance.random() < 0.9
        }
        for address in sorted(kept):
            staging.memory.keep(SPACE, np.array([[address, address + 1]]))
        compare = chance.random() < 0.5
        write(staging, {a: c for a, c in pages.items() if a not in kept}, compare=compare)
        made.commit(staging)
        made.store.forget(parent)
        made.store.tidy(0)
        parent = f"c{turn}"
        states[parent] = dict(pages)
    for name, state in states.items():
        made.require(name, state)
    made.store.close()
