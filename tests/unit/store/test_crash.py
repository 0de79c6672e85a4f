"""Killed with SIGKILL at any moment: committed checkpoints are whole, and nothing is left."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jupyter_checkpoints.store.packs import PackStore
from jupyter_checkpoints.store.store import Store

from .saving import BACKENDS

PROJECT = Path(__file__).parents[3]


def driver(*args: object) -> list[str]:
    return [sys.executable, "-m", "tests.unit.store.crash_driver", *map(str, args)]


@pytest.fixture(params=BACKENDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def assert_whole(kind: str, root: Path, after: object) -> set[str]:
    """All that is listed is intact, and there is nothing but that; the ids."""
    backend = BACKENDS[kind]()
    try:
        store = backend.make(root)
        ids = _whole(store, root, after)
        if isinstance(store, PackStore):
            needed = {pack for name in ids for pack in store.map(name).packs}
            there = {path.stem for path in store.packs.iterdir() if path.name != "lock"}
            assert there == needed, after
        return ids
    finally:
        backend.close()


def _whole(store: Store, root: Path, after: object) -> set[str]:
    store.collect()
    manifests = store.list()
    for manifest in manifests:
        report = store.verify(manifest)
        assert report.ok, (after, report)
    ids = {manifest.checkpoint.id for manifest in manifests}
    assert ids == set(os.listdir(root)), after
    return ids


def test_killed_at_every_call(kind: str, tmp_path: Path) -> None:
    done = subprocess.run(
        driver("sweep", kind, tmp_path), cwd=PROJECT, check=True, capture_output=True, timeout=240
    )
    count = int(done.stdout)
    assert count > 50
    outcomes = []
    for number in range(1, count + 1):
        root = tmp_path / f"{number:04}" / "store"
        ids = assert_whole(kind, root, number)
        assert "kept" in ids
        assert "lost" not in ids
        backend = BACKENDS[kind]()
        assert backend.make(root).load("kept").checkpoint.name in ("", "kept")
        backend.close()
        outcomes.append(("copy" in ids) + ("new" in ids) + ("doomed" not in ids))
    # Each of the three happened once, and in this order.
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {0, 1, 2, 3}


def test_killed_at_any_time(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "store"
    at = random.Random(0)
    saved: set[str] = set()
    deleted: set[str] = set()
    for seed in range(30):
        with subprocess.Popen(
            driver("loop", kind, root, seed), cwd=PROJECT, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            # Somewhere within a save that follows the first one.
            first = process.stdout.readline()
            time.sleep(at.uniform(0, 0.1))
            process.kill()
            promises = [first, *process.stdout]
        assert first.startswith("saved")
        for promise in promises:
            if promise.endswith("\n"):
                word, name = promise.split()
                (saved if word == "saved" else deleted).add(name)
        ids = assert_whole(kind, root, seed)
        # A deletion that was announced may have happened or not; then it stays as it is.
        assert saved - deleted <= ids
        saved, deleted = set(ids), set()
