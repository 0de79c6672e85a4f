"""The directory store: the contract, and what is its own (files, modes, damage, a full disk)."""

from __future__ import annotations

import logging
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from jupyter_checkpoints.errors import CheckpointDamaged, InsufficientResources, SaveFailed
from jupyter_checkpoints.store.directory import DirectoryStore

from .saving import SOME_FILES, manifest_of, save, write_files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root: Path) -> DirectoryStore:
    return DirectoryStore(root)


def test_nobody_else_may_look(root: Path) -> None:
    root.mkdir(mode=0o755)
    store = DirectoryStore(root)
    staging = store.begin("c1", 0)
    write_files(staging.images, SOME_FILES)
    for path in staging.images.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    staging.commit(manifest_of("c1", staging.seal()))

    modes = {
        stat.S_IMODE(path.stat().st_mode) & (0o777 if path.is_file() else 0o077)
        for path in [root, *root.rglob("*")]
    }
    assert modes == {0o600, 0}


def test_digests_are_plain_blake3(store: DirectoryStore) -> None:
    manifest = save(store, "c1", SOME_FILES)
    for record in manifest.files:
        content = SOME_FILES[record.path.removeprefix("images/")]
        assert (record.digest, record.size) == (blake3(content).hexdigest(), len(content))


def test_everything_is_on_the_disk_before_the_rename(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of fsync and rename is what a power failure would test."""
    synced: list[str] = []
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real_fsync(fd)

    def rename(self: Path, target: Path) -> Path:
        everything = {str(path) for path in [self, *self.rglob("*")]}
        assert everything <= set(synced)
        # A directory's entry for a file is on the disk once it is synced after the file was made.
        assert synced.index(str(self)) > synced.index(str(self / "manifest.json"))
        synced.clear()
        return real_rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    save(store, "c1", SOME_FILES)
    assert synced == [str(root)]


# ---- damage


def cut(path: Path, at: random.Random) -> None:
    os.truncate(path, at.randrange(path.stat().st_size))


def lengthen(path: Path, at: random.Random) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def flip(path: Path, at: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[at.randrange(len(content))] ^= 1 << at.randrange(8)
    path.write_bytes(content)


def remove(path: Path, at: random.Random) -> None:
    path.unlink()


def link(path: Path, at: random.Random) -> None:
    """The same content, but where somebody else can change it."""
    moved = path.rename(path.parents[3] / "elsewhere")
    path.symlink_to(moved)


def add(path: Path, at: random.Random) -> None:
    path.with_name("extra").touch()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("harm", [cut, lengthen, flip, remove, link, add])
@pytest.mark.parametrize("name", ["core-1.img", "pages-1.img"])
def test_damage_is_found(
    store: DirectoryStore, name: str, harm: Callable[[Path, random.Random], None], seed: int
) -> None:
    manifest = save(store, "c1", SOME_FILES)
    harm(store.images("c1") / name, random.Random(seed))

    report = store.verify(manifest)
    assert not report.ok
    assert len(report.problems) == 1
    assert ("extra" if harm is add else name) in report.problems[0]


@pytest.mark.parametrize("harm", [cut, flip, remove, add])
def test_damage_to_a_manifest_is_found(
    store: DirectoryStore,
    root: Path,
    harm: Callable[[Path, random.Random], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    manifest = save(store, "c1", {"core-1.img": b"registers"})
    good = save(store, "c2", {})
    path = root / "c1" / "manifest.json"
    content = path.read_bytes()
    for seed in range(200 if harm in (cut, flip) else 1):
        harm(path, random.Random(seed))
        assert not store.verify(manifest).ok
        if harm is not add:
            with pytest.raises(CheckpointDamaged):
                store.load("c1")
        path.write_bytes(content)
    assert store.load("c1") == manifest
    assert store.load("c2") == good


def test_a_damaged_checkpoint_is_left_out_of_the_list_and_can_be_deleted(
    store: DirectoryStore, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(store, "c1", {})
    good = save(store, "c2", {})
    (root / "c1" / "manifest.json").write_bytes(b"\xff{")
    (root / "lost+found").mkdir()
    (root / "a-file").touch()

    with caplog.at_level(logging.WARNING):
        assert store.list() == [good]
    assert "c1" in caplog.text
    store.delete("c1")
    assert not (root / "c1").exists()


def test_a_manifest_from_the_future_is_told_from_damage(store: DirectoryStore, root: Path) -> None:
    save(store, "c1", {})
    (root / "c1" / "manifest.json").write_text('{"version": 7, "layers": ["quite", "different"]}')
    with pytest.raises(CheckpointDamaged) as caught:
        store.load("c1")
    assert "version 7" in caught.value.reason
    assert "upgrade" in caught.value.hint


def test_a_checkpoint_under_the_wrong_name_is_damaged(store: DirectoryStore, root: Path) -> None:
    save(store, "c1", {})
    (root / "c1").rename(root / "c2")
    with pytest.raises(CheckpointDamaged, match="c2"):
        store.load("c2")


def test_verify_asks_for_the_manifest_that_is_on_the_disk(store: DirectoryStore) -> None:
    save(store, "c1", SOME_FILES)
    other = manifest_of("c1", [])
    report = store.verify(other)
    assert any("manifest.json" in problem for problem in report.problems)
    assert not store.verify(manifest_of("c9", [])).ok


def test_unreadable_is_damage_and_no_exception(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = save(store, "c1", SOME_FILES)

    def broken(*args: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    report = store.verify(manifest)
    assert len(report.problems) == 2  # the two that are larger than one read
    assert all("Input/output error" in problem for problem in report.problems)


# ---- the disk


def test_what_others_were_promised_is_taken(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 100 * 2**20

    class Room:
        f_frsize = 1

        @property
        def f_bavail(self) -> int:
            return free

    monkeypatch.setattr(os, "statvfs", lambda path: Room())
    store = DirectoryStore(root, reserve=10 * 2**20)
    with pytest.raises(InsufficientResources, match=r"90\.0 MiB can be used"):
        store.begin("c0", 91 * 2**20)
    first = store.begin("c1", 60 * 2**20)
    with pytest.raises(InsufficientResources, match=r"30\.0 MiB can be used"):
        store.begin("c2", 40 * 2**20)
    # What the first one has written is gone from the free space, and counts once.
    write_files(first.images, {"pages-1.img": bytes(60 * 2**20)})
    free -= 60 * 2**20
    store.begin("c2", 30 * 2**20)
    first.abandon()
    free += 60 * 2**20
    store.begin("c3", 60 * 2**20)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a file system of its own needs root")
    mount = tmp_path / "disk"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", mount], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", mount], check=True)


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(small_disk: Path) -> None:
    store = DirectoryStore(small_disk / "store", reserve=0)
    kept = save(store, "c1", {"core-1.img": b"registers"})
    staging = store.begin("c2", 4096)
    records = staging.seal()
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"), filler.open("wb") as file:
        file.write(bytes(2**21))
    with pytest.raises(InsufficientResources, match="disk is full"):
        staging.commit(manifest_of("c2", records))
    staging.abandon()
    filler.unlink()

    assert store.list() == [kept]
    assert os.listdir(small_disk / "store") == ["c1"]
    save(store, "c2", {})


def test_a_failing_disk_fails_the_save_only(
    store: DirectoryStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = store.begin("c1", 0)
    write_files(staging.images, SOME_FILES)

    def broken(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(SaveFailed, match="Input/output error"):
            staging.seal()
    records = staging.seal()
    with monkeypatch.context() as patch:
        # The commit's last step: the name is there already, and has to go again.
        patch.setattr(
            "jupyter_checkpoints.store.directory.sync_directory",
            lambda path: broken(0) if path == root else None,
        )
        with pytest.raises(SaveFailed):
            staging.commit(manifest_of("c1", records))
    assert store.list() == []
    staging.commit(manifest_of("c1", records))
    assert len(store.list()) == 1


def test_a_file_that_vanishes_during_a_save_fails_it(store: DirectoryStore) -> None:
    staging = store.begin("c1", 0)
    shutil.rmtree(staging.images)
    with pytest.raises(SaveFailed):
        staging.seal()
    staging.abandon()
