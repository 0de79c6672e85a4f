"""What every store has to do."""

from __future__ import annotations

import ast
import itertools
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from jupyter_checkpoints.errors import (
    CheckpointDamaged,
    CheckpointsError,
    Conflict,
    InsufficientResources,
    InvalidRequest,
    NotFound,
    SaveFailed,
)
from jupyter_checkpoints.store.pages import open_pages
from jupyter_checkpoints.store.store import Store

from .saving import (
    BACKENDS,
    SOME_FILES,
    Backend,
    content_of,
    files_of,
    manifest_of,
    save,
    write_files,
)

names = st.text("abc019.-_", min_size=1, max_size=12).filter(lambda name: name.strip("."))
contents = st.binary(max_size=4096) | st.integers(0, 200_000).map(lambda n: b"\7" * n)


@pytest.fixture(params=BACKENDS, scope="module")
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    made = BACKENDS[request.param]()
    yield made
    made.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(backend: Backend, root: Path) -> Store:
    return backend.make(root)


def test_a_save_can_be_read_again(store: Store) -> None:
    manifest = save(store, "c1", SOME_FILES)

    assert store.load("c1") == manifest
    assert store.list() == [manifest]
    assert files_of(store, "c1") == SOME_FILES
    assert {record.path for record in manifest.files} == {f"images/{f}" for f in SOME_FILES}


def test_another_store_at_the_same_place_reads_it(backend: Backend, root: Path) -> None:
    manifest = save(backend.make(root), "c1", SOME_FILES)

    later = backend.make(root)
    assert later.collect() == []
    assert later.list() == [manifest]
    assert later.verify(manifest).ok


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(names, contents, max_size=8))
def test_any_files_come_back(backend: Backend, files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store = backend.make(Path(directory, "store"))
        manifest = save(store, "c1", files)
        assert files_of(store, "c1") == files
        report = store.verify(store.load("c1"))
        assert (report.ok, report.problems) == (True, [])
        assert report.bytes_read == sum(map(len, files.values()))
        assert store.load("c1") == manifest
        store.delete("c1")
        assert store.list() == []


def test_all_images_can_be_put_into_a_directory(store: Store, tmp_path: Path) -> None:
    save(store, "c1", SOME_FILES)
    for number, (pages, share) in enumerate(itertools.product((False, True), repeat=2)):
        target = tmp_path / str(number)
        target.mkdir()
        store.materialise("c1", target, pages=pages, share=share)
        found = {
            name: content[: len(SOME_FILES[name])] for name, content in content_of(target).items()
        }
        assert found == {n: c for n, c in SOME_FILES.items() if pages or n != "pages-1.img"}
    with pytest.raises(NotFound):
        store.materialise("c2", tmp_path)


def test_images_are_there_for_a_while(root: Path, store: Store) -> None:
    save(store, "c1", SOME_FILES)
    with store.materialised("c1") as images:
        assert images.name == "images"
        assert {p.name for p in images.iterdir()} == {n.split("/")[0] for n in SOME_FILES}
    assert not images.exists()
    assert os.listdir(root) == ["c1"]


def test_single_images_can_be_read(store: Store) -> None:
    save(store, "c1", SOME_FILES)
    for name, content in SOME_FILES.items():
        assert store.read_image("c1", name) == content
    with pytest.raises(CheckpointDamaged, match="core-2"):
        store.read_image("c1", "core-2.img")
    with pytest.raises(NotFound):
        store.read_image("c2", "core-1.img")


def test_an_image_that_is_changed_is_not_handed_out(
    backend: Backend, store: Store, tmp_path: Path
) -> None:
    save(store, "c1", SOME_FILES)
    backend.damage(store, "c1", "pages-1.img")
    with pytest.raises(CheckpointDamaged, match=r"pages-1\.img"):
        store.materialise("c1", tmp_path)
    with (
        open_pages(msgspec.json.encode(store.pages("c1"))) as pages,
        pytest.raises(CheckpointDamaged, match=r"pages-1\.img"),
    ):
        for offset in range(0, len(SOME_FILES["pages-1.img"]), 4096):
            size = min(4096, len(SOME_FILES["pages-1.img"]) - offset)
            found = pages.read("pages-1.img", offset, size)
            assert found == SOME_FILES["pages-1.img"][offset : offset + size]


def test_memory_can_be_read_from_another_process(store: Store) -> None:
    expected = {"pages-1.img": os.urandom(2**20 + 4096), "pages-22.img": bytes(2**16)}
    save(store, "c1", {**expected, "core-1.img": b"registers", "pages-x.img": b"no pages"})
    described = msgspec.json.encode(store.pages("c1"))
    program = (
        "import sys; from hashlib import sha256; "
        "from jupyter_checkpoints.store.pages import open_pages; "
        "pages = open_pages(sys.stdin.read()); "
        "print({n: sha256(pages.read(n, 0, s)).hexdigest() for n, s in pages.files().items()})"
    )
    found = subprocess.check_output([sys.executable, "-c", program], input=described)
    hashes = {name: sha256(content).hexdigest() for name, content in expected.items()}
    assert ast.literal_eval(found.decode()) == hashes


def test_memory_can_be_read_at_any_place_by_many_threads(store: Store) -> None:
    content = SOME_FILES["pages-1.img"]
    save(store, "c1", SOME_FILES)
    at = random.Random(1)
    ranges = [(0, 0), (len(content), 0), (len(content) - 17, 17), (0, len(content))]
    for _ in range(100):
        start = at.randrange(len(content))
        ranges.append((start, at.randrange(min(2**18, len(content) - start))))
    with store.pages("c1").open() as pages, ThreadPoolExecutor(4) as pool:
        for (start, size), found in zip(
            ranges, pool.map(lambda r: pages.read("pages-1.img", *r), ranges), strict=True
        ):
            assert found == content[start : start + size]
        for wrong in [(-1, 1), (len(content), 1), (0, len(content) + 1)]:
            with pytest.raises(ValueError, match="bytes"):
                pages.read("pages-1.img", *wrong)
        with pytest.raises(ValueError, match="pages-3"):
            pages.read("pages-3.img", 0, 1)


def test_a_checkpoint_of_files_only_has_no_images(store: Store) -> None:
    staging = store.begin("c1", 0)
    manifest = manifest_of("c1", [])
    staging.commit(manifest)

    assert store.verify(store.load("c1")).ok


def test_notes_change_what_is_told_and_not_what_was_saved(backend: Backend, root: Path) -> None:
    store = backend.make(root)
    manifest = save(store, "c1", SOME_FILES)
    store.annotate("c1", lambda notes: replace(notes, name="mine", pinned=True))
    store.annotate("c1", lambda notes: replace(notes, touched="2026-02-02T00:00:00Z"))

    noted = backend.make(root).load("c1")
    expected = replace(
        manifest.checkpoint, name="mine", pinned=True, touched="2026-02-02T00:00:00Z"
    )
    assert noted == replace(manifest, checkpoint=expected)
    assert store.list() == [noted]
    # Both are the same checkpoint, and nothing about it is damaged.
    assert store.verify(noted).ok
    assert store.verify(manifest).ok
    with pytest.raises(NotFound):
        store.annotate("c2", lambda notes: notes)


def test_notes_taken_at_once_are_all_kept(store: Store) -> None:
    save(store, "c1", {})

    def append(turn: int) -> None:
        store.annotate("c1", lambda notes: replace(notes, name=f"{notes.name or ''}{turn}"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(append, range(10)))
    assert sorted(store.load("c1").checkpoint.name) == sorted("0123456789")


@pytest.mark.parametrize("first", ["c1", "c2"])
def test_a_copy_and_its_source_are_each_whole_alone(store: Store, first: str) -> None:
    source = save(store, "c1", SOME_FILES)
    copy = manifest_of("c2", source.files, created="2026-01-02T00:00:00Z")
    store.clone("c1", copy)

    assert store.list() == [copy, source]
    with pytest.raises(Conflict):
        store.clone("c1", copy)
    with pytest.raises(NotFound):
        store.clone("c3", manifest_of("c4", []))
    other = {"c1": copy, "c2": source}[first]
    store.delete(first)
    assert store.list() == [other]
    assert store.verify(other).ok
    assert files_of(store, other.checkpoint.id) == SOME_FILES


def test_copies_hold_no_bytes_of_their_own(store: Store) -> None:
    content = os.urandom(3 * 2**20)
    source = save(store, "c1", {"pages-1.img": content})
    store.clone("c1", manifest_of("c2", source.files))
    one, both = store.held("c1"), {**store.held("c1"), **store.held("c2")}
    assert sum(one.values()) >= len(content)
    # A manifest each.
    assert sum(both.values()) - sum(one.values()) < 2**16
    assert store.held("c3") == {}


def test_newest_come_first(store: Store) -> None:
    for name, day in [("b", 2), ("c", 3), ("a", 1)]:
        save(store, name, {}, created=f"2026-01-0{day}T00:00:00Z")

    assert [manifest.checkpoint.id for manifest in store.list()] == ["c", "b", "a"]


def test_nothing_is_there_before_the_commit(store: Store) -> None:
    staging = store.begin("c1", 0)
    write_files(staging.images, SOME_FILES)
    staging.seal()

    assert store.list() == []
    with pytest.raises(NotFound):
        store.load("c1")
    with pytest.raises(NotFound):
        store.delete("c1")


def test_an_id_is_taken_from_begin_on(store: Store) -> None:
    staging = store.begin("c1", 0)
    with pytest.raises(Conflict):
        store.begin("c1", 0)
    staging.commit(manifest_of("c1", staging.seal()))
    with pytest.raises(Conflict):
        store.begin("c1", 0)


def test_abandoned_leaves_nothing_and_frees_the_id(store: Store) -> None:
    staging = store.begin("c1", 0)
    write_files(staging.images, SOME_FILES)
    staging.abandon()
    staging.abandon()

    assert store.list() == []
    save(store, "c1", SOME_FILES)


def test_deleted_is_gone(store: Store) -> None:
    save(store, "c1", SOME_FILES)
    save(store, "c2", {})
    store.delete("c1")

    assert [manifest.checkpoint.id for manifest in store.list()] == ["c2"]
    with pytest.raises(NotFound):
        store.load("c1")
    with pytest.raises(NotFound):
        store.delete("c1")
    save(store, "c1", {})


def test_of_two_that_delete_one_wins(store: Store) -> None:
    for turn in range(20):
        save(store, f"c{turn}", {"a": b"1"})
        with ThreadPoolExecutor(2) as pool:
            runs = [pool.submit(store.delete, f"c{turn}") for _ in range(2)]
        errors = [error for run in runs if (error := run.exception())]
        assert [type(error) for error in errors] == [NotFound]


def test_collect_removes_what_a_crash_left(backend: Backend, root: Path) -> None:
    store = backend.make(root)
    manifest = save(store, "c1", SOME_FILES)
    write_files(store.begin("c2", 0).images, SOME_FILES)

    later = backend.make(root)
    assert list(later.collect()) == ["c2"]
    assert later.collect() == []
    assert later.list() == [manifest]
    save(later, "c2", {})


def test_collect_spares_what_is_in_the_making(store: Store) -> None:
    staging = store.begin("c1", 0)
    assert store.collect() == []
    staging.commit(manifest_of("c1", staging.seal()))
    assert store.verify(store.load("c1")).ok


def test_many_at_once(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        saved = list(
            pool.map(lambda n: save(store, f"c{n}", {"a": bytes(n)}, f"{n:04}"), range(40))
        )
    assert store.list() == saved[::-1]


def test_too_little_space_is_told_before_anything_is_done(store: Store) -> None:
    with pytest.raises(InsufficientResources) as caught:
        store.begin("c1", 2**60)
    assert f"{2**30:.1f} GiB" in caught.value.message
    assert "free" in caught.value.reason
    store.begin("c1", 0)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", ".staging-c1", "../c1", "x" * 65])
def test_an_id_is_never_a_path(store: Store, name: str) -> None:
    save(store, "c1", {})
    with pytest.raises(InvalidRequest):
        store.begin(name, 0)
    for read in (store.load, store.pages, store.delete):
        with pytest.raises(NotFound):
            read(name)


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_only_plain_files_are_sealed(store: Store, kind: str) -> None:
    staging = store.begin("c1", 0)
    odd = staging.images / "odd"
    if kind == "link":
        odd.symlink_to("/etc/passwd")
    else:
        os.mkfifo(odd)
    with pytest.raises(SaveFailed, match="odd"):
        staging.seal()


def test_a_manifest_vouches_for_what_was_sealed(store: Store) -> None:
    staging = store.begin("c1", 0)
    write_files(staging.images, SOME_FILES)
    records = staging.seal()
    for manifest in (manifest_of("c1", records[1:]), manifest_of("c2", records)):
        with pytest.raises(CheckpointsError):
            staging.commit(manifest)
    assert store.list() == []
    staging.commit(manifest_of("c1", records))


def test_progress_ends_at_the_total(store: Store) -> None:
    total = sum(map(len, SOME_FILES.values()))
    sealed: list[tuple[int, int]] = []
    verified: list[tuple[int, int]] = []
    staging = store.begin("c1", total)
    write_files(staging.images, SOME_FILES)
    manifest = manifest_of("c1", staging.seal(lambda *at: sealed.append(at)))
    staging.commit(manifest)
    store.verify(manifest, lambda *at: verified.append(at))

    for calls in (sealed, verified):
        assert calls == sorted(calls)
        assert len(calls) > 2
        assert calls[-1] == (total, total)
