"""Which notebook a runtime belongs to: a small database of the user's own.

A notebook carries its runtime's id in its metadata, and that is enough until files are copied,
moved and deleted behind our back. What this database adds: the place where each runtime's
notebook was last seen, ids that a copy still carries although it has a runtime of its own, and
when a notebook was deleted. Several servers of a user share it. All methods block for a few
milliseconds: call them in a thread.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from jupyter_core.paths import jupyter_data_dir
from msgspec import Struct

#: What places begin with where notebooks are no files.
NO_FILE = "contents:"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runtimes (
    runtime TEXT PRIMARY KEY,
    place TEXT NOT NULL,
    carried TEXT NOT NULL DEFAULT '',
    deleted TEXT NOT NULL DEFAULT '',
    source TEXT NOT NULL DEFAULT '',
    file_id TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS runtimes_place ON runtimes (place);
"""
#: Columns that earlier releases did not have.
_ADDED = ("source", "file_id")


class Entry(Struct, frozen=True, kw_only=True):
    """One runtime and its notebook."""

    runtime: str
    place: str
    """An absolute path, or ``contents:PATH`` where notebooks are no files."""
    carried: str = ""
    """The id that the notebook's metadata may still hold instead: it is a copy."""
    deleted: str = ""
    """When the notebook was deleted (ISO 8601, UTC), or empty."""
    source: str = ""
    """The runtime that it is a remix of, or empty."""
    file_id: str = ""
    """What jupyter_server_fileid calls the notebook's file, where that is installed."""


def default_file() -> Path:
    """Where the user's database is."""
    return Path(jupyter_data_dir()) / "runtime-checkpoints" / "runtimes.sqlite"


class Registry:
    """The database in ``file``, which is made when it is first needed."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file or default_file()

    def at(self, place: str) -> Entry | None:
        """The runtime of the notebook at ``place``, unless that was deleted."""
        with self._open() as database:
            row = database.execute(
                "SELECT * FROM runtimes WHERE place = ? AND deleted = '' ORDER BY rowid DESC",
                (place,),
            ).fetchone()
        return None if row is None else Entry(**row)

    def find(self, runtime: str) -> Entry | None:
        """The entry of a runtime."""
        with self._open() as database:
            row = database.execute(
                "SELECT * FROM runtimes WHERE runtime = ?", (runtime,)
            ).fetchone()
        return None if row is None else Entry(**row)

    def of_file(self, file_id: str) -> Entry | None:
        """The entry of the notebook with this id, unless that was deleted."""
        with self._open() as database:
            row = database.execute(
                "SELECT * FROM runtimes WHERE file_id = ? AND deleted = ''", (file_id,)
            ).fetchone()
        return None if row is None else Entry(**row)

    def all(self) -> list[Entry]:
        """Every runtime known."""
        with self._open() as database:
            return [Entry(**row) for row in database.execute("SELECT * FROM runtimes")]

    def put(self, entry: Entry) -> None:
        """Add or replace an entry; a place has one runtime, its earlier one is let go."""
        with self._open() as database:
            database.execute(
                "DELETE FROM runtimes WHERE place = ? AND deleted = '' AND runtime != ?",
                (entry.place, entry.runtime),
            )
            database.execute(
                "INSERT OR REPLACE INTO runtimes "
                "(runtime, place, carried, deleted, source, file_id) VALUES "
                "(:runtime, :place, :carried, :deleted, :source, :file_id)",
                msgspec.structs.asdict(entry),
            )

    def move(self, old: str, new: str) -> None:
        """A notebook, or a directory with all in it, has another place now."""
        with self._open() as database:
            for entry in self._below(database, old):
                database.execute(
                    "UPDATE runtimes SET place = ? WHERE runtime = ?",
                    (new + entry.place[len(old) :], entry.runtime),
                )

    def mark_deleted(self, place: str, moment: str) -> list[Entry]:
        """A notebook, or a directory with all in it, was deleted; the entries it concerns."""
        with self._open() as database:
            found = self._below(database, place)
            for entry in found:
                database.execute(
                    "UPDATE runtimes SET deleted = ? WHERE runtime = ?", (moment, entry.runtime)
                )
        return found

    def forget(self, runtime: str) -> None:
        """Remove an entry."""
        with self._open() as database:
            database.execute("DELETE FROM runtimes WHERE runtime = ?", (runtime,))

    @staticmethod
    def _below(database: sqlite3.Connection, place: str) -> list[Entry]:
        rows = database.execute("SELECT * FROM runtimes WHERE deleted = ''")
        entries = [Entry(**row) for row in rows]
        return [e for e in entries if e.place == place or e.place.startswith(place + "/")]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        database = sqlite3.connect(self.file, timeout=30)
        try:
            database.row_factory = _as_dict
            database.executescript(_SCHEMA)
            there = {row["name"] for row in database.execute("PRAGMA table_info(runtimes)")}
            for column in _ADDED:
                if column not in there:
                    database.execute(
                        f"ALTER TABLE runtimes ADD COLUMN {column} TEXT NOT NULL DEFAULT ''"
                    )
            with database:
                yield database
        finally:
            database.close()


def place_of(root: str | os.PathLike[str] | None, path: str) -> str:
    """The place of a notebook that contents call ``path``; ``root`` is where they are files."""
    if not root:
        return NO_FILE + path.strip("/")
    return os.path.normpath(os.path.join(os.fspath(root), path.strip("/")))


def _as_dict(cursor: sqlite3.Cursor, row: tuple[str, ...]) -> dict[str, str]:
    return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}
