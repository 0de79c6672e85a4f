"""The agent's checkpoints: list, change, copy, carry, check, verify and delete them.

Every method is called with the :class:`~.records.Caller`; a checkpoint of somebody else does not
exist for them (``NotFound``). Making one, and continuing from one, is :mod:`.kernels`' part.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import msgspec
from blake3 import blake3

from ..errors import (
    CheckpointDamaged,
    CheckpointsError,
    Conflict,
    InsufficientResources,
    InvalidRequest,
    NotAllowed,
    NotFound,
)
from ..layout import Layout
from ..models import (
    CheckpointModel,
    CheckpointPatch,
    CopyRequest,
    Event,
    Finding,
    Grantee,
    HostFacts,
    Limits,
    Mount,
    PreflightReport,
    RepairReport,
    Usage,
    Verification,
    VerifyReport,
)
from ..store.content import file_records
from ..store.plain import PlainPages
from ..store.source import damaged
from ..store.store import Manifest, Notes, Progress, Store
from ..store.tree import tree_digest
from . import archive, criu, preflight
from .engines.engine import Engine
from .identity import Identity, PathOpener, identity_named
from .images import Images
from .operation import Operation
from .precopies import Precopies
from .quotas import Quotas
from .records import Caller, checked_mounts, from_os_error, now


class Storing:
    """A part of a user's storage quota that is kept for one operation."""

    def __init__(
        self, quotas: Quotas, promised: Counter[int], uid: int, used: int, needed: int
    ) -> None:
        self.needed = needed
        self._quotas, self._uid, self._used = quotas, uid, used
        self._promised: Counter[int] | None = promised
        promised[uid] += needed

    def release(self) -> None:
        """It is stored, or is not going to be."""
        if self._promised is not None:
            self._promised[self._uid] -= self.needed
            self._promised = None

    def check(self, size: int) -> None:
        """Whether what it came to be fits as well: called before the commit."""
        self._quotas.check_storage(self._uid, self._used, size)


def _absent(checkpoint_id: str) -> NotFound:
    return NotFound(
        f"There is no checkpoint {checkpoint_id}.",
        hint="`jupyter checkpoints list` lists them.",
    )


def _is_owned(caller: Caller, checkpoint: CheckpointModel) -> bool:
    return caller.owns(checkpoint.uid)


def _is_granted(caller: Caller, checkpoint: CheckpointModel) -> bool:
    """Whether somebody else has shared it with the caller."""
    shares = checkpoint.shares
    return checkpoint.uid != caller.uid and ("*" in shares or caller.uid in shares)


def _as_seen_by(caller: Caller, checkpoint: CheckpointModel) -> CheckpointModel:
    """With whom it is shared is for its owner."""
    if caller.owns(checkpoint.uid) or not checkpoint.shares:
        return checkpoint
    return msgspec.structs.replace(checkpoint, shares=[])


#: A kernel's memory is there soon after its resume: to delete its checkpoint may wait for that.
_UNREAD_SECONDS = 3.0


class CheckpointService:
    """See the module. ``engine`` is set by the agent's start, before anybody is served."""

    engine: Engine

    def __init__(
        self,
        *,
        layout: Layout,
        images: Images,
        store: Store,
        facts: HostFacts,
        opener: PathOpener,
        quotas: Quotas,
        max_archive: int = 1 << 40,
    ) -> None:
        self.opener = opener
        self.quotas = quotas
        #: Bytes that operations under way may come to store, by user.
        self._promised: Counter[int] = Counter()
        self.layout = layout
        self.images = images
        self.store = store
        self.precopies = Precopies(store)
        self.facts = facts
        self.max_archive = max_archive
        #: How many operations read a checkpoint: it is not deleted meanwhile.
        self._reading: Counter[str] = Counter()
        self._loop = asyncio.get_running_loop()

    async def all(
        self, caller: Caller, kernel: str = "", runtime: str = "", shared: bool = False
    ) -> list[CheckpointModel]:
        """The caller's own; ``shared``: those that others have shared with him instead."""
        manifests = await asyncio.to_thread(self.store.list)
        seen = _is_granted if shared else _is_owned
        return [
            _as_seen_by(caller, m.checkpoint)
            for m in manifests
            if seen(caller, m.checkpoint)
            and kernel in ("", m.checkpoint.kernel_id)
            and runtime in ("", m.checkpoint.runtime)
        ]

    async def show(self, caller: Caller, checkpoint_id: str) -> CheckpointModel:
        """One of the caller's own, or one that was shared with him."""
        manifest = await self._copyable(caller, checkpoint_id)
        return _as_seen_by(caller, manifest.checkpoint)

    async def share(
        self, caller: Caller, checkpoint_id: str, grantee: str, *, granted: bool
    ) -> CheckpointModel:
        """Let a user (a name, a number, or ``*`` for everybody) copy a checkpoint, or no longer.

        Raises
        ------
        InvalidRequest
            If there is no such user.
        """
        await self.manifest(caller, checkpoint_id)
        who: Grantee
        if grantee == "*":
            who = "*"
        elif not granted and grantee.isascii() and grantee.isdigit() and len(grantee) < 10:
            who = int(grantee)  # also of a user who is gone
        else:
            who = (await asyncio.to_thread(identity_named, grantee)).uid

        def change(notes: Notes) -> Notes:
            others = [one for one in notes.shares if one != who]
            return msgspec.structs.replace(notes, shares=[*others, who] if granted else others)

        await asyncio.to_thread(self.store.annotate, checkpoint_id, change)
        return await self.show(caller, checkpoint_id)

    async def change(
        self, caller: Caller, checkpoint_id: str, patch: CheckpointPatch
    ) -> CheckpointModel:
        """Name, pin or touch a checkpoint."""
        await self.manifest(caller, checkpoint_id)

        def change(notes: Notes) -> Notes:
            return msgspec.structs.replace(
                notes,
                name=notes.name if patch.name is None else patch.name,
                pinned=notes.pinned if patch.pinned is None else patch.pinned,
                touched=now() if patch.touch else notes.touched,
            )

        await asyncio.to_thread(self.store.annotate, checkpoint_id, change)
        return await self.show(caller, checkpoint_id)

    async def copy(
        self, caller: Caller, checkpoint_id: str, request: CopyRequest
    ) -> CheckpointModel:
        """A checkpoint of another runtime with the same data, independent of this one."""
        source = await self._copyable(caller, checkpoint_id)
        saved = source.checkpoint
        given = {mount.target: mount for mount in checked_mounts(request.mounts)}
        if unknown := sorted(given.keys() - {mount.target for mount in saved.mounts}):
            raise InvalidRequest(
                f"The checkpoint has nothing mounted at {', '.join(unknown)}.",
                hint="`jupyter checkpoints show` tells what it has.",
            )
        # Root's copy of a user's is the user's: whose processes these are does not change.
        uid = caller.uid or saved.uid
        needed = 0 if uid == saved.uid else saved.memory_size + saved.files_size
        async with self.storing(uid, needed):
            return await self._copy(source, uid, request, given)

    async def _copy(
        self, source: Manifest, uid: int, request: CopyRequest, mounts: dict[str, Mount]
    ) -> CheckpointModel:
        checkpoint_id = source.checkpoint.id
        model = msgspec.structs.replace(
            source.checkpoint,
            id=str(uuid.uuid4()),
            uid=uid,
            mounts=[mounts.get(mount.target, mount) for mount in source.checkpoint.mounts],
            shares=[],
            created=now(),
            trigger="remix",
            runtime=request.runtime,
            name=request.name,
            parent=checkpoint_id,
            stopped=False,
            pinned=False,
            touched="",
            verified=None,
        )
        with self.reading(checkpoint_id):
            try:
                await self.engine.copy_snapshot(checkpoint_id, model.id)
                await self.engine.snapshot_durable(model.id)
                manifest = msgspec.structs.replace(source, checkpoint=model)
                await asyncio.to_thread(self.store.clone, checkpoint_id, manifest)
            except BaseException as error:
                await self.engine.discard(model.id)
                if isinstance(error, OSError):
                    raise from_os_error(error, "The checkpoint could not be copied.") from error
                raise
        return model

    async def export(self, caller: Caller, checkpoint_id: str) -> tuple[str, archive.Export]:
        """A checkpoint as an archive, to be opened and read in a thread; and a tag of its content.

        The caller holds :meth:`reading` meanwhile.
        """
        manifest = await self.manifest(caller, checkpoint_id)
        tree = await self.engine.snapshot_tree(checkpoint_id)
        key = await asyncio.to_thread(archive.store_key, self.layout.archive_key)
        tag = blake3(msgspec.json.encode(manifest)).hexdigest()[:32]
        return tag, archive.Export(manifest, self.store, tree.parent, key)

    @contextmanager
    def reading(self, checkpoint_id: str) -> Iterator[None]:
        """While it is held the checkpoint is not deleted."""
        self._reading[checkpoint_id] += 1
        try:
            yield
        finally:
            self._reading[checkpoint_id] -= 1

    def incoming(self, size: int) -> IO[bytes]:
        """A file for an archive of ``size`` bytes, gone when it is closed. Blocking.

        Raises
        ------
        InsufficientResources
            If that is more than this agent takes, or than the disk has.
        """
        free = shutil.disk_usage(self.layout.data_dir).free
        # Once as it comes, once unpacked.
        if size > self.max_archive or 2 * size > free:
            raise InsufficientResources(
                "The archive is too large for this host.",
                reason=f"It has {size} bytes; at most {self.max_archive} are taken, and twice "
                f"as much has to be free: {free} bytes are.",
            )
        self.layout.incoming.mkdir(mode=0o700, exist_ok=True)
        return TemporaryFile(dir=self.layout.incoming)

    async def import_archive(
        self, caller: Caller, file: IO[bytes], *, runtime: str, trusted: bool
    ) -> CheckpointModel:
        """Make a checkpoint of an archive; ``trusted``: whoever wrote it. It gets a new id."""
        if trusted and caller.uid != 0:
            raise NotAllowed("Only root can vouch for an archive of somebody else.")
        key = await asyncio.to_thread(archive.store_key, self.layout.archive_key)
        size = os.fstat(file.fileno()).st_size
        arrived = await asyncio.to_thread(
            archive.Import, file, key, trusted=trusted, max_bytes=size
        )
        if caller.uid == 0 and arrived.manifest.checkpoint.uid != 0:
            raise NotAllowed(
                f"The checkpoint was user {arrived.manifest.checkpoint.uid}'s; "
                "as root's, it would run with root's rights.",
                hint="Import it for a user, by naming him.",
            )
        async with self.storing(caller.uid, size):
            return await self._import(caller, arrived, size, runtime)

    async def _import(
        self, caller: Caller, arrived: archive.Import, size: int, runtime: str
    ) -> CheckpointModel:
        saved = arrived.manifest
        model = msgspec.structs.replace(
            saved.checkpoint,
            id=str(uuid.uuid4()),
            uid=caller.uid,
            created=now(),
            trigger="import",
            runtime=runtime or saved.checkpoint.runtime,
            host=msgspec.structs.replace(saved.checkpoint.host, pool=self.facts.pool),
            parent="",
            stopped=False,
            pinned=False,
            touched="",
            shares=[],
            verified=None,
        )
        staging = await asyncio.to_thread(self.store.begin, model.id, size)
        try:
            await asyncio.to_thread(arrived.unpack_images, staging.images)
            await self.engine.make_snapshot(model.id, arrived.unpack_tree)
            tree = await self.engine.snapshot_tree(model.id)
            arrived_files = await asyncio.to_thread(file_records, staging.images)
            files = await asyncio.to_thread(staging.seal)
            digest, files_size = await asyncio.to_thread(tree_digest, tree)
            if arrived_files != saved.files or digest != saved.tree_digest:
                raise CheckpointDamaged(
                    "The archive is damaged; nothing was kept.",
                    reason="its content is not what its manifest says",
                    hint="Make it again with `jupyter checkpoints export`.",
                )
            model = msgspec.structs.replace(model, files_size=files_size)
            await self.engine.snapshot_durable(model.id)
            manifest = msgspec.structs.replace(saved, checkpoint=model, files=files)
            await asyncio.to_thread(staging.commit, manifest)
        except BaseException as error:
            await self.engine.discard(model.id)
            await asyncio.to_thread(staging.abandon)
            if isinstance(error, OSError):
                raise from_os_error(error, "The archive could not be imported.") from error
            raise
        return model

    async def usage(self, caller: Caller) -> Usage:
        """What the caller's checkpoints hold. Files of containers are counted as at their save."""
        manifests = await asyncio.to_thread(self.store.list)
        owned = [m for m in manifests if caller.owns(m.checkpoint.uid)]
        return await asyncio.to_thread(self._usage, owned, caller)

    def _usage(self, manifests: list[Manifest], caller: Caller) -> Usage:
        parts: dict[str, dict[tuple[int, int] | str, int]] = {}
        for manifest in manifests:
            files = self.store.held(manifest.checkpoint.id)
            # Copies share their snapshots' data: one part for all that have the same tree.
            tree = (manifest.tree_digest, manifest.checkpoint.files_size)
            parts[manifest.checkpoint.id] = dict([*files.items(), tree])
        holders = Counter(part for held in parts.values() for part in held)
        precopies = self.precopies.held(caller.owns)
        return Usage(
            total=sum({part: n for held in parts.values() for part, n in held.items()}.values()),
            checkpoints={
                name: sum(n for part, n in held.items() if holders[part] == 1)
                for name, held in parts.items()
            },
            held={name: sum(held.values()) for name, held in parts.items()},
            precopies=sum(n for part, n in precopies.items() if part not in holders),
        )

    async def delete(self, caller: Caller, checkpoint_id: str) -> None:
        await self.manifest(caller, checkpoint_id)
        unread = await self.engine.unread(checkpoint_id, _UNREAD_SECONDS)
        if self._reading[checkpoint_id] or not unread:
            raise Conflict(
                f"Checkpoint {checkpoint_id} is being resumed.",
                hint="Try again when that is done.",
            )
        await asyncio.to_thread(self.store.delete, checkpoint_id)
        await self.engine.discard(checkpoint_id)

    async def preflight(self, caller: Caller, checkpoint_id: str) -> PreflightReport:
        """Whether it could be resumed here with the mounts and limits it was saved with."""
        manifest = await self.manifest(caller, checkpoint_id)
        saved = manifest.checkpoint
        return await self.check(manifest, caller.identity, saved.mounts, saved.limits)

    async def verify(
        self, caller: Caller, checkpoint_id: str, operation: Operation, *, read_data: bool = True
    ) -> VerifyReport:
        """Read all of a checkpoint and compare, or only look whether all is there."""
        manifest = await self.manifest(caller, checkpoint_id)
        with self.reading(checkpoint_id):
            if not read_data:
                return await asyncio.to_thread(self.store.verify, manifest, read_data=False)
            report = await self._verify(manifest, operation)
            found = Verification(at=now(), ok=report.ok, problems=report.problems[:20])
            await asyncio.to_thread(
                self.store.annotate,
                checkpoint_id,
                lambda notes: msgspec.structs.replace(notes, verified=found),
            )
            return report

    async def _verify(self, manifest: Manifest, operation: Operation) -> VerifyReport:
        checkpoint_id = manifest.checkpoint.id
        report = await asyncio.to_thread(
            self.store.verify, manifest, self.reporter("verify", operation)
        )
        problems, size = await self._verify_tree(manifest)
        problems = [*report.problems, *problems]
        return VerifyReport(
            id=checkpoint_id,
            ok=not problems,
            problems=problems,
            bytes_read=report.bytes_read + size,
        )

    async def repair(self) -> RepairReport:
        """Make anew what can be made anew of the whole store, and name what is lost."""
        return await asyncio.to_thread(self.store.repair)

    def pages(self, checkpoint_id: str) -> str:
        """Where a checkpoint's memory can be read while its kernel runs already. Blocking.

        Empty if nothing of it can be verified before all of it was read: that takes as long.
        """
        pages = self.store.pages(checkpoint_id)
        return "" if isinstance(pages, PlainPages) else msgspec.json.encode(pages).decode()

    async def _verify_tree(self, manifest: Manifest) -> tuple[list[str], int]:
        """What is wrong with the container's files, and how many bytes they are."""
        try:
            tree = await self.engine.snapshot_tree(manifest.checkpoint.id)
            digest, size = await asyncio.to_thread(tree_digest, tree)
        except (OSError, CheckpointsError) as error:
            return [f"files of the container: {error}"], 0
        if digest != manifest.tree_digest:
            return ["files of the container: not what was saved"], size
        return [], size

    @asynccontextmanager
    async def intact(
        self, manifest: Manifest, operation: Operation, *, lazily: bool = False
    ) -> AsyncIterator[Path]:
        """The process images of a checkpoint, for as long as it is entered, to be resumed.

        Parameters
        ----------
        lazily:
            Only with those pages that cannot come later. That the others are there is known
            then, and what is in them is verified when they come.

        Raises
        ------
        CheckpointDamaged
            If anything of the checkpoint is missing or is not what was saved.
        """
        operation(Event(event="progress", stage="verify"))
        checkpoint_id = manifest.checkpoint.id
        stack = ExitStack()
        made = self.store.materialised(
            checkpoint_id, self.reporter("verify", operation), pages=not lazily
        )
        try:
            try:
                problems, _ = await self._verify_tree(manifest)
                if problems:
                    raise damaged(checkpoint_id, "; ".join(problems))
                images = await asyncio.to_thread(stack.enter_context, made)
                if lazily:
                    await asyncio.to_thread(self._add_eager_pages, manifest, images)
            except CheckpointDamaged as error:
                raise CheckpointDamaged(
                    f"Checkpoint {checkpoint_id} is damaged; nothing was changed.",
                    reason=error.reason,
                    hint="Resume another checkpoint, and delete this one.",
                ) from error
            except OSError as error:
                raise from_os_error(error, "The checkpoint could not be made ready.") from error
            yield images
        finally:
            await asyncio.to_thread(stack.close)

    def _add_eager_pages(self, manifest: Manifest, images: Path) -> None:
        """Make pages files of their full size, with nothing in them but what CRIU reads itself."""
        report = self.store.verify(manifest, read_data=False)
        if not report.ok:
            raise damaged(manifest.checkpoint.id, "; ".join(report.problems[:5]))
        with self.store.pages(manifest.checkpoint.id).open() as pages:
            for name, size in pages.files().items():
                with (images / name).open("xb") as file:
                    file.truncate(size)
            for name, offset, size in criu.eager_pages(images):
                with (images / name).open("r+b") as file:
                    file.seek(offset)
                    file.write(pages.read(name, offset, size))

    async def require_intact(self, manifest: Manifest, operation: Operation) -> None:
        """Read all of a checkpoint and compare. Errors as :meth:`intact`."""
        operation(Event(event="progress", stage="verify"))
        report = await self._verify(manifest, operation)
        if not report.ok:
            raise CheckpointDamaged(
                f"Checkpoint {manifest.checkpoint.id} is damaged; nothing was changed.",
                reason="; ".join(report.problems[:5]),
                hint="Resume another checkpoint, and delete this one.",
            )

    async def check(
        self, manifest: Manifest, identity: Identity, mounts: list[Mount], limits: Limits
    ) -> PreflightReport:
        def look() -> list[Finding]:
            files: list[criu.OpenFile] = []
            if manifest.checkpoint.mode == "process" and mounts:
                try:
                    content = self.store.read_image(manifest.checkpoint.id, criu.FILES)
                    files = criu.open_files(content)
                except (CheckpointsError, ValueError):
                    files = []  # damage is for verify to name
            return preflight.check(
                manifest,
                here=self.facts,
                runs_as=self.engine.runs_as(identity),
                require_image=self.images.require,
                require_volume=lambda name: self.opener.volumes.require(name),
                mounts=mounts,
                limits=limits,
                files=files,
                sizes=lambda paths: self.opener.sizes(identity, paths),
            )

        findings = await asyncio.to_thread(look)
        return PreflightReport(
            ok=not any(f.severity == "block" for f in findings), findings=findings
        )

    async def manifest(self, caller: Caller, checkpoint_id: str) -> Manifest:
        """That of one of the caller's own."""
        manifest = await self._load(checkpoint_id)
        if not caller.reaches(manifest.checkpoint.uid):
            raise _absent(checkpoint_id)
        return manifest

    async def _load(self, checkpoint_id: str) -> Manifest:
        try:
            return await asyncio.to_thread(self.store.load, checkpoint_id)
        except NotFound:
            # In the very words that are said of another user's.
            raise _absent(checkpoint_id) from None

    async def _copyable(self, caller: Caller, checkpoint_id: str) -> Manifest:
        """That of one of the caller's own, or of one that was shared with him."""
        manifest = await self._load(checkpoint_id)
        owned = caller.reaches(manifest.checkpoint.uid)
        if not owned and not _is_granted(caller, manifest.checkpoint):
            raise _absent(checkpoint_id)
        return manifest

    async def reserve(self, uid: int, needed: int) -> Storing:
        """Keep about ``needed`` bytes of a user's quota for what is going to be stored.

        Raises ``QuotaExceeded`` if there are not that many.
        """
        used = precopies = 0
        if uid and self.quotas.storage:
            usage = await self.usage(Caller(uid))
            if not self.quotas.fits(uid, usage.total + self._promised[uid], needed):
                # Of what was deleted a moment ago some may still be on the disk.
                await asyncio.to_thread(self.store.tidy, 0)
                usage = await self.usage(Caller(uid))
            used, precopies = usage.total, usage.precopies
        # From here to the reservation nothing is awaited.
        used += self._promised[uid]
        self.quotas.check_storage(uid, used, needed)
        storing = Storing(self.quotas, self._promised, uid, used, needed)
        if precopies and not self.quotas.fits(uid, used + precopies, needed):
            try:
                await asyncio.to_thread(self.precopies.give_up_of, uid)
            except BaseException:
                storing.release()
                raise
        return storing

    @asynccontextmanager
    async def storing(self, uid: int, needed: int) -> AsyncIterator[Storing]:
        """As :meth:`reserve`, as long as the context lasts."""
        storing = await self.reserve(uid, needed)
        try:
            yield storing
        finally:
            storing.release()

    def reporter(self, stage: str, operation: Operation) -> Progress:
        """A callback for threads that reports at most ten times a second."""
        last = 0.0

        def report(done: int, total: int) -> None:
            nonlocal last
            operation.check()
            now = time.monotonic()
            if now - last >= 0.1 or done == total:
                last = now
                event = Event(event="progress", stage=stage, done=done, total=total)
                self._loop.call_soon_threadsafe(operation, event)

        return report
