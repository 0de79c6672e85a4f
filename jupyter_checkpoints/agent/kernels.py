"""The agent's kernels: who owns them, what state they are in, and what may be done to them.

The one place where engine, store and images meet. Every method is called by the API with a
:class:`Caller`; a kernel or checkpoint of somebody else does not exist for them (``NotFound``).
One operation at a time changes a kernel: they queue on its lock.
"""

from __future__ import annotations

import asyncio
import datetime
import errno
import logging
import os
import shutil
import signal
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TypeVar

import msgspec
from blake3 import blake3
from msgspec import Struct

from ..errors import (
    CheckpointDamaged,
    CheckpointsError,
    Conflict,
    InsufficientResources,
    InvalidRequest,
    NotAllowed,
    NotFound,
    PreflightBlocked,
    SaveFailed,
)
from ..layout import Layout
from ..models import (
    CONNECTION_FILE,
    PORTS,
    CheckpointModel,
    CheckpointPatch,
    ConnectionInfo,
    CopyRequest,
    Event,
    Finding,
    HostFacts,
    ImageModel,
    KernelModel,
    KernelPatch,
    KernelState,
    Limits,
    Mount,
    PreflightReport,
    SaveRequest,
    StartRequest,
    Usage,
    VerifyReport,
)
from ..store.store import MANIFEST_VERSION, Manifest, Notes, Progress, Store
from ..store.tree import tree_digest
from . import archive, criu, preflight
from .engines.engine import Adopted, ContainerSpec, Engine, Source
from .images import ImageStore

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Called on the event loop with each step of a long operation.
OnEvent = Callable[[Event], None]

#: What a mount may never hide or show: the container's own, and the agent's.
_RESERVED = ("/proc", "/sys", "/dev", "/run/jupyter", "/.jupyter-checkpoints", "/etc")


class Caller(Struct, frozen=True):
    """Who asks, as the kernel says (SO_PEERCRED)."""

    uid: int

    def owns(self, uid: int) -> bool:
        return self.uid in (0, uid)


class _Record(Struct, kw_only=True):
    """What is known of one kernel; ``record.json`` in its directory."""

    request: StartRequest
    uid: int
    created: str
    image: str
    image_digest: str
    argv: list[str]
    env: dict[str, str]
    cwd: str
    hostname: str
    limits: Limits
    mounts: list[Mount]
    connection: ConnectionInfo
    state: KernelState = "starting"
    checkpoint: str = ""
    parent: str = ""
    """The checkpoint that the next one descends from."""
    exit_code: int | None = None


class _Kernel:
    def __init__(self, record: _Record) -> None:
        self.record = record
        self.lock = asyncio.Lock()
        self.pid: int | None = None
        self.attached = 0
        self.orphan_since = time.monotonic()
        self.changed = asyncio.Condition()
        self.removed = False

    def is_in(self, *states: KernelState) -> bool:
        """Its state may have changed during any ``await``: ask again after each."""
        return self.record.state in states


class KernelService:
    """See the module. ``limits`` are defaults and, where set, maxima for everybody."""

    def __init__(
        self,
        *,
        layout: Layout,
        images: ImageStore,
        store: Store,
        facts: HostFacts,
        default_limits: Limits,
        orphan_grace: float,
        max_archive: int = 1 << 40,
    ) -> None:
        self.layout = layout
        self.images = images
        self.store = store
        self.facts = facts
        self.default_limits = default_limits
        self.orphan_grace = orphan_grace
        self.max_archive = max_archive
        self.engine: Engine
        self._kernels: dict[str, _Kernel] = {}
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        #: Checkpoints that a resume is reading: they are not deleted meanwhile.
        self._reading: dict[str, int] = {}

    # -- the agent's start and end -------------------------------------------------------------

    async def open(self, engine: Engine) -> None:
        """Load the records a predecessor left and let the engine take over what runs."""
        self.engine = engine
        for name in await asyncio.to_thread(self.store.collect):
            log.info("Removed an unfinished checkpoint: %s", name)
        self.layout.kernels.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self.layout.kernels.glob("*/record.json"):
            try:
                record = msgspec.json.decode(path.read_bytes(), type=_Record)
            except (OSError, msgspec.MsgspecError) as error:
                log.warning("The record of kernel %s cannot be read: %s", path.parent.name, error)
                continue
            self._kernels[path.parent.name] = _Kernel(record)
        manifests = await asyncio.to_thread(self.store.list)
        adopted = await engine.open(
            {k: kernel.is_in("stopped") for k, kernel in self._kernels.items()},
            {m.checkpoint.id for m in manifests},
        )
        for kernel_id, kernel in self._kernels.items():
            await self._take_over(kernel_id, kernel, adopted.get(kernel_id))
        self._later(self._reap_orphans())

    async def _take_over(self, kernel_id: str, kernel: _Kernel, adopted: Adopted | None) -> None:
        record = kernel.record
        if adopted is not None and adopted.container is not None:
            kernel.pid = adopted.container.pid
            await self._set(kernel, "running")
            log.info("Took over kernel %s", kernel_id)
        elif record.state not in ("stopped", "exited"):
            record.exit_code = 1 if adopted is None else adopted.exit_code
            await self._set(kernel, "exited")

    async def close(self) -> None:
        """Let kernels run on; end what only this process does."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.engine.close()

    def on_exit(self, kernel_id: str, code: int) -> None:
        """The engine's word that a container has ended by itself."""
        kernel = self._kernels.get(kernel_id)
        if kernel is not None and not kernel.removed:
            kernel.record.state = "exited"
            kernel.record.exit_code = code
            kernel.pid = None
            self._later(self._set(kernel, "exited"))

    # -- kernels -------------------------------------------------------------------------------

    def kernels(self, caller: Caller) -> list[KernelModel]:
        return [self._model(k) for k in self._kernels.values() if caller.owns(k.record.uid)]

    async def show(self, caller: Caller, kernel_id: str) -> KernelModel:
        kernel = self._get(caller, kernel_id)
        return self._model(kernel, await self.engine.memory(kernel_id))

    async def start(self, caller: Caller, request: StartRequest, on_event: OnEvent) -> KernelModel:
        """Start a kernel, start an exited one again, or resume a checkpoint in a new one."""
        kernel = self._kernels.get(request.kernel_id)
        if kernel is not None and not caller.owns(kernel.record.uid):
            raise Conflict("This kernel id is taken.", hint="Choose another id.")
        if kernel is not None and kernel.record.state not in ("exited", "stopped"):
            raise Conflict(
                f"Kernel {request.kernel_id} is {kernel.record.state}.",
                hint="Delete it first, or wait until it has ended.",
            )
        mounts = await asyncio.to_thread(_checked_mounts, request.mounts)
        manifest: Manifest | None = None
        if request.checkpoint:
            manifest = await self._manifest(caller, request.checkpoint)
            record = self._record_from(caller, request, manifest, mounts)
        else:
            record = await self._record(caller, request, mounts)
        if kernel is None:
            kernel = self._kernels[request.kernel_id] = _Kernel(record)
            fresh = True
        else:
            fresh = False
        async with self._changing(kernel, request.kernel_id):
            earlier = kernel.record
            kernel.record = record
            try:
                await self._set(kernel, "starting" if manifest is None else "resuming")
                if manifest is None:
                    container = await self.engine.start(self._spec(kernel, ""))
                    kernel.pid = container.pid
                else:
                    await self._resume(kernel, manifest, False, on_event)
            except BaseException:
                if fresh:
                    await self._forget(request.kernel_id, kernel)
                else:
                    kernel.record = earlier
                    await self._set(kernel, "exited")
                raise
            await self._running(kernel)
        return self._model(kernel)

    async def resume(
        self, caller: Caller, kernel_id: str, checkpoint_id: str, on_event: OnEvent
    ) -> KernelModel:
        """Put a kernel back to one of its checkpoints: same id, same address, same ports."""
        kernel = self._get(caller, kernel_id)
        manifest = await self._manifest(caller, checkpoint_id)
        async with self._changing(kernel, kernel_id):
            record = kernel.record
            if _ports(manifest.connection) != _ports(record.connection):
                raise Conflict(
                    "This checkpoint belongs to a kernel with another connection.",
                    hint="Resume it in a new kernel.",
                )
            keep = record.state == "stopped" and record.checkpoint == checkpoint_id
            before = record.state
            try:
                await self._set(kernel, "resuming")
                await self._resume(kernel, manifest, keep, on_event)
            except BaseException:
                # If it has ended meanwhile, on_exit has said so.
                if kernel.is_in("resuming"):
                    await self._set(kernel, before)
                raise
            record.exit_code = None
            await self._running(kernel)
        return self._model(kernel)

    async def _resume(
        self, kernel: _Kernel, manifest: Manifest, keep: bool, on_event: OnEvent
    ) -> None:
        record = kernel.record
        checkpoint = manifest.checkpoint
        with self._read_lock(checkpoint.id):
            on_event(Event(event="progress", stage="preflight"))
            report = await self._preflight(manifest, record.mounts, record.limits)
            if not report.ok:
                raise PreflightBlocked(
                    "This checkpoint cannot be resumed on this host; nothing was changed.",
                    findings=[msgspec.to_builtins(f) for f in report.findings],
                )
            await self._require_intact(manifest, on_event)
            on_event(Event(event="progress", stage="restore"))
            source = Source(
                checkpoint_id=checkpoint.id,
                mode=checkpoint.mode,
                images=await asyncio.to_thread(self.store.images, checkpoint.id),
                keep_connections=keep,
                facts=manifest.facts,
            )
            recorded = {m.target for m in checkpoint.mounts}
            spec = self._spec(kernel, manifest.connection.key)
            if checkpoint.mode == "process":
                # A mount that was not there at the save cannot be put into a restored container.
                spec = msgspec.structs.replace(
                    spec, mounts=[m for m in spec.mounts if m.target in recorded]
                )
            container = await self.engine.resume(spec, source)
            kernel.pid = container.pid
            record.checkpoint = record.parent = checkpoint.id
            # Its key may be another than that of the state it replaces.
            record.connection = manifest.connection

    async def signal(self, caller: Caller, kernel_id: str, signum: int) -> None:
        kernel = self._get(caller, kernel_id)
        state = kernel.record.state
        if state in ("stopped", "resuming"):
            if signum in (signal.SIGKILL, signal.SIGTERM):
                # To end a kernel that is not there (yet) is to give its state up: no signal may
                # wait for it and end it after it has come back.
                async with self._changing(kernel, kernel_id):
                    if kernel.is_in("stopped"):
                        kernel.record.exit_code = 128 + signum
                        await self._set(kernel, "exited")
                        return
            else:
                raise Conflict(
                    f"Kernel {kernel_id} is {state}: there is nothing to signal.",
                    hint="Resume it first.",
                )
        await self.engine.signal(kernel_id, signum)

    async def change(self, caller: Caller, kernel_id: str, patch: KernelPatch) -> KernelModel:
        """Give a kernel to another runtime; its checkpoints so far stay where they are."""
        kernel = self._get(caller, kernel_id)
        async with self._changing(kernel, kernel_id):
            request = kernel.record.request
            kernel.record.request = msgspec.structs.replace(request, runtime=patch.runtime)
            await self._set(kernel, kernel.record.state)
        return self._model(kernel)

    async def delete(self, caller: Caller, kernel_id: str) -> None:
        """End a kernel and remove all of it; its checkpoints stay."""
        kernel = self._get(caller, kernel_id)
        async with self._changing(kernel, kernel_id):
            await self._forget(kernel_id, kernel)

    async def attach(self, caller: Caller, kernel_id: str) -> AsyncIterator[KernelModel | None]:
        """The kernel's model now and after each change, ``None`` as a sign of life in between.

        Ends when the kernel is deleted. While it runs, the kernel is not an orphan.
        """
        kernel = self._get(caller, kernel_id)
        kernel.attached += 1
        try:
            last: KernelModel | None = None
            while not kernel.removed:
                model = self._model(kernel)
                if model != last:
                    last = model
                    yield model
                    continue
                async with kernel.changed:
                    if kernel.removed or self._model(kernel) != last:
                        continue
                    try:
                        async with asyncio.timeout(15):
                            await kernel.changed.wait()
                    except TimeoutError:
                        pass
                if not kernel.removed and self._model(kernel) == last:
                    yield None
        finally:
            kernel.attached -= 1
            kernel.orphan_since = time.monotonic()

    def log_file(self, caller: Caller, kernel_id: str) -> Path:
        self._get(caller, kernel_id)
        return self.engine.log_file(kernel_id)

    # -- checkpoints ---------------------------------------------------------------------------

    async def save(
        self, caller: Caller, kernel_id: str, request: SaveRequest, on_event: OnEvent
    ) -> CheckpointModel:
        """Save a kernel. It goes on as soon as its state is taken, not when all is written.

        With ``request.stop`` it stands still until the checkpoint is committed, and then ends;
        if the checkpoint cannot be committed it goes on as if nothing had happened.
        """
        kernel = self._get(caller, kernel_id)
        async with self._changing(kernel, kernel_id):
            if not kernel.is_in("running"):
                raise Conflict(
                    f"Kernel {kernel_id} is {kernel.record.state}: there is nothing to save.",
                    hint="Only a running kernel can be saved.",
                )
            try:
                await self._set(kernel, "saving")
                model = await self._save(kernel, request, on_event)
            except BaseException:
                if kernel.is_in("saving"):
                    await self._set(kernel, "running")
                raise
            if kernel.is_in("saving"):
                await self._set(kernel, "running")
        return model

    async def _save(
        self, kernel: _Kernel, request: SaveRequest, on_event: OnEvent
    ) -> CheckpointModel:
        began = time.perf_counter()
        kernel_id = kernel.record.request.kernel_id
        mode = request.mode or kernel.record.request.mode
        checkpoint_id = str(uuid.uuid4())
        memory = await self.engine.memory(kernel_id) if mode == "process" else 0
        # Page tables, sockets and pipes come on top of the pages.
        staging = await asyncio.to_thread(
            self.store.begin, checkpoint_id, memory + memory // 20 + 32 * 2**20
        )
        held = False
        snapshot = False
        try:
            on_event(Event(event="progress", stage="dump", total=memory))
            saved = await self.engine.save(
                kernel_id, checkpoint_id, staging.images, mode, hold=request.stop
            )
            held, snapshot = request.stop, True
            on_event(Event(event="progress", stage="pack", total=memory))
            tree = await self.engine.snapshot_tree(checkpoint_id)
            files, (digest, files_size), _ = await asyncio.gather(
                asyncio.to_thread(staging.seal, self._reporter("pack", on_event)),
                asyncio.to_thread(tree_digest, tree),
                self.engine.snapshot_durable(checkpoint_id),
            )
            on_event(Event(event="progress", stage="commit"))
            record = kernel.record
            model = CheckpointModel(
                id=checkpoint_id,
                kernel_id=kernel_id,
                uid=record.uid,
                mode=mode,
                trigger=request.trigger,
                created=_now(),
                image=record.image,
                image_digest=record.image_digest,
                argv=record.argv,
                host=self.facts,
                name=request.name,
                runtime=record.request.runtime,
                kernel_name=record.request.kernel_name,
                parent=record.parent,
                stopped=request.stop,
                mounts=record.mounts,
                limits=record.limits,
                memory_size=sum(f.size for f in files),
                files_size=files_size,
                pause_seconds=saved.pause_seconds,
                save_seconds=time.perf_counter() - began,
            )
            manifest = Manifest(
                version=MANIFEST_VERSION,
                checkpoint=model,
                connection=record.connection,
                env=record.env,
                cwd=record.cwd,
                hostname=record.hostname,
                files=list(files),
                tree_digest=digest,
                facts=saved.facts,
            )
            await asyncio.to_thread(staging.commit, manifest)
        except BaseException as error:
            if held:
                await self.engine.release(kernel_id)
            if snapshot:
                await self.engine.discard(checkpoint_id)
            await asyncio.to_thread(staging.abandon)
            if isinstance(error, OSError):
                raise _from_os_error(error) from error
            raise
        kernel.record.parent = model.id
        if held:
            # Written down first: an agent that dies here finds a kernel that is to be ended,
            # and not one whose state would be lost with it.
            kernel.record.checkpoint = model.id
            await self._set(kernel, "stopped")
            kernel.pid = None
            await self.engine.stop(kernel_id)
        return model

    async def checkpoints(
        self, caller: Caller, kernel: str = "", runtime: str = ""
    ) -> list[CheckpointModel]:
        manifests = await asyncio.to_thread(self.store.list)
        return [
            m.checkpoint
            for m in manifests
            if caller.owns(m.checkpoint.uid)
            and kernel in ("", m.checkpoint.kernel_id)
            and runtime in ("", m.checkpoint.runtime)
        ]

    async def checkpoint(self, caller: Caller, checkpoint_id: str) -> CheckpointModel:
        return (await self._manifest(caller, checkpoint_id)).checkpoint

    async def change_checkpoint(
        self, caller: Caller, checkpoint_id: str, patch: CheckpointPatch
    ) -> CheckpointModel:
        """Name, pin or touch a checkpoint."""
        await self._manifest(caller, checkpoint_id)

        def change(notes: Notes) -> Notes:
            return Notes(
                name=notes.name if patch.name is None else patch.name,
                pinned=notes.pinned if patch.pinned is None else patch.pinned,
                touched=_now() if patch.touch else notes.touched,
            )

        await asyncio.to_thread(self.store.annotate, checkpoint_id, change)
        return await self.checkpoint(caller, checkpoint_id)

    async def copy_checkpoint(
        self, caller: Caller, checkpoint_id: str, request: CopyRequest
    ) -> CheckpointModel:
        """A checkpoint of another runtime with the same data, independent of this one."""
        source = await self._manifest(caller, checkpoint_id)
        model = msgspec.structs.replace(
            source.checkpoint,
            id=str(uuid.uuid4()),
            uid=caller.uid,
            created=_now(),
            trigger="remix",
            runtime=request.runtime,
            name=request.name,
            parent=checkpoint_id,
            stopped=False,
            pinned=False,
            touched="",
        )
        with self._read_lock(checkpoint_id):
            try:
                await self.engine.copy_snapshot(checkpoint_id, model.id)
                await self.engine.snapshot_durable(model.id)
                manifest = msgspec.structs.replace(source, checkpoint=model)
                await asyncio.to_thread(self.store.clone, checkpoint_id, manifest)
            except BaseException as error:
                await self.engine.discard(model.id)
                if isinstance(error, OSError):
                    raise _from_os_error(error, "The checkpoint could not be copied.") from error
                raise
        return model

    async def export(self, caller: Caller, checkpoint_id: str) -> tuple[str, archive.Export]:
        """A checkpoint as an archive, to be opened and read in a thread; and a tag of its content.

        The caller holds :meth:`reading` meanwhile.
        """
        manifest = await self._manifest(caller, checkpoint_id)
        tree = await self.engine.snapshot_tree(checkpoint_id)
        images = await asyncio.to_thread(self.store.images, checkpoint_id)
        key = await asyncio.to_thread(archive.store_key, self.layout.archive_key)
        tag = blake3(msgspec.json.encode(manifest)).hexdigest()[:32]
        return tag, archive.Export(manifest, images.parent, tree.parent, key)

    def reading(self, checkpoint_id: str) -> AbstractContextManager[None]:
        """While it is held the checkpoint is not deleted."""
        return self._read_lock(checkpoint_id)

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
        saved = arrived.manifest
        model = msgspec.structs.replace(
            saved.checkpoint,
            id=str(uuid.uuid4()),
            uid=caller.uid,
            created=_now(),
            trigger="import",
            runtime=runtime or saved.checkpoint.runtime,
            host=msgspec.structs.replace(saved.checkpoint.host, pool=self.facts.pool),
            parent="",
            stopped=False,
            pinned=False,
            touched="",
        )
        staging = await asyncio.to_thread(self.store.begin, model.id, size)
        try:
            await asyncio.to_thread(arrived.unpack_images, staging.images)
            await self.engine.make_snapshot(model.id, arrived.unpack_tree)
            tree = await self.engine.snapshot_tree(model.id)
            files = await asyncio.to_thread(staging.seal)
            digest, files_size = await asyncio.to_thread(tree_digest, tree)
            if files != saved.files or digest != saved.tree_digest:
                raise CheckpointDamaged(
                    "The archive is damaged; nothing was kept.",
                    reason="its content is not what its manifest says",
                    hint="Make it again with `jupyter checkpoints export`.",
                )
            model = msgspec.structs.replace(model, files_size=files_size)
            await self.engine.snapshot_durable(model.id)
            manifest = msgspec.structs.replace(saved, checkpoint=model)
            await asyncio.to_thread(staging.commit, manifest)
        except BaseException as error:
            await self.engine.discard(model.id)
            await asyncio.to_thread(staging.abandon)
            if isinstance(error, OSError):
                raise _from_os_error(error, "The archive could not be imported.") from error
            raise
        return model

    async def usage(self, caller: Caller) -> Usage:
        """What the caller's checkpoints hold. Files of containers are counted as at their save."""
        manifests = await asyncio.to_thread(self.store.list)
        owned = [m for m in manifests if caller.owns(m.checkpoint.uid)]
        return await asyncio.to_thread(self._usage, owned)

    def _usage(self, manifests: list[Manifest]) -> Usage:
        parts: dict[str, dict[tuple[int, int] | str, int]] = {}
        for manifest in manifests:
            files = self.store.held(manifest.checkpoint.id)
            # Copies share their snapshots' data: one part for all that have the same tree.
            tree = (manifest.tree_digest, manifest.checkpoint.files_size)
            parts[manifest.checkpoint.id] = dict([*files.items(), tree])
        holders = Counter(part for held in parts.values() for part in held)
        return Usage(
            total=sum({part: n for held in parts.values() for part, n in held.items()}.values()),
            checkpoints={
                name: sum(n for part, n in held.items() if holders[part] == 1)
                for name, held in parts.items()
            },
        )

    async def delete_checkpoint(self, caller: Caller, checkpoint_id: str) -> None:
        await self._manifest(caller, checkpoint_id)
        if self._reading.get(checkpoint_id):
            raise Conflict(
                f"Checkpoint {checkpoint_id} is being resumed.",
                hint="Try again when that is done.",
            )
        await asyncio.to_thread(self.store.delete, checkpoint_id)
        await self.engine.discard(checkpoint_id)

    async def preflight(self, caller: Caller, checkpoint_id: str) -> PreflightReport:
        """Whether it could be resumed here with the mounts and limits it was saved with."""
        manifest = await self._manifest(caller, checkpoint_id)
        saved = manifest.checkpoint
        return await self._preflight(manifest, saved.mounts, saved.limits)

    async def verify(self, caller: Caller, checkpoint_id: str, on_event: OnEvent) -> VerifyReport:
        manifest = await self._manifest(caller, checkpoint_id)
        with self._read_lock(checkpoint_id):
            return await self._verify(manifest, on_event)

    async def _verify(self, manifest: Manifest, on_event: OnEvent) -> VerifyReport:
        checkpoint_id = manifest.checkpoint.id
        report = await asyncio.to_thread(
            self.store.verify, manifest, self._reporter("verify", on_event)
        )
        problems = list(report.problems)
        size = 0
        try:
            tree = await self.engine.snapshot_tree(checkpoint_id)
            digest, size = await asyncio.to_thread(tree_digest, tree)
        except (OSError, CheckpointsError) as error:
            problems.append(f"files of the container: {error}")
        else:
            if digest != manifest.tree_digest:
                problems.append("files of the container: not what was saved")
        return VerifyReport(
            id=checkpoint_id,
            ok=not problems,
            problems=problems,
            bytes_read=report.bytes_read + size,
        )

    async def _require_intact(self, manifest: Manifest, on_event: OnEvent) -> None:
        on_event(Event(event="progress", stage="verify"))
        report = await self._verify(manifest, on_event)
        if not report.ok:
            raise CheckpointDamaged(
                f"Checkpoint {manifest.checkpoint.id} is damaged; nothing was changed.",
                reason="; ".join(report.problems[:5]),
                hint="Resume another checkpoint, and delete this one.",
            )

    async def _preflight(
        self, manifest: Manifest, mounts: list[Mount], limits: Limits
    ) -> PreflightReport:
        def look() -> list[Finding]:
            files: list[criu.OpenFile] = []
            if manifest.checkpoint.mode == "process" and mounts:
                try:
                    files = criu.open_files(self.store.images(manifest.checkpoint.id))
                except (OSError, ValueError):
                    files = []  # damage is for verify to name
            return preflight.check(
                manifest,
                here=self.facts,
                image_root=self.images.rootfs,
                mounts=mounts,
                limits=limits,
                files=files,
            )

        findings = await asyncio.to_thread(look)
        return PreflightReport(
            ok=not any(f.severity == "block" for f in findings), findings=findings
        )

    # -- images --------------------------------------------------------------------------------

    async def list_images(self) -> list[ImageModel]:
        return await asyncio.to_thread(self.images.list)

    async def remove_image(self, ref: str) -> None:
        """Remove an image that no kernel runs in and no checkpoint needs."""
        in_use = {k.record.image_digest for k in self._kernels.values()}
        manifests = await asyncio.to_thread(self.store.list)
        in_use.update(m.checkpoint.image_digest for m in manifests)
        await asyncio.to_thread(self.images.remove, ref, in_use=in_use)

    # -- inside --------------------------------------------------------------------------------

    def _get(self, caller: Caller, kernel_id: str) -> _Kernel:
        kernel = self._kernels.get(kernel_id)
        if kernel is None or kernel.removed or not caller.owns(kernel.record.uid):
            raise NotFound(
                f"There is no kernel {kernel_id}.", hint="`jupyter checkpoints ps` lists them."
            )
        return kernel

    async def _manifest(self, caller: Caller, checkpoint_id: str) -> Manifest:
        manifest = await asyncio.to_thread(self.store.load, checkpoint_id)
        if not caller.owns(manifest.checkpoint.uid):
            raise NotFound(
                f"There is no checkpoint {checkpoint_id}.",
                hint="`jupyter checkpoints list` lists them.",
            )
        return manifest

    async def _record(self, caller: Caller, request: StartRequest, mounts: list[Mount]) -> _Record:
        if not request.argv or not request.key:
            raise InvalidRequest(
                "A kernel needs an argument vector and a key.",
                reason="`argv` or `key` is empty, and no checkpoint is named.",
            )
        image = await asyncio.to_thread(self.images.resolve, request.image)
        if request.cwd and not os.path.isabs(request.cwd):
            raise InvalidRequest("The working directory must be an absolute path.")
        return _Record(
            request=request,
            uid=caller.uid,
            created=_now(),
            image=image.name,
            image_digest=image.digest,
            argv=request.argv,
            env=_checked_env({**image.env, **request.env}),
            cwd=request.cwd or image.cwd,
            hostname=_hostname(request.kernel_id),
            limits=self._limits(request.limits, self.default_limits),
            mounts=mounts,
            connection=_connection(request.key, request.kernel_name),
        )

    def _record_from(
        self, caller: Caller, request: StartRequest, manifest: Manifest, mounts: list[Mount]
    ) -> _Record:
        saved = manifest.checkpoint
        return _Record(
            request=msgspec.structs.replace(
                request, mode=saved.mode, kernel_name=request.kernel_name or saved.kernel_name
            ),
            uid=caller.uid,
            created=_now(),
            image=saved.image,
            image_digest=saved.image_digest,
            argv=saved.argv,
            env=manifest.env,
            cwd=manifest.cwd,
            hostname=manifest.hostname or _hostname(request.kernel_id),
            limits=self._limits(request.limits, saved.limits),
            mounts=mounts,
            connection=manifest.connection,
        )

    def _limits(self, wanted: Limits, default: Limits) -> Limits:
        return Limits(
            memory=wanted.memory if wanted.memory is not None else default.memory,
            cpus=wanted.cpus if wanted.cpus is not None else default.cpus,
            pids=wanted.pids if wanted.pids is not None else default.pids,
        )

    def _spec(self, kernel: _Kernel, key: str) -> ContainerSpec:
        record = kernel.record
        connection = record.connection
        if key and key != connection.key:
            connection = msgspec.structs.replace(connection, key=key)
        inside = msgspec.structs.replace(connection, ip="0.0.0.0")
        return ContainerSpec(
            kernel_id=record.request.kernel_id,
            rootfs=self.images.rootfs(record.image_digest),
            argv=record.argv,
            env={**record.env, "JUPYTER_CONNECTION_FILE": CONNECTION_FILE},
            cwd=record.cwd,
            hostname=record.hostname,
            mounts=record.mounts,
            limits=record.limits,
            connection_file=msgspec.json.encode(inside).decode(),
            iopub_port=connection.iopub_port,
            ports=list(_ports(connection)),
        )

    async def _running(self, kernel: _Kernel) -> None:
        """The container is up; its address is known now."""
        if kernel.is_in("starting", "resuming"):
            await self._set(kernel, "running")

    async def _set(self, kernel: _Kernel, state: KernelState) -> None:
        """Change a kernel's state: in memory, on disk, and for whoever is attached."""
        record = kernel.record
        record.state = state
        if state in ("starting", "running", "resuming"):
            record.exit_code = None
        await asyncio.to_thread(self._write, record)
        async with kernel.changed:
            kernel.changed.notify_all()

    def _write(self, record: _Record) -> None:
        directory = self.layout.kernel(record.request.kernel_id)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = directory / "record.tmp"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(record))
        os.replace(temporary, directory / "record.json")

    async def _forget(self, kernel_id: str, kernel: _Kernel) -> None:
        kernel.removed = True
        await self.engine.remove(kernel_id)
        self._kernels.pop(kernel_id, None)
        async with kernel.changed:
            kernel.changed.notify_all()

    def _changing(self, kernel: _Kernel, kernel_id: str) -> _Changing:
        return _Changing(kernel, kernel_id)

    def _read_lock(self, checkpoint_id: str) -> _Reading:
        return _Reading(self._reading, checkpoint_id)

    def _reporter(self, stage: str, on_event: OnEvent) -> Progress:
        """A callback for threads that reports at most ten times a second."""
        last = 0.0

        def report(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= 0.1 or done == total:
                last = now
                event = Event(event="progress", stage=stage, done=done, total=total)
                self._loop.call_soon_threadsafe(on_event, event)

        return report

    def _model(self, kernel: _Kernel, memory: int | None = None) -> KernelModel:
        record = kernel.record
        connection = record.connection
        address = self.engine.address(record.request.kernel_id)
        return KernelModel(
            id=record.request.kernel_id,
            state=record.state,
            image=record.image,
            image_digest=record.image_digest,
            argv=record.argv,
            mode=record.request.mode,
            created=record.created,
            uid=record.uid,
            kernel_name=record.request.kernel_name,
            runtime=record.request.runtime,
            checkpoint=record.checkpoint,
            exit_code=record.exit_code,
            pid=kernel.pid,
            mounts=record.mounts,
            limits=record.limits,
            detached=record.request.detached,
            connection=msgspec.structs.replace(connection, ip=address) if address else None,
            memory=memory,
        )

    def _later(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reap_orphans(self) -> None:
        """End kernels whose client has died: a server that was killed cannot end its own."""
        while True:
            await asyncio.sleep(min(10.0, max(self.orphan_grace / 4, 0.1)))
            for kernel_id, kernel in list(self._kernels.items()):
                alone = time.monotonic() - kernel.orphan_since
                if (
                    kernel.attached == 0
                    and not kernel.record.request.detached
                    and not kernel.lock.locked()
                    and alone > self.orphan_grace
                ):
                    log.warning(
                        "Ending kernel %s: nobody has been attached for %d s", kernel_id, alone
                    )
                    try:
                        await self.delete(Caller(0), kernel_id)
                    except CheckpointsError as error:
                        log.warning("Kernel %s could not be ended: %s", kernel_id, error)


class _Changing:
    """One change of a kernel at a time; a kernel that was removed while waiting is gone."""

    def __init__(self, kernel: _Kernel, kernel_id: str) -> None:
        self.kernel, self.kernel_id = kernel, kernel_id

    async def __aenter__(self) -> None:
        await self.kernel.lock.acquire()
        if self.kernel.removed:
            self.kernel.lock.release()
            raise NotFound(f"Kernel {self.kernel_id} was deleted.")

    async def __aexit__(self, *_: object) -> None:
        self.kernel.lock.release()


class _Reading:
    """Counts who reads a checkpoint, so that it is not deleted under them."""

    def __init__(self, counts: dict[str, int], checkpoint_id: str) -> None:
        self.counts, self.id = counts, checkpoint_id

    def __enter__(self) -> None:
        self.counts[self.id] = self.counts.get(self.id, 0) + 1

    def __exit__(self, *_: object) -> None:
        self.counts[self.id] -= 1
        if not self.counts[self.id]:
            del self.counts[self.id]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


def _hostname(kernel_id: str) -> str:
    return f"kernel-{kernel_id[:12]}"


def _connection(key: str, kernel_name: str) -> ConnectionInfo:
    return ConnectionInfo(ip="", key=key, kernel_name=kernel_name, **PORTS)  # type: ignore[arg-type]


def _ports(connection: ConnectionInfo) -> tuple[int, ...]:
    return tuple(getattr(connection, name) for name in PORTS)


def _checked_env(env: dict[str, str]) -> dict[str, str]:
    for name, value in env.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise InvalidRequest(f"{name!r} cannot be the name of an environment variable.")
    if sum(len(n) + len(v) for n, v in env.items()) > 512 * 1024:
        raise InvalidRequest("The environment is larger than 512 KiB.")
    return env


def _checked_mounts(mounts: list[Mount]) -> list[Mount]:
    """Absolute, plain, existing, and not where the container or the agent has its own."""
    targets = set()
    for mount in mounts:
        for path in (mount.source, mount.target):
            if not os.path.isabs(path) or "\0" in path or os.path.normpath(path) != path:
                raise InvalidRequest(
                    f"{path!r} cannot be mounted.",
                    reason="A mount needs absolute paths without `.`, `..` or a slash at the end.",
                )
        if mount.target == "/" or any(
            mount.target == r or mount.target.startswith(r + "/") for r in _RESERVED
        ):
            raise InvalidRequest(f"Nothing can be mounted at {mount.target}.")
        if mount.target in targets:
            raise InvalidRequest(f"Two mounts have the same target: {mount.target}.")
        targets.add(mount.target)
        if not os.path.exists(mount.source):
            raise InvalidRequest(
                f"{mount.source} cannot be mounted.", reason="It does not exist on this host."
            )
    return mounts


def _from_os_error(
    error: OSError, message: str = "The kernel could not be saved; it goes on running."
) -> CheckpointsError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        from ..errors import InsufficientResources

        return InsufficientResources(
            message,
            reason="The disk is full.",
            hint="Free some space, or delete checkpoints.",
        )
    return SaveFailed(message, reason=str(error))
