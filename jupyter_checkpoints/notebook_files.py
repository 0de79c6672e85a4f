"""Notebooks as files, without a server: for the command line.

Everything here blocks.
"""

from __future__ import annotations

import json
import os
import sqlite3
import tempfile
import uuid
from pathlib import Path
from typing import Any

from .errors import Conflict, InvalidRequest, NotAllowed, NotFound
from .metadata import NotebookSettings, read_settings, write_settings
from .registry import Entry, Registry, place_of


class NotebookFile:
    """One notebook. What is not changed stays as it is, to the key's order.

    Raises
    ------
    NotFound, InvalidRequest, NotAllowed
        If there is none, if it is none, or if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.content: dict[str, Any] = json.loads(path.read_bytes())
            self.metadata: dict[str, Any] = self.content["metadata"]
            cells = self.content["cells"]
        except FileNotFoundError as error:
            raise NotFound(f"There is no notebook {path}.") from error
        except OSError as error:
            raise NotAllowed(f"{path} cannot be read.", reason=str(error)) from error
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidRequest(f"{path} is no notebook.", reason=str(error)) from error
        if not isinstance(self.metadata, dict) or not isinstance(cells, list):
            raise InvalidRequest(f"{path} is no notebook.")

    @property
    def place(self) -> str:
        """How the registry calls it."""
        return place_of("/", os.path.abspath(self.path))

    def settings(self) -> NotebookSettings:
        """Its settings. ``InvalidRequest`` if they cannot be read."""
        settings, problem = read_settings(self.metadata)
        if problem:
            raise InvalidRequest(f"The settings in {self.path} cannot be read.", reason=problem)
        return settings

    def change(self, **settings: Any) -> None:
        """Change settings and write the file."""
        write_settings(self.metadata, **settings)
        self.write()

    def write(self, path: Path | None = None) -> None:
        """Write the notebook, to its own place or as another file, at once or not at all."""
        path = path or self.path
        try:
            fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            with open(fd, "w", encoding="utf-8") as file:
                json.dump(self.content, file, indent=1, ensure_ascii=False)
                file.write("\n")
            mode = path.stat().st_mode & 0o7777 if path.exists() else 0o644
            os.chmod(temporary, mode)
            os.replace(temporary, path)
        except OSError as error:
            raise NotAllowed(f"{path} cannot be written.", reason=str(error)) from error

    def runtime(self) -> str:
        """Its runtime; empty if it has none yet."""
        carried = self.settings().runtime
        try:
            entry = Registry().at(self.place)
        except (sqlite3.Error, OSError):
            return carried
        if entry is not None and carried in ("", entry.runtime, entry.carried):
            return entry.runtime
        return carried

    def required_runtime(self) -> str:
        """Its runtime. ``Conflict`` if it has none."""
        runtime = self.runtime()
        if not runtime:
            raise Conflict(
                f"{self.path} has no runtime yet: nothing of it was ever saved.",
                hint=f"`jupyter checkpoints enable {self.path}`, then start its kernel.",
            )
        return runtime

    def own_runtime(self) -> str:
        """Its runtime, given to it now if it has none, or one that is another notebook's."""
        carried = runtime = self.runtime()
        if not runtime or self._is_anothers(runtime):
            runtime = str(uuid.uuid4())
            self.change(runtime=runtime)
        self.register(runtime, source=carried if carried != runtime else "")
        return runtime

    def _is_anothers(self, runtime: str) -> bool:
        """Whether this is a copy of a notebook that is still there."""
        try:
            entry = Registry().find(runtime)
        except (sqlite3.Error, OSError):
            return False
        return (
            entry is not None
            and entry.place != self.place
            and not entry.deleted
            and os.path.exists(entry.place)
        )

    def register(self, runtime: str, source: str = "") -> None:
        """Let the user's servers know whose runtime it is, and which one it is a remix of."""
        try:
            registry = Registry()
            entry = registry.find(runtime)
            if entry is None or entry.place != self.place:
                source = source or (entry.source if entry is not None else "")
                registry.put(Entry(runtime=runtime, place=self.place, source=source))
        except (sqlite3.Error, OSError) as error:
            raise NotAllowed(
                "The database of notebooks cannot be written.", reason=str(error)
            ) from error
