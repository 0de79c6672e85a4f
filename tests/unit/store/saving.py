"""Saving checkpoints as the agent does it, and what stores there are."""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from jupyter_checkpoints.models import CheckpointModel, ConnectionInfo, HostFacts
from jupyter_checkpoints.store import envelope
from jupyter_checkpoints.store.directory import DirectoryStore
from jupyter_checkpoints.store.pack import Pack
from jupyter_checkpoints.store.packed import read_map
from jupyter_checkpoints.store.packs import PackStore
from jupyter_checkpoints.store.store import MANIFEST_VERSION, FileRecord, Manifest, Store

HOST = HostFacts(
    arch="x86_64",
    cpu_model="a processor",
    cpu_flags=["sse2"],
    kernel_release="6.1.0",
    criu_version="4.2",
    runc_version="1.1.5",
    engine="embedded",
    pool="btrfs",
    boot_id="b",
)

Files = Mapping[str, bytes | bytearray]
#: One file that is read in one go, one that takes several pieces, an empty one, one further down.
SOME_FILES: dict[str, bytes] = {
    "core-1.img": b"registers",
    "pages-1.img": os.urandom(9 * 2**20 + 17),
    "empty.img": b"",
    "more/pages-2.img": bytes(5 * 2**20),
}


def manifest_of(
    checkpoint_id: str, files: list[FileRecord], created: str = "2026-01-01T00:00:00Z"
) -> Manifest:
    checkpoint = CheckpointModel(
        id=checkpoint_id,
        kernel_id="k1",
        uid=0,
        mode="process",
        trigger="manual",
        created=created,
        image="python3",
        image_digest="d",
        argv=["python3", "-m", "ipykernel"],
        host=HOST,
        pause_seconds=0.1 + 0.2,
    )
    connection = ConnectionInfo(
        ip="10.0.0.2",
        shell_port=20001,
        iopub_port=20002,
        stdin_port=20003,
        control_port=20004,
        hb_port=20005,
        key="secret",
    )
    return Manifest(
        version=MANIFEST_VERSION,
        checkpoint=checkpoint,
        connection=connection,
        env={"LANG": "C.UTF-8"},
        cwd="/root",
        files=files,
        tree_digest="t",
        facts={"address": ["10.0.0.2", 24], "pids": {"init": 1}},
    )


def write_files(directory: Path, files: Files) -> None:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def save(
    store: Store,
    checkpoint_id: str,
    files: Files,
    created: str = "2026-01-01T00:00:00Z",
    parent: str = "",
) -> Manifest:
    """A whole save, as the agent does it."""
    staging = store.begin(checkpoint_id, sum(map(len, files.values())), parent)
    write_files(staging.images, files)
    manifest = manifest_of(checkpoint_id, staging.seal(), created)
    staging.commit(manifest)
    return manifest


def files_of(store: Store, checkpoint_id: str) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as directory:
        store.materialise(checkpoint_id, Path(directory), share=False)
        return content_of(Path(directory))


def content_of(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


class Backend(ABC):
    """One kind of store."""

    def __init__(self) -> None:
        self._open: dict[Path, Store] = {}

    def make(self, root: Path) -> Store:
        """A store at ``root``, which may hold what an earlier one left; that one is closed."""
        if root in self._open:
            self._open[root].close()
        self._open[root] = self._make(root)
        return self._open[root]

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    @abstractmethod
    def _make(self, root: Path) -> Store: ...

    @abstractmethod
    def damage(self, store: Store, checkpoint_id: str, name: str) -> None:
        """Change one byte of an image where it is kept."""


class Directories(Backend):
    def _make(self, root: Path) -> Store:
        return DirectoryStore(root)

    def damage(self, store: Store, checkpoint_id: str, name: str) -> None:
        assert isinstance(store, DirectoryStore)
        flip(store.images(checkpoint_id) / name, 0)


class Packs(Backend):
    def _make(self, root: Path) -> Store:
        return PackStore(root, packs_of(root))

    def damage(self, store: Store, checkpoint_id: str, name: str) -> None:
        assert isinstance(store, PackStore)
        flip(*place_of(store.root, store.packs, checkpoint_id, name))


BACKENDS: dict[str, type[Backend]] = {"directory": Directories, "packs": Packs}


def packs_of(root: Path) -> Path:
    return root.with_name(root.name + ".packs")


def place_of(root: Path, packs: Path, checkpoint_id: str, name: str) -> tuple[Path, int]:
    """The pack that the first page of an image is in, and where its extent begins."""
    content = (root / checkpoint_id / "manifest.json").read_bytes()
    found, _ = envelope.decode(checkpoint_id, content)
    pages = read_map(checkpoint_id, root / checkpoint_id / "pages.map", found.map)
    file = pages.row.file(name)
    assert file is not None
    _, _, index, first = next(pages.between(file.first, file.first + 1))
    pack = Pack(packs, pages.packs[index])
    offset = int(pack.table.where["offset"][pack.extents(first, first + 1)[0]])
    pack.close()
    return packs / f"{pack.id}.pack", offset


def flip(path: Path, offset: int) -> None:
    with path.open("rb+") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
