"""Whose runtime it is, when notebooks are moved, copied and deleted."""

from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from jupyter_checkpoints.registry import Entry, Registry, place_of


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "data" / "runtimes.sqlite")


def test_found_by_place_and_by_runtime(registry: Registry) -> None:
    assert registry.at("/a/n.ipynb") is None and registry.find("r") is None
    entry = Entry(runtime="r", place="/a/n.ipynb", carried="q")
    registry.put(entry)
    assert registry.at("/a/n.ipynb") == registry.find("r") == entry
    assert Registry(registry.file).all() == [entry]
    assert registry.file.parent.stat().st_mode & 0o777 == 0o700


def test_a_database_of_an_earlier_release(registry: Registry) -> None:
    registry.file.parent.mkdir(parents=True)
    with sqlite3.connect(registry.file) as database:
        database.execute(
            "CREATE TABLE runtimes (runtime TEXT PRIMARY KEY, place TEXT NOT NULL, "
            "carried TEXT NOT NULL DEFAULT '', deleted TEXT NOT NULL DEFAULT '')"
        )
        database.execute("INSERT INTO runtimes VALUES ('r', '/n.ipynb', '', '')")
    database.close()
    assert registry.all() == [Entry(runtime="r", place="/n.ipynb")]
    newer = Entry(runtime="r", place="/n.ipynb", source="s", file_id="f")
    registry.put(newer)
    assert registry.of_file("f") == registry.find("r") == newer
    assert registry.of_file("g") is None


def test_a_place_has_one_runtime(registry: Registry) -> None:
    registry.put(Entry(runtime="old", place="/n.ipynb"))
    registry.put(Entry(runtime="new", place="/n.ipynb"))
    assert [e.runtime for e in registry.all()] == ["new"]


def test_moved_with_the_directory_it_is_in(registry: Registry) -> None:
    registry.put(Entry(runtime="r", place="/a/b/n.ipynb"))
    registry.put(Entry(runtime="s", place="/ab/n.ipynb"))
    registry.move("/a", "/c/d")
    assert registry.at("/c/d/b/n.ipynb") == Entry(runtime="r", place="/c/d/b/n.ipynb")
    assert registry.at("/ab/n.ipynb") is not None


def test_deleted_ones_are_kept_but_not_found_at_their_place(registry: Registry) -> None:
    registry.put(Entry(runtime="r", place="/a/n.ipynb"))
    assert [e.runtime for e in registry.mark_deleted("/a", "2026-01-01")] == ["r"]
    assert registry.at("/a/n.ipynb") is None
    registry.put(Entry(runtime="s", place="/a/n.ipynb"))
    assert registry.find("r") == Entry(runtime="r", place="/a/n.ipynb", deleted="2026-01-01")
    registry.forget("r")
    assert registry.find("r") is None


def _put(file: Path, number: int) -> None:
    for n in range(20):
        Registry(file).put(Entry(runtime=f"r{number}-{n}", place=f"/{number}/{n}"))


def test_several_servers_share_it(registry: Registry) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_put, args=(registry.file, n)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(registry.all()) == 80


@pytest.mark.parametrize(
    ("root", "path", "place"),
    [
        ("/home/me", "n.ipynb", "/home/me/n.ipynb"),
        ("/home/me/", "/a/n.ipynb", "/home/me/a/n.ipynb"),
        ("", "a/n.ipynb", "contents:a/n.ipynb"),
        (None, "/n.ipynb", "contents:n.ipynb"),
    ],
)
def test_places(root: str | None, path: str, place: str) -> None:
    assert place_of(root, path) == place
