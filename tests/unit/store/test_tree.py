"""The tree digest: the same for the same files, another one for any difference that shows."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_checkpoints.errors import CheckpointDamaged
from jupyter_checkpoints.store.content import PIECE, UNIT, ContentHasher
from jupyter_checkpoints.store.tree import tree_digest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def plant(root: Path) -> None:
    """A tree with one of everything a user can make."""
    (root / "d" / "deep").mkdir(parents=True)
    (root / "d" / "file").write_bytes(b"content")
    (root / "d" / "deep" / "large").write_bytes(b"\1" * (PIECE + 5))
    (root / "d" / "empty").touch()
    os.link(root / "d" / "file", root / "d" / "other")
    (root / "link").symlink_to("d/file")
    (root / "dangling").symlink_to("/nowhere")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(root / "socket"))
    os.setxattr(root / "d", "user.note", b"hello")
    os.mkdir(os.fsencode(root) + b"/not-utf8-\xff")
    for path in root.rglob("*"):
        if not path.is_symlink() and path.is_file():
            path.chmod(0o640)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    root.mkdir(mode=0o755)
    plant(root)
    return root


def test_a_copy_has_the_same_digest(tree: Path, tmp_path: Path) -> None:
    subprocess.run(["cp", "-a", tree, tmp_path / "copy"], check=True)
    for path in (tmp_path / "copy").rglob("*"):
        os.utime(path, (1, 1), follow_symlinks=False)
    assert tree_digest(tree)[0] == tree_digest(tmp_path / "copy")[0]


def test_the_bytes_held_count_each_file_once(tree: Path) -> None:
    _, held = tree_digest(tree)
    assert PIECE < held < PIECE + 2**17


Change = Callable[[Path], object]
CHANGES: dict[str, Change] = {
    "content": lambda t: (t / "d" / "file").write_bytes(b"contenT"),
    "longer": lambda t: (t / "d" / "file").write_bytes(b"content\0"),
    "permissions": lambda t: (t / "d" / "file").chmod(0o600),
    "setuid": lambda t: (t / "d" / "file").chmod(0o4640),
    "directory's permissions": lambda t: (t / "d").chmod(0o700),
    "root's permissions": lambda t: t.chmod(0o700),
    "name": lambda t: (t / "d" / "file").rename(t / "d" / "file2"),
    "place": lambda t: (t / "d" / "empty").rename(t / "empty"),
    "removed": lambda t: (t / "d" / "empty").unlink(),
    "made": lambda t: (t / "new").mkdir(),
    "no longer the same file": lambda t: replaced(
        t / "d" / "other", lambda p: p.write_bytes(b"content")
    ),
    "target": lambda t: replaced(t / "link", lambda p: p.symlink_to("d/file2")),
    "no longer a link": lambda t: replaced(t / "link", lambda p: shutil.copy(t / "d" / "file", p)),
    "no longer a pipe": lambda t: replaced(t / "fifo", Path.touch),
    "no longer a file": lambda t: replaced(t / "d" / "empty", Path.mkdir),
    "attribute": lambda t: os.setxattr(t / "d", "user.note", b"hullo"),
    "attribute made": lambda t: os.setxattr(t / "d", "user.more", b""),
    "attribute removed": lambda t: os.removexattr(t / "d", "user.note"),
}
CHANGES_BY_ROOT: dict[str, Change] = {
    "link's owner": lambda t: os.chown(t / "link", 1, 0, follow_symlinks=False),
    "group": lambda t: os.chown(t / "d" / "file", 0, 1),
    "device made": lambda t: os.mknod(t / "null", 0o20666, os.makedev(1, 3)),
    "opaque": lambda t: os.setxattr(t / "d", "trusted.overlay.opaque", b"y"),
}


@pytest.mark.parametrize(
    "change",
    [pytest.param(change, id=name) for name, change in CHANGES.items()]
    + [pytest.param(change, id=name, marks=needs_root) for name, change in CHANGES_BY_ROOT.items()],
)
def test_every_change_shows(tree: Path, change: Change) -> None:
    before = tree_digest(tree)[0]
    change(tree)
    assert tree_digest(tree)[0] != before


def replaced(path: Path, make: Callable[[Path], object]) -> None:
    mode = path.lstat().st_mode & 0o777
    path.unlink()
    make(path)
    if not path.is_symlink():
        path.chmod(mode)


@needs_root
def test_two_devices_differ(tree: Path) -> None:
    digests = set()
    for minor in (3, 5):
        os.mknod(tree / "device", 0o20666, os.makedev(1, minor))
        digests.add(tree_digest(tree)[0])
        (tree / "device").unlink()
    assert len(digests) == 2


def test_links_are_not_followed(tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"1")
    (tree / "out").symlink_to(outside)
    before = tree_digest(tree)[0]
    outside.write_bytes(b"2")
    assert tree_digest(tree)[0] == before


def test_trees_deeper_than_a_path_may_be_long(tmp_path: Path) -> None:
    def dig(root: Path, content: bytes) -> None:
        root.mkdir()
        fd = os.open(root, os.O_RDONLY)
        for _ in range(1500):
            # Names before and after it, so that the way back up is walked too.
            for name in ("a", "m", "z"):
                os.mkdir(name, dir_fd=fd)
            below = os.open("m", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        file = os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
        os.write(file, content)
        os.close(file)
        os.close(fd)

    for name, content in [("one", b"1"), ("two", b"1"), ("three", b"3")]:
        dig(tmp_path / name, content)
    open_before = len(os.listdir("/proc/self/fd"))
    one, two, three = (tree_digest(tmp_path / name)[0] for name in ("one", "two", "three"))
    assert one == two != three
    assert len(os.listdir("/proc/self/fd")) == open_before
    # pytest's own clean-up is recursive.
    subprocess.run(["rm", "-rf", *tmp_path.iterdir()], check=True)


def test_progress_counts_content(tree: Path) -> None:
    calls: list[tuple[int, int]] = []
    (tree / "sparse").touch()
    os.truncate(tree / "sparse", 2**30)
    assert tree_digest(tree, lambda *at: calls.append(at))[0] == tree_digest(tree)[0]
    assert calls == sorted(calls)
    # Both names of the linked file are in the total, one is read.
    assert calls[-1][1] - calls[-1][0] == len(b"content")


def test_what_cannot_be_read_is_an_error(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointDamaged, match="nowhere"):
        tree_digest(tree / "nowhere")

    def broken(*args: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(CheckpointDamaged, match="Input/output error"):
        tree_digest(tree)


# ---- content

OFFSETS = st.integers(0, 4 * UNIT) | st.sampled_from([0, UNIT - 1, UNIT, PIECE - 1, PIECE])
WRITES = st.lists(st.tuples(OFFSETS, st.binary(min_size=1, max_size=3 * UNIT)), max_size=5)


@settings(max_examples=60, deadline=None)
@given(writes=WRITES, zeros=st.lists(st.tuples(OFFSETS, st.integers(1, UNIT * 2))), tail=OFFSETS)
def test_holes_and_zeros_are_the_same(
    writes: list[tuple[int, bytes]], zeros: list[tuple[int, int]], tail: int
) -> None:
    with tempfile.TemporaryFile() as sparse, tempfile.TemporaryFile() as full:
        for offset, data in writes:
            os.pwrite(sparse.fileno(), data, offset)
        os.truncate(sparse.fileno(), os.fstat(sparse.fileno()).st_size + tail)
        content = sparse.read()
        for offset, length in zeros:
            if not any(content[offset : offset + length]):
                os.pwrite(sparse.fileno(), content[offset : offset + length], offset)
        os.pwrite(full.fileno(), content, 0)
        with ContentHasher() as hasher:
            one = hasher.sparse_digest(sparse.fileno())
            assert one == hasher.sparse_digest(full.fileno())
            assert hasher.digest(full.fileno()) == (blake3(content).digest(), len(content))
            os.truncate(full.fileno(), len(content) + 1)
            assert one != hasher.sparse_digest(full.fileno())


def test_where_data_is_in_a_sparse_file_matters(tmp_path: Path) -> None:
    digests = set()
    with ContentHasher() as hasher:
        for position in (0, UNIT, 2 * UNIT, 2**30, 2**40 - UNIT):
            with (tmp_path / "sparse").open("wb+") as file:
                os.truncate(file.fileno(), 2**40)
                os.pwrite(file.fileno(), b"\1" * UNIT, position)
                digests.add(hasher.sparse_digest(file.fileno()))
    assert len(digests) == 5


# ---- overlay


@pytest.fixture
def mounts() -> Iterator[Callable[[Path, Path, Path], Path]]:
    """Mounts (lower, directory of upper and work, where) as the engine does; undone at the end."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    made: list[Path] = []

    def mount(lower: Path, layer: Path, where: Path) -> Path:
        for path in (layer / "upper", layer / "work", where):
            path.mkdir(parents=True, exist_ok=True)
        options = f"lowerdir={lower},upperdir={layer}/upper,workdir={layer}/work"
        subprocess.run(
            ["mount", "-t", "overlay", "-o", f"{options},index=on,nfs_export=on", "none", where],
            check=True,
        )
        made.append(where)
        return where

    yield mount
    for where in reversed(made):
        subprocess.run(["umount", where], check=True)


def test_a_writable_layer_that_was_only_mounted_again_is_unchanged(
    tmp_path: Path, mounts: Callable[[Path, Path, Path], Path]
) -> None:
    """Attributes that overlayfs changes by itself, and that a second unpacking changes."""
    for image in ("image", "again"):
        if image == "again":
            # Other inode numbers than the first one's.
            (tmp_path / "between").mkdir()
            plant(tmp_path / "between")
        (tmp_path / image).mkdir()
        plant(tmp_path / image)
    merged = mounts(tmp_path / "image", tmp_path / "layer", tmp_path / "merged")
    upper = tmp_path / "layer" / "upper"
    clean = tree_digest(upper)[0]

    for name in ("d/deep/large", "fifo", "link"):
        (merged / name).unlink()
    with (merged / "d" / "file").open("ab") as file:
        file.write(b"more")
    (merged / "d" / "deep").rmdir()
    (merged / "d" / "deep").mkdir()
    (merged / "dangling").rename(merged / "d" / "dangling")
    assert os.getxattr(upper / "d" / "deep", "trusted.overlay.opaque") == b"y"
    assert (upper / "fifo").is_char_device()
    changed = tree_digest(upper)[0]
    assert changed != clean

    subprocess.run(["cp", "-a", upper, tmp_path / "copy"], check=True)
    (tmp_path / "layer2").mkdir()
    (tmp_path / "copy").rename(tmp_path / "layer2" / "upper")
    for name in ("trusted.overlay.origin", "trusted.overlay.uuid"):
        os.removexattr(tmp_path / "layer2" / "upper", name)
    clone = mounts(tmp_path / "again", tmp_path / "layer2", tmp_path / "clone")
    list(clone.rglob("*"))
    assert tree_digest(tmp_path / "layer2" / "upper")[0] == changed
    (clone / "socket").unlink()
    assert tree_digest(tmp_path / "layer2" / "upper")[0] != changed
    assert tree_digest(upper)[0] == changed
