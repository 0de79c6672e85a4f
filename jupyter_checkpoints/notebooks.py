"""Notebooks: their settings, and which runtime is whose when they are copied, moved and deleted.

The part of the extension's policies that knows the contents manager; no tornado in here.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from jupyter_core.utils import ensure_async
from traitlets.config import LoggingConfigurable

from . import mounts
from .client import AgentClient, connect
from .errors import CheckpointsError, Conflict, NotFound
from .event_schemas import RUNTIME_EVENT, Tell
from .file_ids import FileIds
from .metadata import NotebookSettings, read_settings, write_settings
from .models import CheckpointModel, CopyRequest
from .registry import NO_FILE, Entry, Registry, place_of

#: Cells with this tag are run after a resume, before anybody else's.
ON_RESUME_TAG = "on-resume"


class Notebooks(LoggingConfigurable):
    """See the module. Made once, by :class:`~jupyter_checkpoints.runtimes.Runtimes`.

    Parameters
    ----------
    tell:
        Emits an event.
    save_original:
        Called with the runtime of a notebook that is being copied: what runs of it and has
        changed since its last checkpoint is saved first.
    """

    def __init__(
        self,
        *,
        contents: Any,
        registry: Registry,
        file_ids: FileIds,
        tell: Tell,
        save_original: Callable[[str], Awaitable[None]],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.registry = registry
        self._file_ids = file_ids
        self._contents = contents
        self._tell = tell
        self._save_original = save_original
        #: The runtimes of places, as far as they were asked for.
        self._known: dict[str, Entry] = {}
        #: What the user was told last of a notebook's settings, by path.
        self._told: dict[str, str] = {}
        self._resolving = asyncio.Lock()
        self._seeding: dict[str, asyncio.Task[None]] = {}

    @property
    def root(self) -> str:
        """The directory that notebooks are files in; empty if they are none."""
        return str(getattr(self._contents, "root_dir", "") or "")

    async def settings(self, path: str) -> NotebookSettings:
        """A notebook's settings; those of no settings if it cannot be read or says nonsense."""
        notebook = await self._notebook(path)
        if notebook is None:
            return NotebookSettings()
        settings, problem = read_settings(_dictionary(notebook.get("metadata")))
        if problem != self._told.get(path, ""):
            self._told[path] = problem
            if problem:
                self.log.warning("%s: %s", path, problem)
                self._tell(
                    RUNTIME_EVENT,
                    action="bad_metadata",
                    notebook=path,
                    message="Nothing is saved for this notebook: its settings cannot be read.",
                    reason=problem,
                )
        return settings

    async def _notebook(self, path: str) -> dict[str, Any] | None:
        """A notebook's content; ``None`` if there is none that can be read.

        A file is read as it is: contents managers would look up the trust of each cell.
        """
        if not path:
            return None
        place = self._place(path)
        if not place.startswith(NO_FILE):
            notebook = await asyncio.to_thread(_read_file, place)
            if notebook is not None:
                return notebook
        try:
            model = await ensure_async(self._contents.get(path, content=True, type="notebook"))
        except Exception as error:  # whatever a contents manager raises: there is no notebook
            self.log.debug("No notebook at %s: %s", path, error)
            return None
        return _dictionary(model["content"])

    async def runtime_of(self, path: str, settings: NotebookSettings | None = None) -> str:
        """The runtime of an enabled notebook, given to it now if it has none; else empty.

        A notebook that carries the id of another one's runtime is a copy of it, unless the other
        is gone, and gets a runtime of its own that begins with the other's newest checkpoint.
        """
        settings = await self.settings(path) if settings is None else settings
        if not settings.enabled:
            return ""
        async with self._resolving:
            runtime = await self._resolve(path, settings.runtime)
        await self._seeded(runtime)
        return runtime

    async def _resolve(self, path: str, carried: str) -> str:
        place = self._place(path)
        file_id = self._file_ids.of(path)
        try:
            entry = await self._entry_at(place, path, file_id)
            if entry is not None and carried in ("", entry.runtime, entry.carried):
                if file_id not in ("", entry.file_id):
                    entry = msgspec.structs.replace(entry, file_id=file_id)
                    await asyncio.to_thread(self.registry.put, entry)
                self._known[place] = entry
                return entry.runtime
            owner = await asyncio.to_thread(self.registry.find, carried) if carried else None
            entry = Entry(runtime=carried or str(uuid.uuid4()), place=place)
            copied = (
                owner is not None
                and owner.place != place
                and not owner.deleted
                and await self._claims(owner)
            )
            if copied and owner is not None:
                entry = Entry(
                    runtime=str(uuid.uuid4()), place=place, carried=carried, source=owner.runtime
                )
            entry = msgspec.structs.replace(entry, file_id=file_id)
            await asyncio.to_thread(self.registry.put, entry)
        except (sqlite3.Error, OSError) as error:
            self.log.warning("%s cannot be used: %s", self.registry.file, error)
            return carried
        self._known[place] = entry
        if copied and owner is not None:
            self._begin_seed(owner, entry, path)
        return entry.runtime

    async def _entry_at(self, place: str, path: str, file_id: str) -> Entry | None:
        """The entry of the notebook at a place, wherever that was moved from."""
        entry = await asyncio.to_thread(self.registry.at, place)
        if entry is not None and file_id and entry.file_id not in ("", file_id):
            # Another file than before. Is the one of before somewhere else?
            now = self._file_ids.path(entry.file_id)
            if now not in ("", path.strip("/")):
                await self.moved(path, now)
                entry = None
        if entry is None and file_id:
            entry = await asyncio.to_thread(self.registry.of_file, file_id)
            if entry is not None:
                await asyncio.to_thread(self.registry.move, entry.place, place)
                entry = msgspec.structs.replace(entry, place=place)
        return entry

    async def _claims(self, owner: Entry) -> bool:
        """Whether the notebook of this entry is there and still says so."""
        if owner.place.startswith(NO_FILE):
            notebook = await self._notebook(owner.place.removeprefix(NO_FILE))
        else:
            notebook = await asyncio.to_thread(_read_file, owner.place)
        if notebook is None:
            return False
        settings, _ = read_settings(_dictionary(notebook.get("metadata")))
        return settings.runtime in ("", owner.runtime, owner.carried)

    def _begin_seed(self, owner: Entry, entry: Entry, path: str) -> None:
        # Not under the lock: saving the original asks for its runtime as well.
        task = asyncio.create_task(self._seed(owner, entry, path))
        self._seeding[entry.runtime] = task
        task.add_done_callback(lambda _: self._seeding.pop(entry.runtime, None))

    async def _seeded(self, runtime: str) -> None:
        if (task := self._seeding.get(runtime)) is not None:
            await asyncio.shield(task)

    async def _seed(self, owner: Entry, entry: Entry, path: str) -> None:
        """Give a copy its first checkpoint, that of the original's state now."""
        await self._save_original(owner.runtime)
        copy = None
        try:
            async with connect() as agent:
                newest = await agent.checkpoints(runtime=owner.runtime)
                if newest:
                    request = CopyRequest(runtime=entry.runtime)
                    copy = await agent.copy_checkpoint(newest[0].id, request)
        except CheckpointsError as error:
            self.log.warning("%s starts without a checkpoint: %s", path, error)
        self._remixed(owner, entry, path, copy)

    def _remixed(self, owner: Entry, entry: Entry, path: str, copy: CheckpointModel | None) -> None:
        self.log.info("%s is a copy with a runtime of its own: %s", path, entry.runtime)
        self._tell(
            RUNTIME_EVENT,
            action="remixed",
            notebook=path,
            runtime=entry.runtime,
            source_runtime=owner.runtime,
            source_notebook=self.path_of(owner.place),
            checkpoint=copy.id if copy else "",
        )

    async def remix(self, source: str, target: str, checkpoint_id: str = "") -> CheckpointModel:
        """Copy a notebook together with a checkpoint; returns the copy's first checkpoint.

        Raises
        ------
        NotFound
            If there is no such notebook or checkpoint.
        Conflict
            If the target exists, or the source has no checkpoint.
        """
        try:
            model = await ensure_async(self._contents.get(source, content=True, type="notebook"))
        except Exception as error:  # whatever a contents manager raises
            raise NotFound(f"There is no notebook {source}.", reason=str(error)) from error
        if await ensure_async(self._contents.exists(target)):
            raise Conflict(f"There is a file {target} already.", hint="Choose another name.")
        runtime = await self.runtime_of(source)
        if not runtime:
            raise not_enabled(source)
        await self._save_original(runtime)
        entry = Entry(runtime=str(uuid.uuid4()), place=self._place(target), source=runtime)
        async with connect() as agent:
            if not checkpoint_id:
                newest = await agent.checkpoints(runtime=runtime)
                if not newest:
                    raise Conflict(
                        f"{source} has no runtime checkpoint yet.",
                        hint="Start its kernel and save it, then remix.",
                    )
                checkpoint_id = newest[0].id
            elif (await agent.checkpoint(checkpoint_id)).runtime != runtime:
                raise Conflict("This checkpoint belongs to another notebook's runtime.")
            copy = await agent.copy_checkpoint(checkpoint_id, CopyRequest(runtime=entry.runtime))
            await self._write(agent, entry, target, model["content"], copy)
        owner = Entry(runtime=runtime, place=self._place(source))
        self._remixed(owner, entry, target, copy)
        return copy

    async def adopt(self, checkpoint_id: str, target: str) -> CheckpointModel:
        """Make a notebook of a checkpoint that somebody shares; returns its first checkpoint.

        The notebook is empty: cells are not part of a checkpoint. Its directory takes the place
        of the other user's.

        Raises
        ------
        NotFound
            If no such checkpoint is shared with this user.
        Conflict
            If the target exists.
        """
        entry = Entry(runtime=str(uuid.uuid4()), place=self._place(target))
        async with connect() as agent:
            shared = {c.id: c for c in await agent.checkpoints(shared=True)}
            if (source := shared.get(checkpoint_id)) is None:
                raise NotFound(f"There is no checkpoint {checkpoint_id} that is shared with you.")
            if await ensure_async(self._contents.exists(target)):
                raise Conflict(f"There is a file {target} already.", hint="Choose another name.")
            own = []
            if not entry.place.startswith(NO_FILE):
                own = mounts.in_place_of(source.mounts, os.path.dirname(entry.place))
            request = CopyRequest(runtime=entry.runtime, name=source.name, mounts=own)
            copy = await agent.copy_checkpoint(source.id, request)
            name = source.kernel_name
            metadata: dict[str, Any] = {"kernelspec": {"name": name, "display_name": name}}
            write_settings(metadata, enabled=True, autosave=True)
            content = {"cells": [], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
            await self._write(agent, entry, target, content, copy)
        self.log.info("%s goes on from what user %s shares: %s", target, source.uid, source.id)
        self._tell(
            RUNTIME_EVENT,
            action="remixed",
            notebook=target,
            runtime=entry.runtime,
            source_runtime=source.runtime,
            checkpoint=copy.id,
        )
        return copy

    async def _write(
        self,
        agent: AgentClient,
        entry: Entry,
        target: str,
        content: dict[str, Any],
        first: CheckpointModel,
    ) -> None:
        """Write a notebook whose runtime begins with a checkpoint; without it, nothing is left."""
        try:
            write_settings(content["metadata"], runtime=entry.runtime)
            await asyncio.to_thread(self.registry.put, entry)
            new = {"type": "notebook", "format": "json", "content": content}
            await ensure_async(self._contents.save(new, target))
        except Exception as error:
            await agent.delete_checkpoint(first.id)
            await asyncio.to_thread(self.registry.forget, entry.runtime)
            raise Conflict(f"{target} could not be written.", reason=str(error)) from error
        self._known[entry.place] = entry

    def before_saved(self, model: dict[str, Any], path: str, **_: Any) -> None:
        """A pre-save hook: write the notebook's runtime into its metadata. Blocks for nothing."""
        entry = self._known.get(self._place(path))
        if entry is None or model.get("type") != "notebook" or not model.get("content"):
            return
        metadata = model["content"].get("metadata", {})
        settings, problem = read_settings(metadata)
        if problem or not settings.enabled or settings.runtime == entry.runtime:
            return
        if settings.runtime in ("", entry.carried):
            write_settings(metadata, runtime=entry.runtime)

    async def copied(self, source: str, path: str) -> None:
        """The contents manager has made a copy: give it a runtime of its own, and write that."""
        settings = await self.settings(path)
        if not settings.enabled:
            return
        async with self._resolving:
            place = self._place(path)
            origin = await asyncio.to_thread(self.registry.at, self._place(source))
            here = await asyncio.to_thread(self.registry.at, place)
            if (
                here is None
                and origin is not None
                and settings.runtime in ("", origin.runtime, origin.carried)
            ):
                here = Entry(
                    runtime=str(uuid.uuid4()),
                    place=place,
                    carried=settings.runtime,
                    source=origin.runtime,
                )
                await asyncio.to_thread(self.registry.put, here)
                self._known[place] = here
                self._begin_seed(origin, here, path)
        if here is not None:
            await self._seeded(here.runtime)
        if here is not None and here.runtime != settings.runtime:
            try:
                model = await ensure_async(self._contents.get(path, content=True))
                write_settings(model["content"]["metadata"], runtime=here.runtime)
                await ensure_async(self._contents.save(model, path))
            except Exception as error:  # the registry knows it; the next save writes it
                self.log.info("The metadata of %s stays as it is: %s", path, error)

    async def moved(self, old: str, new: str) -> None:
        """The contents manager has moved a notebook or a directory."""
        await asyncio.to_thread(self.registry.move, self._place(old), self._place(new))
        self._known.clear()

    async def deleted(self, path: str) -> None:
        """The contents manager has deleted a notebook or a directory; its grace begins."""
        await asyncio.to_thread(self.registry.mark_deleted, self._place(path), _now())
        self._known.clear()

    def path_of(self, place: str) -> str:
        """What the contents call a place; empty if they have none for it."""
        if place.startswith(NO_FILE):
            return place.removeprefix(NO_FILE)
        root = self.root
        if not root:
            return ""
        relative = os.path.relpath(place, os.path.normpath(root))
        return "" if relative.startswith("..") else relative

    def _place(self, path: str) -> str:
        return place_of(self.root, path)

    async def on_resume_cells(self, path: str) -> list[str]:
        """The code of the notebook's cells with the tag :data:`ON_RESUME_TAG`."""
        notebook = await self._notebook(path)
        cells = notebook.get("cells") if notebook is not None else None
        codes = []
        for cell in map(_dictionary, cells if isinstance(cells, list) else []):
            tags = _dictionary(cell.get("metadata")).get("tags")
            if cell.get("cell_type") == "code" and isinstance(tags, list) and ON_RESUME_TAG in tags:
                # In files the source may be a list of lines.
                source = cell.get("source", "")
                codes.append(source if isinstance(source, str) else "".join(map(str, source)))
        return codes


def _read_file(place: str) -> dict[str, Any] | None:
    """The content of a notebook file; ``None`` if there is none. Blocking."""
    try:
        content = json.loads(Path(place).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _dictionary(value: Any) -> dict[str, Any]:
    """What users write into files is not always what it should be."""
    return value if isinstance(value, dict) else {}


def not_enabled(path: str) -> Conflict:
    """The error of whoever asks for something that the notebook does not want."""
    return Conflict(
        f"Runtime checkpoints are not switched on for {path}.",
        hint='Set "enabled": true in `runtime_checkpoints` of the notebook\'s metadata.',
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
