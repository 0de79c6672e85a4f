"""The store of packs: what is shared, damage, giving back, repair, and who may have it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_checkpoints.errors import CheckpointDamaged, CheckpointsError, Conflict
from jupyter_checkpoints.models import RepairReport
from jupyter_checkpoints.store.changes import MAX_PACKS
from jupyter_checkpoints.store.directory import DirectoryStore, link
from jupyter_checkpoints.store.pack import PAGE
from jupyter_checkpoints.store.packs import PackStore
from jupyter_checkpoints.store.pagemap import Run
from jupyter_checkpoints.store.pages import open_pages

from .saving import SOME_FILES, content_of, files_of, flip, manifest_of, packs_of, place_of, save

MIB = 2**20


def random_pages(count: int, seed: int = 0) -> bytearray:
    return bytearray(random.Random(seed).randbytes(count * PAGE))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> Iterator[PackStore]:
    made = PackStore(root, packs_of(root))
    yield made
    made.close()


def held(store: PackStore) -> int:
    """Bytes on the disk of everything."""
    files = [*store.root.rglob("*"), *store.packs.rglob("*")]
    return sum(path.stat().st_blocks * 512 for path in files if path.is_file())


# ---- what is shared


def test_little_that_is_new_is_compressed_at_once(store: PackStore) -> None:
    memory = random_pages(3000)
    save(store, "c1", {"pages-1.img": memory})
    first = held(store)
    for page in range(0, 2000, 2):
        memory[page * PAGE : (page + 1) * PAGE] = page.to_bytes(4) * (PAGE // 4)
    save(store, "c2", {"pages-1.img": memory}, parent="c1")
    assert held(store) - first < 500 * PAGE
    assert files_of(store, "c2") == {"pages-1.img": memory}
    # More of it is not.
    for page in range(0, 2400, 2):
        memory[page * PAGE : (page + 1) * PAGE] = (page + 1).to_bytes(4) * (PAGE // 4)
    first = held(store)
    save(store, "c3", {"pages-1.img": memory}, parent="c2")
    assert held(store) - first > 1200 * PAGE
    assert files_of(store, "c3") == {"pages-1.img": memory}
    assert all(store.verify(store.load(name)).ok for name in ("c2", "c3"))


def test_a_second_save_holds_what_has_changed(store: PackStore) -> None:
    memory = random_pages(2000)
    save(store, "c1", {"pages-1.img": memory, "core-1.img": b"registers"})
    first = held(store)
    assert len(memory) < first < 1.05 * len(memory)

    save(store, "c2", {"pages-1.img": memory, "core-1.img": b"Registers"}, parent="c1")
    assert held(store) - first < 2**16
    second = held(store)
    for page in (0, 7, 8, 1999):
        memory[page * PAGE] ^= 1
    save(store, "c3", {"pages-1.img": memory, "core-1.img": b"registers"}, parent="c2")
    assert held(store) - second < 2**17
    assert files_of(store, "c3") == {"pages-1.img": memory, "core-1.img": b"registers"}


def test_ten_checkpoints_with_little_changed_hold_little_more_than_one(store: PackStore) -> None:
    memory, at = random_pages(4000), random.Random(0)
    save(store, "c0", {"pages-1.img": memory})
    one, parent = held(store), "c0"
    states = {"c0": bytes(memory)}
    for turn in range(1, 10):
        for page in at.sample(range(4000), 40):
            memory[page * PAGE + at.randrange(PAGE)] ^= 1
        save(store, f"c{turn}", {"pages-1.img": memory}, parent=parent)
        parent = f"c{turn}"
        states[parent] = bytes(memory)
    assert held(store) <= 1.2 * one
    for name, state in states.items():
        assert files_of(store, name) == {"pages-1.img": state}
        assert store.verify(store.load(name)).ok


def test_zeros_hold_nothing(store: PackStore) -> None:
    memory = bytes(3000 * PAGE) + random_pages(1000) + bytes(4000 * PAGE)
    save(store, "c1", {"pages-1.img": memory, "pages-2.img": bytes(64 * MIB)})
    assert held(store) < 1.1 * 1000 * PAGE
    assert files_of(store, "c1") == {"pages-1.img": memory, "pages-2.img": bytes(64 * MIB)}


def test_memory_is_known_again_at_its_address(root: Path) -> None:
    """Where it is in the file, and which file it is in, say nothing."""
    layout: dict[str, list[Run]] = {}
    store = PackStore(root, packs_of(root), memory=lambda images: layout)
    stack, heap = random_pages(600, 1), random_pages(900, 2)
    layout["pages-1.img"] = [Run("one", 1000, 600), Run("one", 5000, 900)]
    save(store, "c1", {"pages-1.img": stack + heap})
    first = held(store)

    more = random_pages(10, 3)
    del layout["pages-1.img"]
    layout["pages-7.img"] = [Run("one", 10, 10), Run("one", 1000, 600), Run("one", 5100, 800)]
    content = more + stack + heap[100 * PAGE :]
    save(store, "c2", {"pages-7.img": content}, parent="c1")
    assert held(store) - first < 2**17
    assert files_of(store, "c2") == {"pages-7.img": content}
    # Somebody else's memory at the same address is compared too, and is not the same.
    layout["pages-7.img"] = [Run("two", 1000, 600)]
    save(store, "c3", {"pages-7.img": stack}, parent="c2")
    assert held(store) - first > len(stack)
    assert files_of(store, "c3") == {"pages-7.img": stack}
    # What is said of a file may be wrong.
    layout["pages-7.img"] = [Run("two", 1000, 601)]
    save(store, "c4", {"pages-7.img": stack}, parent="c3")
    assert files_of(store, "c4") == {"pages-7.img": stack}
    store.close()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_generations_come_back(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Pages appear, vanish, become zero, move between files; parents are deleted."""
    root = tmp_path_factory.mktemp("any") / "store"
    layout: dict[str, list[Run]] = {}
    store = PackStore(root, packs_of(root), memory=lambda images: layout)
    at = random.Random(data.draw(st.integers(0, 2**32)))
    pages: dict[int, bytes] = {}
    alive: dict[str, dict[str, bytes | bytearray]] = {}
    for turn in range(data.draw(st.integers(2, 5))):
        for _ in range(data.draw(st.integers(0, 3))):
            start, count = at.randrange(600), at.choice((1, 5, 40, 500))
            kind = at.choice(("new", "zero", "gone"))
            for page in range(start, start + count):
                if kind == "gone":
                    pages.pop(page, None)
                else:
                    pages[page] = at.randbytes(PAGE) if kind == "new" else bytes(PAGE)
        order = sorted(pages)
        cut = at.randrange(len(order) + 1)
        files: dict[str, bytes | bytearray] = {"core-1.img": at.randbytes(at.randrange(9000))}
        layout.clear()
        for name, part in (("pages-1.img", order[:cut]), ("pages-2.img", order[cut:])):
            files[name] = b"".join(pages[page] for page in part)
            layout[name] = [Run("space", page, 1) for page in part]
        parent = at.choice(list(alive)) if alive else ""
        save(store, f"c{turn}", files, parent=parent)
        alive[f"c{turn}"] = files
        if len(alive) > 1 and at.random() < 0.4:
            gone = at.choice(list(alive))
            store.delete(gone)
            del alive[gone]
            store.tidy(0)
        for name, expected in alive.items():
            assert files_of(store, name) == expected
            assert store.verify(store.load(name)).ok
    store.close()


def test_a_long_line_of_checkpoints_is_read_from_few_packs(store: PackStore) -> None:
    memory, parent = random_pages(400), ""
    for turn in range(MAX_PACKS + 10):
        memory[turn * PAGE] ^= 1
        save(store, f"c{turn}", {"pages-1.img": memory}, parent=parent)
        parent = f"c{turn}"
        assert len(store.map(parent).packs) <= MAX_PACKS + 1
    assert files_of(store, parent) == {"pages-1.img": memory}


@pytest.mark.parametrize("harm", ["deleted", "damaged", "of another store"])
def test_a_parent_that_cannot_be_used_is_not_needed(
    root: Path, store: PackStore, harm: str
) -> None:
    memory = random_pages(600)
    save(store, "c1", {"pages-1.img": memory})
    if harm == "deleted":
        store.delete("c1")
    elif harm == "damaged":
        (root / "c1" / "pages.map").unlink()
    else:
        save(DirectoryStore(root), "c1b", {"pages-1.img": memory})
    save(store, "c2", {"pages-1.img": memory}, parent="c1b" if "of" in harm else "c1")
    assert files_of(store, "c2") == {"pages-1.img": memory}


# ---- damage


@pytest.mark.parametrize("place", ["page", "small image", "table", "trailer"])
def test_nothing_is_built_on_what_is_damaged(store: PackStore, place: str) -> None:
    """The new checkpoint is whole, whatever has become of its parent."""
    memory = random_pages(600)
    files = {"pages-1.img": bytes(memory), "core-1.img": b"registers" * 1000}
    save(store, "c1", files)
    pack, offset = place_of(store.root, store.packs, "c1", "core-1.img")
    size = pack.stat().st_size
    flip(pack, {"page": 5 * PAGE, "small image": offset, "table": size - 200}.get(place, size - 1))
    # Another page of the extent that is damaged is the same still.
    memory[:PAGE] = random_pages(1, 9)
    save(store, "c2", {**files, "pages-1.img": bytes(memory)}, parent="c1")
    assert store.verify(store.load("c2")).ok
    assert files_of(store, "c2") == {**files, "pages-1.img": bytes(memory)}


def test_a_flipped_bit_anywhere_is_named_and_never_served(store: PackStore) -> None:
    memory = random_pages(280)
    memory[PAGE * 20 : PAGE * 60] = bytes(40 * PAGE)
    files = {"pages-1.img": bytes(memory), "core-1.img": b"registers" * 3000}
    save(store, "c1", files)
    manifest = store.load("c1")
    (pack,) = store.packs.glob("*.pack")
    index = pack.with_suffix(".index")
    at = random.Random(0)
    for path in (pack, index, store.root / "c1" / "pages.map"):
        good = path.read_bytes()
        for offset in [0, len(good) - 1, *(at.randrange(len(good)) for _ in range(60))]:
            flip(path, offset)
            report = store.verify(manifest)
            try:
                assert files_of(store, "c1") == files
                # The other table, a hole, or what belongs to no page: nothing is wrong with it.
                assert report.ok
                assert path != store.root / "c1" / "pages.map"
            except CheckpointDamaged as error:
                assert not report.ok and report.problems
                assert "c1" in error.message
            path.write_bytes(good)
    assert store.verify(manifest).ok


def test_shared_files_are_verified_before_they_are_linked(store: PackStore, tmp_path: Path) -> None:
    target = tmp_path / "images"
    target.mkdir()
    memory = random_pages(1000)
    memory[PAGE * 20 : PAGE * 60] = bytes(40 * PAGE)
    save(store, "c1", {"pages-1.img": memory})
    store.materialise("c1", target)
    assert (target / "pages-1.img").stat().st_nlink == 2
    assert content_of(target)["pages-1.img"][: len(memory)] == memory
    (pack,) = store.packs.glob("*.pack")
    flip(pack, 30 * PAGE)  # where a hole was: it is zero in the checkpoint
    (target / "pages-1.img").unlink()
    store.materialise("c1", target)
    assert content_of(target) == {"pages-1.img": memory}
    (target / "pages-1.img").unlink()
    flip(pack, 70 * PAGE)
    with pytest.raises(CheckpointDamaged):
        store.materialise("c1", target)


@pytest.mark.parametrize("harm", ["pack removed", "pack cut", "map removed", "file added"])
def test_a_quick_look_finds_what_is_missing(store: PackStore, harm: str) -> None:
    manifest = save(store, "c1", {"pages-1.img": random_pages(600)})
    assert store.verify(manifest, read_data=False).ok
    (pack,) = store.packs.glob("*.pack")
    match harm:
        case "pack removed":
            pack.unlink()
        case "pack cut":
            os.truncate(pack, 300 * PAGE)
        case "map removed":
            (store.root / "c1" / "pages.map").unlink()
        case "file added":
            (store.root / "c1" / "more").touch()
    report = store.verify(manifest, read_data=False)
    assert not report.ok and report.bytes_read == 0
    if harm != "file added":
        with pytest.raises(CheckpointsError):
            store.clone("c1", manifest_of("c2", manifest.files))
        assert [m.checkpoint.id for m in store.list()] == ["c1"]


# ---- giving back


def test_what_nobody_needs_goes_after_a_time_of_grace(store: PackStore) -> None:
    memory = random_pages(1000)
    save(store, "c1", {"pages-1.img": memory})
    store.delete("c1")
    store.tidy(3600)
    assert list(store.packs.glob("*.pack"))
    store.tidy(0)
    assert not list(store.packs.glob("*.[pi]*"))


def fill_disk(store: PackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room once the packs are gone."""

    class Room:
        f_frsize = 1

        @property
        def f_bavail(self) -> int:
            return 2**20 if list(store.packs.glob("*.pack")) else 2**40

    monkeypatch.setattr(os, "statvfs", lambda path: Room())


def test_a_save_that_needs_the_space_does_not_wait(
    store: PackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(store, "c1", {"pages-1.img": random_pages(1000)})
    store.delete("c1")
    fill_disk(store, monkeypatch)
    store.begin("c2", 2**21)


def copied_ahead(store: PackStore, name: str, memory: bytearray) -> None:
    staging = store.begin(name, 0)
    pages = np.frombuffer(memory, np.uint8).reshape(-1, PAGE)
    staging.memory.write("pagemap-1", np.array([[0, len(pages)]]), pages)
    assert staging.precopy()


def test_what_was_copied_ahead_is_gone_with_the_store(root: Path, store: PackStore) -> None:
    save(store, "c1", {"pages-1.img": random_pages(300)})
    before = set(store.packs.iterdir())
    copied_ahead(store, "ahead", random_pages(1000, 2))
    assert set(store.packs.iterdir()) > before
    assert {path.name for path in root.iterdir()} == {"c1"}
    store.tidy(0)
    assert store.repair().lost == {}
    assert store.held("ahead")
    store.close()
    later = PackStore(root, packs_of(root))
    assert later.held("ahead") == {}
    later.collect()
    assert set(later.packs.iterdir()) == before
    later.close()


def test_what_was_copied_ahead_gives_way(store: PackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    copied_ahead(store, "ahead", random_pages(1000))
    fill_disk(store, monkeypatch)
    assert store.begin("c1", 2**21, "ahead").inherited("pagemap-1").tolist() == []
    assert store.held("ahead") == {}


def test_what_is_built_on_stays_until_that_is_done(store: PackStore) -> None:
    memory = random_pages(1000)
    copied_ahead(store, "ahead", memory)
    staging = store.begin("c1", 0, "ahead")
    staging.memory.keep("pagemap-1", staging.inherited("pagemap-1"))
    store.forget("ahead")
    store.tidy(0)
    # It becomes one itself.
    assert staging.precopy()
    store.tidy(0)
    staging = store.begin("c2", 0, "c1")
    pages = np.frombuffer(memory, np.uint8).reshape(-1, PAGE)
    staging.memory.write("pagemap-1", np.array([[0, 1000]]), pages, compare=True)
    assert staging.memory.pages == 0
    staging.abandon()
    store.forget("c1")
    store.tidy(0)
    assert not list(store.packs.glob("*.[pi]*"))


def test_what_one_still_needs_stays_and_the_rest_goes(store: PackStore) -> None:
    memory = random_pages(4000)
    save(store, "c1", {"pages-1.img": bytes(memory)})
    memory[: 3000 * PAGE] = random_pages(3000, 5)
    save(store, "c2", {"pages-1.img": bytes(memory)}, parent="c1")
    store.delete("c1")
    before = held(store)
    store.tidy(0)
    assert before - held(store) > 2900 * PAGE
    assert files_of(store, "c2") == {"pages-1.img": memory}
    assert store.verify(store.load("c2")).ok
    assert sum(store.held("c2").values()) < 1.1 * len(memory)


def test_an_unreadable_checkpoint_keeps_all_packs(root: Path, store: PackStore) -> None:
    for name, seed in (("c1", 1), ("c2", 2)):
        save(store, name, {"pages-1.img": random_pages(300, seed)})
    store.close()
    path = root / "c1" / "pages.map"
    content = path.read_bytes()
    path.write_bytes(b"?")
    later = PackStore(root, packs_of(root))
    later.collect()
    later.delete("c2")
    later.tidy(0)
    path.write_bytes(content)
    assert later.verify(later.load("c1")).ok
    later.close()


def test_the_parent_of_a_save_stays_until_it_is_done(store: PackStore) -> None:
    memory = random_pages(1000)
    save(store, "c1", {"pages-1.img": memory})
    staging = store.begin("c2", 0, "c1")
    (staging.images / "pages-1.img").write_bytes(memory)
    records = staging.seal()
    store.delete("c1")
    store.tidy(0)
    staging.commit(manifest_of("c2", records))
    store.tidy(0)
    assert files_of(store, "c2") == {"pages-1.img": memory}


def test_readers_and_savers_and_giving_back_at_once(store: PackStore) -> None:
    base = random_pages(800)
    save(store, "kept", {"pages-1.img": base})
    over = threading.Event()

    def read() -> int:
        turns = 0
        with store.pages("kept").open() as pages:
            while not over.is_set() or not turns:
                assert pages.read("pages-1.img", 0, len(base)) == base
                turns += 1
        return turns

    def tidy() -> int:
        turns = 0
        while not over.is_set() or not turns:
            store.tidy(0)
            turns += 1
        return turns

    def save_and_delete(number: int) -> None:
        memory = bytearray(base)
        memory[number * PAGE : (number + 300) * PAGE] = random_pages(300, number)
        for turn in range(4):
            name = f"c{number}-{turn}"
            save(store, name, {"pages-1.img": memory}, parent="kept")
            assert files_of(store, name) == {"pages-1.img": memory}
            store.delete(name)

    with ThreadPoolExecutor(5) as pool:
        background = [pool.submit(read), pool.submit(tidy)]
        work = [pool.submit(save_and_delete, number) for number in range(3)]
        try:
            for one in work:
                one.result()
        finally:
            over.set()
        assert all(one.result() for one in background)
    store.tidy(0)
    assert files_of(store, "kept") == {"pages-1.img": base}
    assert len(list(store.packs.glob("*.pack"))) == 1


# ---- repair


def remove_index(pack: Path) -> None:
    pack.with_suffix(".index").unlink()


def flip_index(pack: Path) -> None:
    flip(pack.with_suffix(".index"), 10)


def flip_table(pack: Path) -> None:
    flip(pack, pack.stat().st_size - 20)


def cut_table(pack: Path) -> None:
    os.truncate(pack, pack.stat().st_size - 20)


@pytest.mark.parametrize("harm", [remove_index, flip_index, flip_table, cut_table])
def test_each_table_is_made_again_from_the_other(
    store: PackStore, harm: Callable[[Path], None]
) -> None:
    files = {"pages-1.img": bytes(random_pages(600)), "core-1.img": b"registers"}
    save(store, "c1", files)
    (pack,) = store.packs.glob("*.pack")
    content, index = pack.read_bytes(), pack.with_suffix(".index").read_bytes()
    harm(pack)
    assert files_of(store, "c1") == files
    report = store.repair()
    assert report.lost == {} and len(report.repaired) == 1 and pack.stem in report.repaired[0]
    assert (pack.read_bytes(), pack.with_suffix(".index").read_bytes()) == (content, index)
    assert store.repair().repaired == []


def test_long_reading_can_be_broken_off(store: PackStore, tmp_path: Path) -> None:
    manifest = save(store, "c1", {"pages-1.img": random_pages(5000)})

    class Enough(Exception):
        pass

    def enough(done: int, total: int) -> None:
        raise Enough

    with pytest.raises(Enough):
        store.verify(manifest, enough)
    with pytest.raises(Enough):
        store.materialise("c1", tmp_path, enough)
    staging = store.begin("c2", 0, "c1")
    (staging.images / "pages-1.img").write_bytes(random_pages(5000))
    with pytest.raises(Enough):
        staging.seal(enough)
    staging.abandon()
    assert store.verify(manifest).ok


def test_what_is_lost_is_named(store: PackStore) -> None:
    memory = random_pages(600)
    save(store, "c1", {"pages-1.img": memory, "core-1.img": b"registers"})
    save(store, "c2", {"pages-1.img": memory, "core-1.img": b"registers"}, parent="c1")
    save(store, "c3", {"pages-1.img": random_pages(600, 8)})
    pack, _ = place_of(store.root, store.packs, "c1", "pages-1.img")
    flip_index(pack)
    flip_table(pack)
    (store.root / "c3" / "manifest.json").write_bytes(b"{}")
    report = store.repair()
    assert set(report.lost) == {"c1", "c2", "c3"}
    assert any("images/pages-1.img" in problem for problem in report.lost["c2"])
    assert any("manifest.json" in problem for problem in report.lost["c3"])


# ---- less space


def compressible_pages(count: int, seed: int = 0) -> bytearray:
    choose = random.Random(seed)
    return bytearray(b"".join(choose.randbytes(PAGE // 2) + bytes(PAGE // 2) for _ in range(count)))


def test_what_has_lain_is_stored_in_less_space_and_is_the_same(store: PackStore) -> None:
    files = {"pages-1.img": bytes(compressible_pages(3000)), "core-1.img": b"registers"}
    manifest = save(store, "c1", files)
    before = held(store)
    assert store.compress(60) == 0
    gained = store.compress(0)
    assert before - held(store) == gained > before * 0.3
    assert files_of(store, "c1") == files
    assert store.verify(manifest).ok and store.repair() == RepairReport(repaired=[], lost={})
    assert store.compress(0) == 0
    changed = files["pages-1.img"][: 2999 * PAGE] + bytes(random_pages(1))
    second = save(store, "c2", {**files, "pages-1.img": changed}, parent="c1")
    assert held(store) < before
    store.delete("c1")
    store.tidy(0)
    assert store.verify(second).ok and files_of(store, "c2")["pages-1.img"] == changed


def test_nothing_is_written_where_little_is_gained(store: PackStore) -> None:
    save(store, "c1", {"pages-1.img": random_pages(2000)})
    (pack,) = store.packs.glob("*.pack")
    before = pack.stat().st_mtime_ns
    assert store.compress(0) == 0
    assert pack.stat().st_mtime_ns == before


def test_what_is_damaged_is_left_as_it_is(
    store: PackStore, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = save(store, "c1", {"pages-1.img": compressible_pages(2000)})
    (pack,) = store.packs.glob("*.pack")
    flip(pack, 1234)
    before = pack.read_bytes()
    assert store.compress(0) == 0
    assert "not what was written" in caplog.text
    assert pack.read_bytes() == before and not store.verify(manifest).ok
    assert {path.suffix for path in store.packs.iterdir()} == {".pack", ".index", ""}


def test_what_nobody_needs_any_more_is_left_out(store: PackStore) -> None:
    memory = compressible_pages(2000)
    save(store, "c1", {"pages-1.img": memory})
    memory[: 1000 * PAGE] = random_pages(1000, 5)
    second = save(store, "c2", {"pages-1.img": memory}, parent="c1")
    store.delete("c1")
    store.tidy(0)
    assert store.compress(0) > 0
    assert store.verify(second).ok
    assert files_of(store, "c2") == {"pages-1.img": bytes(memory)}


def test_a_crash_before_the_index_is_written_loses_nothing(
    store: PackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"pages-1.img": bytes(compressible_pages(2000))}
    save(store, "c1", files)
    (index,) = store.packs.glob("*.index")
    old = index.read_bytes()
    assert store.compress(0) > 0
    index.write_bytes(old)
    assert files_of(store, "c1") == files
    report = store.repair()
    assert report.lost == {} and len(report.repaired) == 1
    assert index.read_bytes() != old and files_of(store, "c1") == files


def test_readers_go_on_while_it_is_compressed(store: PackStore) -> None:
    files = {"pages-1.img": bytes(compressible_pages(6000))}
    save(store, "c1", files)
    with open_pages(msgspec.json.encode(store.pages("c1"))) as source:
        first = bytes(source.read("pages-1.img", 0, PAGE))
        assert store.compress(0) > 0
        assert first + bytes(source.read("pages-1.img", PAGE, 5999 * PAGE)) == files["pages-1.img"]
    with ThreadPoolExecutor(1) as pool:
        stop = threading.Event()
        reading = pool.submit(_reading, store, files, stop)
        for name in ("c2", "c3", "c4"):
            save(store, name, {"pages-1.img": compressible_pages(3000, int(name[1]))})
            store.compress(0)
        stop.set()
        assert reading.result() > 0


def test_a_pack_that_is_compressed_meanwhile_is_not_taken_for_a_pages_file(
    store: PackStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its old file was looked at, and its new one has the name."""
    files = {"pages-1.img": bytes(compressible_pages(2000))}
    save(store, "c1", files)

    def slow_link(source: Path, target: Path) -> bool:
        assert store.compress(0) > 0
        return link(source, target)

    monkeypatch.setattr("jupyter_checkpoints.store.packs.link", slow_link)
    store.materialise("c1", tmp_path)
    assert (tmp_path / "pages-1.img").read_bytes() == files["pages-1.img"]


def _reading(store: PackStore, files: dict[str, bytes], stop: threading.Event) -> int:
    times = 0
    while not stop.is_set() or not times:
        assert files_of(store, "c1") == files
        times += 1
    return times


def test_it_is_given_up_when_the_agent_ends(store: PackStore) -> None:
    save(store, "c1", {"pages-1.img": compressible_pages(2000)})
    asked = iter([False] * 20)
    assert store.compress(0, lambda: next(asked, True)) == 0
    assert {path.suffix for path in store.packs.iterdir()} == {".pack", ".index", ""}
    assert store.compress(0) > 0


# ---- who may have it


def test_one_process_has_the_store_at_a_time(root: Path, store: PackStore) -> None:
    with pytest.raises(Conflict, match=f"process {os.getpid()}"):
        PackStore(root, packs_of(root))
    store.close()
    PackStore(root, packs_of(root)).close()


def test_a_dead_owner_has_nothing(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    program = (
        "import sys; from pathlib import Path; from jupyter_checkpoints.store.packs import *;"
        "store = PackStore(Path(sys.argv[1]), Path(sys.argv[2])); print(flush=True);"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, root, packs_of(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as owner:
        assert owner.stdout
        owner.stdout.readline()
        with pytest.raises(Conflict, match=f"process {owner.pid}"):
            PackStore(root, packs_of(root))
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    PackStore(root, packs_of(root)).close()
    assert f"process {owner.pid}, which has died" in caplog.text
    caplog.clear()
    PackStore(root, packs_of(root)).close()
    assert "died" not in caplog.text


# ---- the first store's checkpoints


def test_checkpoints_of_the_first_store_live_on(root: Path, tmp_path: Path) -> None:
    old = DirectoryStore(root)
    manifest = save(old, "old", SOME_FILES)
    store = PackStore(root, packs_of(root))
    assert store.collect() == []
    new = save(store, "new", SOME_FILES, created="2026-02-01T00:00:00Z", parent="old")
    assert store.list() == [new, manifest]
    assert files_of(store, "old") == SOME_FILES
    assert store.verify(manifest).ok and store.verify(manifest, read_data=False).ok
    with store.pages("old").open() as pages:
        assert pages.read("pages-1.img", 0, 100) == SOME_FILES["pages-1.img"][:100]
    copy = manifest_of("copy", manifest.files)
    store.clone("old", copy)
    assert store.repair().lost == {}
    store.delete("old")
    assert store.verify(copy).ok
    store.annotate("copy", lambda notes: notes)
    flip(root / "copy" / "images" / "core-1.img", 0)
    assert not store.verify(copy).ok
    store.close()
    # The first store sees what is its own, and says of the rest why it cannot.
    with pytest.raises(CheckpointDamaged, match="packs"):
        old.load("new")
    assert [m.checkpoint.id for m in old.list()] == ["copy"]
