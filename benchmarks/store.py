"""``python -m benchmarks.store [--json] [--sizes 0.25,1]``: what the store alone needs, and holds.

Memory as CRIU writes it, of random numbers, is saved whole, and again after 0 %, 1 % and 10 % of
its pages have changed, here and there; beside it what writing and flushing the same bytes takes.
Needs no agent and no root.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from rich.console import Console
from rich.table import Table

from jupyter_checkpoints.models import CheckpointModel, ConnectionInfo, HostFacts
from jupyter_checkpoints.store.directory import DirectoryStore
from jupyter_checkpoints.store.packs import PackStore
from jupyter_checkpoints.store.store import MANIFEST_VERSION, FileRecord, Manifest, Store

from . import floor

_PAGE = 4096
_GIB = 2**30
#: Images besides memory, as a small kernel has them.
_SMALL = {f"core-{n}.img": 2000 for n in range(20)}


class Line(Struct, frozen=True, kw_only=True):
    """One save; seconds are medians."""

    store: str
    gib: float
    changed: float | None
    """The share of pages changed since the last save; ``None``: there was none."""
    dump_s: float
    """Writing the images, which CRIU does; the kernel stands still meanwhile."""
    save_s: float
    """From then to the commit."""
    floor_s: float
    """Writing and flushing the same images."""
    bytes_written: int
    """What the store holds more than before."""


class Report(Struct, frozen=True, kw_only=True):
    """All of it; ``ten`` is what ten checkpoints with 1 % changed each hold, in parts of one."""

    lines: list[Line]
    ten: dict[str, float]


class Memory:
    """Random pages, some of which change from save to save."""

    def __init__(self, size: int) -> None:
        self._random = np.random.default_rng(0)
        words = (size // _PAGE, _PAGE // 8)
        self.pages = self._random.integers(0, 2**64 - 1, words, np.uint64)

    def change(self, share: float) -> None:
        """Change one word in a share of the pages, here and there."""
        count = round(len(self.pages) * share)
        chosen = self._random.choice(len(self.pages), count, replace=False)
        self.pages[chosen, 5] += np.uint64(1)

    def write(self, directory: Path) -> None:
        """The images of this memory."""
        with (directory / "pages-1.img").open("wb", buffering=0) as file:
            view = memoryview(self.pages.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
            while view:
                view = view[file.write(view[: 2**24]) :]
        for name, size in _SMALL.items():
            (directory / name).write_bytes(os.urandom(size // 4) + bytes(size - size // 4))


def measure(kind: str, gib: float, directory: Path, repeats: int) -> tuple[list[Line], float]:
    """The lines of one store and size, and what ten checkpoints hold."""
    lines = []
    with (
        tempfile.TemporaryDirectory(dir=directory) as temporary,
        _opened(kind, Path(temporary)) as store,
    ):
        memory = Memory(int(gib * _GIB))
        number, parent = 0, ""

        def save(share: float) -> tuple[float, float, int]:
            nonlocal number, parent
            memory.change(share)
            number += 1
            before = _held(Path(temporary))
            staging = store.begin(f"c{number}", 0, parent)
            began = time.perf_counter()
            memory.write(staging.images)
            dumped = time.perf_counter()
            staging.commit(_manifest(staging.id, staging.seal()))
            done = time.perf_counter()
            parent = staging.id
            return dumped - began, done - dumped, _held(Path(temporary)) - before

        def remove_all() -> None:
            nonlocal parent
            parent = ""
            for manifest in store.list():
                store.delete(manifest.checkpoint.id)
            store.tidy(0)

        for changed in (None, 0.0, 0.01, 0.1):
            floors, found = [], []
            for turn in range(repeats):
                if changed is None:
                    remove_all()
                first = turn % 2 == 0
                if first:
                    floors.append(_floor(Path(temporary), memory.pages.nbytes))
                found.append(save(changed or 0))
                if not first:
                    floors.append(_floor(Path(temporary), memory.pages.nbytes))
            dump, seconds, held = zip(*found, strict=True)
            lines.append(
                Line(
                    store=kind,
                    gib=gib,
                    changed=changed,
                    dump_s=statistics.median(dump),
                    save_s=statistics.median(seconds),
                    floor_s=statistics.median(floors),
                    bytes_written=int(statistics.median(held)),
                )
            )
        remove_all()
        one = save(0)[2]
        for _ in range(9):
            save(0.01)
        return lines, _held(Path(temporary)) / one


@contextmanager
def _opened(kind: str, directory: Path) -> Iterator[Store]:
    makers: dict[str, Callable[[], Store]] = {
        "directory": lambda: DirectoryStore(directory / "checkpoints"),
        "packs": lambda: PackStore(directory / "checkpoints", directory / "packs"),
    }
    store = makers[kind]()
    try:
        yield store
    finally:
        store.close()


def _held(directory: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.name != "floor")


def _floor(directory: Path, size: int) -> float:
    file = directory / "floor"
    try:
        return floor.write_seconds(file, size)
    finally:
        file.unlink()


def _manifest(checkpoint_id: str, files: list[FileRecord]) -> Manifest:
    host = HostFacts(
        arch="",
        cpu_model="",
        cpu_flags=[],
        kernel_release="",
        criu_version="",
        runc_version="",
        engine="",
        pool="",
        boot_id="",
    )
    checkpoint = CheckpointModel(
        id=checkpoint_id,
        kernel_id="kernel",
        uid=0,
        mode="process",
        trigger="manual",
        created="2026-01-01T00:00:00Z",
        image="",
        image_digest="",
        argv=[],
        host=host,
    )
    connection = ConnectionInfo(
        ip="",
        shell_port=1,
        iopub_port=2,
        stdin_port=3,
        control_port=4,
        hb_port=5,
        key="",
    )
    return Manifest(
        version=MANIFEST_VERSION,
        checkpoint=checkpoint,
        connection=connection,
        env={},
        cwd="/",
        files=files,
        tree_digest="",
    )


def show(report: Report, console: Console) -> None:
    """The report as a table."""
    table = Table(title="The store alone")
    for name in (
        "store",
        "memory",
        "changed",
        "CRIU's write",
        "the store's part",
        "floor",
        "ratio",
    ):
        table.add_column(name, justify="left" if name == "store" else "right")
    table.add_column("bytes written", justify="right")
    for line in report.lines:
        table.add_row(
            line.store,
            f"{line.gib:g} GiB",
            "whole" if line.changed is None else f"{line.changed:.0%}",
            f"{line.dump_s:.2f} s",
            f"{line.save_s:.2f} s",
            f"{line.floor_s:.2f} s",
            f"{(line.dump_s + line.save_s) / line.floor_s:.2f}",
            f"{line.bytes_written / 1e6:,.1f} MB",
        )
    console.print(table)
    for name, ratio in report.ten.items():
        console.print(f"Ten checkpoints with 1 % changed each, {name}: {ratio:.2f} times one")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.store", description="Measure the store on this machine."
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument(
        "--sizes",
        type=lambda text: [float(size) for size in text.split(",")],
        default=[0.03, 0.25, 1.0],
        help="GiB of memory, comma-separated (default: 0.03,0.25,1)",
    )
    parser.add_argument("--repeats", type=int, default=3, help="saves of each kind (default: 3)")
    parser.add_argument(
        "--stores", default="packs,directory", help="which stores (default: packs,directory)"
    )
    parser.add_argument(
        "--directory", type=Path, default=Path("/var/tmp"), help="where (default: /var/tmp)"
    )
    arguments = parser.parse_args()
    lines, ten = [], {}
    for kind in arguments.stores.split(","):
        for gib in arguments.sizes:
            found, ratio = measure(kind, gib, arguments.directory, arguments.repeats)
            lines += found
            ten[f"{kind}, {gib:g} GiB"] = ratio
    report = Report(lines=lines, ten=ten)
    if arguments.json:
        print(msgspec.json.encode(report).decode())
    else:
        show(report, Console())


if __name__ == "__main__":
    main()
