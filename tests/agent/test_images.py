"""Images on a real file system: building, importing (hostile archives too), removing."""

from __future__ import annotations

import multiprocessing
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from jupyter_checkpoints import layout
from jupyter_checkpoints.agent import image_archive
from jupyter_checkpoints.agent.image_spec import ImageSpec
from jupyter_checkpoints.agent.images import ImageStore, tree_digest
from jupyter_checkpoints.errors import (
    CheckpointsError,
    Conflict,
    InsufficientResources,
    InvalidRequest,
    NotFound,
)
from jupyter_checkpoints.models import ImageModel

from .archives import (
    blob_name,
    directory,
    docker_save,
    file,
    hardlink,
    layer,
    oci_members,
    symlink,
    write,
)


def quiet(stage: str, message: str) -> None:
    pass


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def imported(store: ImageStore, archive: Path, name: str = "test") -> tuple[ImageModel, Path]:
    image = store.import_archive(archive, name, quiet)
    return image, store.rootfs(image.digest)


def refused(store: ImageStore, archive: Path) -> str:
    """The reason why an archive is refused; nothing of it may be left."""
    with pytest.raises(InvalidRequest) as caught:
        store.import_archive(archive, "test", quiet)
    assert store.list() == []
    assert not list(store.root.glob(".staging-*"))
    return caught.value.reason


BASE = layer(
    directory("usr"),
    directory("usr/lib"),
    symlink("lib", "usr/lib"),
    directory("etc", mode=0o750),
    file("etc/passwd", b"root:x:0:0\n", uid=3, gid=4),
    file("usr/lib/tool", b"#!/bin/sh\n", mode=0o4755),
    hardlink("usr/lib/same", "usr/lib/tool"),
    file("etc/old/one", b"1"),
    file("etc/old/two", b"2"),
    file("etc/gone", b"bye"),
)
CHANGES = layer(
    file("lib/module.py", b"x = 1\n"),  # through the link of the layer below
    file("etc/.wh.gone"),
    file("etc/old/three", b"3"),
    file("etc/old/.wh..wh..opq"),
    file("etc/passwd", b"root:x:0:0\nme:x:1:1\n"),
)


@pytest.mark.parametrize("kind", ["docker-save", "gzip", "zstd", "none"])
def test_layers_are_applied_in_order(store: ImageStore, tmp_path: Path, kind: str) -> None:
    archive = tmp_path / "image.tar"
    if kind == "docker-save":
        docker_save(archive, BASE, CHANGES)
    else:
        write(archive, oci_members(BASE, CHANGES, compression=kind))
    image, rootfs = imported(store, archive, "jupyter/test:2026-11")
    assert image.name == "jupyter/test:2026-11"
    assert image.env["PATH"] == "/bin:/opt/bin"
    assert image.env["GREETING"] == "hello=you"
    assert image.cwd == "/home"
    assert (rootfs / "usr/lib/module.py").read_text() == "x = 1\n"
    assert os.readlink(rootfs / "lib") == "usr/lib"
    assert not (rootfs / "etc/gone").exists()
    assert sorted(p.name for p in (rootfs / "etc/old").iterdir()) == ["three"]
    assert (rootfs / "etc/passwd").read_text().endswith("me:x:1:1\n")
    tool = (rootfs / "usr/lib/tool").stat()
    assert stat.S_IMODE(tool.st_mode) == 0o4755
    assert tool.st_mtime == 1_700_000_000
    assert tool.st_ino == (rootfs / "usr/lib/same").stat().st_ino
    assert stat.S_IMODE((rootfs / "etc").stat().st_mode) == 0o750
    assert stat.S_IMODE(rootfs.stat().st_mode) == 0o755
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700
    init = rootfs / layout.INIT_PATH.lstrip("/")
    said = subprocess.run([init, "--version"], capture_output=True, text=True, check=True)
    assert "tini" in said.stdout


def test_a_compressed_archive_gives_the_same_image(store: ImageStore, tmp_path: Path) -> None:
    members = oci_members(BASE, CHANGES)
    plain, _ = imported(store, write(tmp_path / "a.tar", members), "plain")
    packed, _ = imported(store, write(tmp_path / "a.tar.gz", members, "w:gz"), "packed")
    assert packed.digest == plain.digest
    assert [image.name for image in store.list()] == ["plain", "packed"]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (file("/etc/shadow", b"x"), "absolute"),
        (file("../escape", b"x"), "leads out"),
        (file("usr/../../escape", b"x"), "leads out"),
        (file("usr/device", type=b"3", devmajor=8), "device"),
        (file("usr/device", type=b"4", devmajor=8), "device"),
        (hardlink("usr/shadow", "../../etc/shadow"), "leads out"),
        (hardlink("usr/shadow", "/etc/shadow"), "absolute"),
        (hardlink("usr/shadow", "etc/absent"), "No such file"),
        (file("usr/.wh..", b""), "names no file"),
        (file("usr/contiguous", uid=2**32 - 1), "owner"),
        (file("etc/passwd/below", b"x"), "not a directory"),
    ],
)
def test_hostile_entries_are_refused(
    store: ImageStore, tmp_path: Path, entry: tuple[object, bytes], reason: str
) -> None:
    hostile = layer(file("etc/passwd", b"x"), entry)  # type: ignore[arg-type]
    assert reason in refused(store, docker_save(tmp_path / "a.tar", hostile))


def test_the_rest_of_a_refused_layer_is_not_waited_for(store: ImageStore, tmp_path: Path) -> None:
    hostile = layer(file("/etc/shadow", b"x"), file("large", os.urandom(3_000_000)))
    assert "absolute" in refused(store, docker_save(tmp_path / "a.tar", hostile))
    packed = write(tmp_path / "b.tar", oci_members(hostile, compression="zstd"))
    assert "absolute" in refused(store, packed)


def test_links_do_not_lead_out_of_the_tree(store: ImageStore, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("safe")
    lower = layer(
        symlink("absolute", str(outside)),
        symlink("climbing", "../../../../../../../.." + str(outside)),
        directory(str(outside).lstrip("/")),
        symlink(".jupyter-checkpoints", str(outside)),
    )
    upper = layer(
        file("absolute/victim", b"overwritten"),
        file("climbing/made", b"inside"),
        file("absolute/.wh..wh..opq"),
    )
    _, rootfs = imported(store, docker_save(tmp_path / "a.tar", lower, upper))
    assert (outside / "victim").read_text() == "safe"
    assert [p.name for p in outside.iterdir()] == ["victim"]
    inside = rootfs / str(outside).lstrip("/")
    assert {p.name for p in inside.iterdir()} == {"victim", "made"}
    assert (rootfs / layout.INIT_PATH.lstrip("/")).is_file()
    assert not (rootfs / ".jupyter-checkpoints").is_symlink()


def test_a_link_to_nowhere_is_no_directory(store: ImageStore, tmp_path: Path) -> None:
    hostile = layer(symlink("gone", "/absent/directory"), file("gone/file", b"x"))
    assert "not a directory" in refused(store, docker_save(tmp_path / "a.tar", hostile))


def test_devices_of_dev_are_left_out(store: ImageStore, tmp_path: Path) -> None:
    archive = docker_save(tmp_path / "a.tar", layer(file("dev/null", type=b"3"), file("etc/x")))
    _, rootfs = imported(store, archive)
    assert not (rootfs / "dev/null").exists()


def test_attributes_of_the_overlay_are_not_taken(store: ImageStore, tmp_path: Path) -> None:
    attributes = {
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
        "SCHILY.xattr.user.note": "kept",
    }
    archive = docker_save(tmp_path / "a.tar", layer(file("usr/tool", b"x", pax_headers=attributes)))
    _, rootfs = imported(store, archive)
    assert os.listxattr(rootfs / "usr/tool") == ["user.note"]


def test_a_changed_blob_is_refused(store: ImageStore, tmp_path: Path) -> None:
    other = layer(file("etc/other", b"x" * 5000))
    members = oci_members(BASE, compression="none")
    members[blob_name(BASE)] = other
    assert "digest" in refused(store, write(tmp_path / "a.tar", members))
    members = oci_members(BASE, compression="gzip")
    (name,) = (n for n, content in members.items() if content[:2] == b"\x1f\x8b")
    members[name] = members[name][:-20]
    assert "damaged" in refused(store, write(tmp_path / "b.tar", members))
    del members[name]
    assert "missing" in refused(store, write(tmp_path / "c.tar", members))


def test_a_layer_that_the_configuration_does_not_know_is_refused(
    store: ImageStore, tmp_path: Path
) -> None:
    archive = docker_save(tmp_path / "a.tar", BASE)
    changed = archive.read_bytes().replace(b"root:x:0:0", b"evil:x:0:0")
    archive.write_bytes(changed)
    assert "configuration" in refused(store, archive)


def test_other_machines_and_other_files_are_refused(store: ImageStore, tmp_path: Path) -> None:
    other = docker_save(tmp_path / "a.tar", BASE, architecture="riscv64")
    assert "riscv64" in refused(store, other)
    text = tmp_path / "text.tar"
    text.write_bytes(b"hello")
    assert "tar" in refused(store, text)
    assert "neither" in refused(store, write(tmp_path / "b.tar", {"hello": b"x"}))
    with pytest.raises(NotFound):
        store.import_archive(tmp_path / "absent.tar", "test", quiet)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidRequest):
        store.import_archive(tmp_path / "pipe", "test", quiet)


def test_size_is_bounded(tmp_path: Path) -> None:
    archive = docker_save(tmp_path / "a.tar", layer(file("big", bytes(3_000_000))))
    (tmp_path / "rootfs").mkdir()
    with pytest.raises((InvalidRequest, InsufficientResources)) as caught:
        image_archive.unpack_archive(
            archive, tmp_path / "rootfs", tmp_path, quiet, max_bytes=1_000_000
        )
    assert "1000000 bytes" in str(caught.value)


def test_a_layer_that_never_ends_is_stopped(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeros after the end of a tar compress a thousandfold and add no file."""
    monkeypatch.setattr(image_archive, "MAX_ENTRIES", 10)
    (tmp_path / "rootfs").mkdir()
    members = oci_members(BASE + bytes(4_000_000))
    archive = write(tmp_path / "a.tar", members)
    with pytest.raises(InvalidRequest, match="larger than an image may be"):
        image_archive.unpack_archive(
            archive, tmp_path / "rootfs", tmp_path, quiet, max_bytes=1_000_000
        )


def test_names_tags_and_prefixes(store: ImageStore, tmp_path: Path) -> None:
    first, rootfs = imported(store, docker_save(tmp_path / "a.tar", BASE), "one")
    second, _ = imported(store, docker_save(tmp_path / "b.tar", CHANGES), "one:2")
    assert store.resolve("one") == store.resolve("one:latest") == first
    assert store.resolve("one:2").digest == second.digest
    assert store.resolve(first.digest[:12]).digest == first.digest
    with pytest.raises(NotFound) as caught:
        store.resolve("two")
    assert "one, one:2" in caught.value.reason
    with pytest.raises(NotFound, match="default"):
        store.resolve("")
    with pytest.raises(InvalidRequest):
        store.import_archive(tmp_path / "a.tar", "../up", quiet)
    # The name goes to a newer image; the former one stays, nameless
    imported(store, docker_save(tmp_path / "c.tar", BASE, CHANGES), "one")
    assert store.rootfs(first.digest) == rootfs
    assert sorted(image.name for image in store.list()) == ["", "one", "one:2"]


def test_removing(store: ImageStore, tmp_path: Path) -> None:
    archive = docker_save(tmp_path / "a.tar", BASE)
    image, rootfs = imported(store, archive, "one")
    imported(store, archive, "two")
    store.remove("two", in_use={image.digest})  # a name only
    assert rootfs.is_dir()
    with pytest.raises(Conflict):
        store.remove("one", in_use={image.digest})
    assert store.resolve("one").digest == image.digest
    store.remove(image.digest[:8])
    assert store.list() == []
    assert not rootfs.exists()
    with pytest.raises(NotFound):
        store.rootfs(image.digest)


def test_the_digest_tells_every_difference(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    path = tree / "sub" / "file"
    path.write_text("content")
    seen = [tree_digest(tree, {}, "/")]
    os.utime(path, (1, 1))
    assert tree_digest(tree, {}, "/") == seen[0]
    changes: list[Callable[[], object]] = [
        lambda: path.chmod(0o600),
        lambda: os.chown(path, 1, 0),
        lambda: os.setxattr(path, "user.a", b"1"),
        lambda: path.write_text("CONTENT"),
        lambda: path.rename(tree / "sub" / "other"),
        lambda: os.symlink("a", tree / "link"),
        lambda: os.symlink("b", tree / "new"),
        lambda: os.replace(tree / "new", tree / "link"),
        lambda: (tree / "empty").mkdir(),
    ]
    for change in changes:
        change()
        seen.append(tree_digest(tree, {}, "/"))
    seen.append(tree_digest(tree, {"A": "1"}, "/"))
    assert len({digest for digest, _ in seen}) == len(seen)


def test_abandoned_work_is_removed_and_work_at_hand_is_not(
    store: ImageStore, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    abandoned = store.root / ".staging-old"
    (abandoned / "rootfs").mkdir(parents=True)
    archive = docker_save(tmp_path / "a.tar", BASE)

    def meanwhile(stage: str, message: str) -> None:
        if stage == "layers":
            ImageStore(store.root).import_archive(archive, "inner", quiet)

    store.import_archive(archive, "outer", meanwhile)
    assert not abandoned.exists()
    assert sorted(image.name for image in store.list()) == ["inner", "outer"]


TINY = ImageSpec(
    suite="trixie", packages=["procps"], env={"COLOUR": "blue"}, run=["echo $COLOUR > /note"]
)


def test_building(store: ImageStore) -> None:
    lines: list[tuple[str, str]] = []
    image = store.build(TINY, "tiny", lambda stage, message: lines.append((stage, message)))
    rootfs = store.rootfs(image.digest)
    assert (rootfs / "note").read_text() == "blue\n"
    assert image.env["COLOUR"] == "blue"
    assert {"packages", "run", "commit"} <= {stage for stage, _ in lines}
    assert "jovyan:x:1000:1000:" in (rootfs / "etc/passwd").read_text()
    # Nothing of this machine, of the building, and no name of its own
    assert (rootfs / "etc/machine-id").read_bytes() == b""
    assert (rootfs / "etc/resolv.conf").read_bytes() == b""
    assert not (rootfs / "etc/hostname").exists()
    for empty in ("dev", "proc", "run", "tmp", "var/lib/apt/lists", "var/cache/apt"):
        assert list((rootfs / empty).iterdir()) == [], empty
    inside = subprocess.run(
        ["chroot", rootfs, "dpkg-query", "--show", "procps", "passwd", "ca-certificates"],
        check=True,
        capture_output=True,
    )
    assert b"procps" in inside.stdout


def test_a_failed_build_leaves_nothing_and_says_why(store: ImageStore) -> None:
    broken = msgspec.structs.replace(TINY, run=["echo so it goes >&2; false"])
    with pytest.raises(InvalidRequest, match="so it goes"):
        store.build(broken, "broken", quiet)
    with pytest.raises(CheckpointsError, match="no-such-package"):
        store.build(ImageSpec(suite="trixie", packages=["no-such-package"]), "broken", quiet)
    assert store.list() == []
    assert not list(store.root.glob(".staging-*"))


def _import_many(root: Path, archive: Path, name: str) -> None:
    for number in range(5):
        ImageStore(root).import_archive(archive, f"{name}:{number}", quiet)


def test_processes_share_a_store(store: ImageStore, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    children = [
        context.Process(
            target=_import_many,
            args=(store.root, docker_save(tmp_path / f"{name}.tar", content), name),
        )
        for name, content in (("one", BASE), ("two", CHANGES), ("three", BASE))
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert len(store.list()) == 15
    assert len({image.digest for image in store.list()}) == 2
