"""The agent's kernels: who owns them, what state they are in, and what may be done to them.

Every method is called by the API with a
:class:`Caller`; a kernel or checkpoint of somebody else does not exist for them (``NotFound``).
One operation at a time changes a kernel: they queue on its lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import msgspec

from ..errors import (
    CheckpointsError,
    Conflict,
    HostNotReady,
    InvalidRequest,
    NotFound,
    PreflightBlocked,
)
from ..layout import Layout
from ..models import (
    CONNECTION_FILE,
    PYTHON_PATH,
    CheckpointModel,
    ConnectionInfo,
    Event,
    HostFacts,
    ImageModel,
    KernelModel,
    KernelPatch,
    KernelState,
    Limits,
    Mode,
    Mount,
    PreflightReport,
    SaveRequest,
    StartRequest,
)
from ..store.store import MANIFEST_VERSION, Manifest
from ..store.tree import tree_digest
from . import presave
from .background import Background
from .checkpoints import CheckpointService, Storing
from .engines.engine import Adopted, Container, ContainerSpec, Engine, NotLazily, Source
from .identity import OpenMount, identity_of
from .images import Images
from .operation import Operation, Operations
from .records import (
    Caller,
    Record,
    checked_argv,
    checked_env,
    checked_mounts,
    connection_of,
    from_os_error,
    hostname_of,
    now,
    ports_of,
)
from .upkeep import keep_store

log = logging.getLogger(__name__)

_ENDED_SECONDS = 20.0


class _Kernel:
    def __init__(self, record: Record) -> None:
        self.record = record
        self.lock = asyncio.Lock()
        self.pid: int | None = None
        self.attached = 0
        self.orphan_since = time.monotonic()
        self.changed = asyncio.Condition()
        self.removed = False
        self.writing = asyncio.Lock()
        """Held while its record is written: an end may be told in the midst of anything."""
        self.precopying: _Precopying | None = None

    def is_in(self, *states: KernelState) -> bool:
        """Its state may have changed during any ``await``: ask again after each."""
        return self.record.state in states


class _Precopying:
    """A pre-copy that is under way: nobody waits for it, but whoever can use it."""

    def __init__(self, operation: Operation) -> None:
        self.background = Background()
        self._operation = operation

    def give_way(self, *, to_save: bool) -> None:
        """Another operation waits: be quick, or, if it is no save, end."""
        self.background.hurry()
        if not to_save:
            with contextlib.suppress(Conflict):  # it is done, or nearly so
                self._operation.cancel()


class KernelService:
    """See the module. The limits in ``quotas`` are defaults, and for ordinary users maxima."""

    def __init__(
        self,
        *,
        layout: Layout,
        images: Images,
        checkpoints: CheckpointService,
        facts: HostFacts,
        orphan_grace: float,
        compress_after: float,
        keep_precopies: float,
    ) -> None:
        self.opener = checkpoints.opener
        self.layout = layout
        self.images = images
        self.checkpoints = checkpoints
        self.facts = facts
        self.quotas = checkpoints.quotas
        self.orphan_grace = orphan_grace
        self.compress_after = compress_after
        self.keep_precopies = keep_precopies
        #: Held by the one that is made on this host.
        self._precopy_turn = asyncio.Lock()
        self.operations = Operations()
        self.engine: Engine
        self._kernels: dict[str, _Kernel] = {}
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    # -- the agent's start and end -------------------------------------------------------------

    async def open(self, engine: Engine) -> None:
        """Load the records a predecessor left and let the engine take over what runs."""
        self.engine = self.checkpoints.engine = engine
        for name in await asyncio.to_thread(self.checkpoints.store.collect):
            log.info("Removed an unfinished checkpoint: %s", name)
        self.layout.kernels.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in self.layout.kernels.glob("*/record.json"):
            try:
                record = msgspec.json.decode(path.read_bytes(), type=Record)
            except (OSError, msgspec.MsgspecError) as error:
                log.warning("The record of kernel %s cannot be read: %s", path.parent.name, error)
                continue
            self._kernels[path.parent.name] = _Kernel(record)
        manifests = await asyncio.to_thread(self.checkpoints.store.list)
        adopted = await engine.open(
            {k: kernel.is_in("stopped") for k, kernel in self._kernels.items()},
            {m.checkpoint.id for m in manifests},
        )
        for kernel_id, kernel in self._kernels.items():
            await self._take_over(kernel_id, kernel, adopted.get(kernel_id))
        self._later(self._reap_orphans())
        self._later(
            keep_store(
                *(self.checkpoints.store, self.checkpoints.precopies),
                *(self.keep_precopies, self.compress_after),
            )
        )

    async def _take_over(self, kernel_id: str, kernel: _Kernel, adopted: Adopted | None) -> None:
        record = kernel.record
        if adopted is not None and adopted.container is not None:
            kernel.pid = adopted.container.pid
            await self._set(kernel, "running")
            log.info("Took over kernel %s", kernel_id)
        elif record.state not in ("stopped", "exited"):
            record.exit_code = 1 if adopted is None else adopted.exit_code
            record.reason = "" if adopted is None else adopted.reason
            await self._set(kernel, "exited")

    async def close(self) -> None:
        """Let kernels run on; end what only this process does."""
        for kernel in self._kernels.values():
            if kernel.precopying is not None:
                kernel.precopying.give_way(to_save=False)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.engine.close()
        await asyncio.to_thread(self.checkpoints.store.close)
        await asyncio.to_thread(self.opener.close)

    def on_exit(self, kernel_id: str, code: int, reason: str) -> None:
        """The engine's word that a container has ended by itself, or could not go on."""
        kernel = self._kernels.get(kernel_id)
        # One that is stopped has been saved: its container was to end.
        if kernel is not None and not kernel.removed and not kernel.is_in("stopped"):
            kernel.record.state = "exited"
            kernel.record.exit_code = code
            kernel.record.reason = reason
            kernel.pid = None
            self._later(self._set(kernel, "exited"))

    def on_change(self, kernel_id: str) -> None:
        """The engine's word that what it says of a kernel has changed."""
        kernel = self._kernels.get(kernel_id)
        if kernel is not None:
            self._later(self._tell(kernel))

    # -- kernels -------------------------------------------------------------------------------

    def kernels(self, caller: Caller) -> list[KernelModel]:
        return [self._model(k) for k in self._kernels.values() if caller.owns(k.record.uid)]

    async def show(self, caller: Caller, kernel_id: str) -> KernelModel:
        kernel = self._get(caller, kernel_id)
        memory, cpu = await asyncio.gather(
            self.engine.memory(kernel_id), self.engine.cpu_seconds(kernel_id)
        )
        return msgspec.structs.replace(self._model(kernel), memory=memory, cpu_seconds=cpu)

    async def presave(self, caller: Caller, kernel_id: str) -> PreflightReport:
        """Whether a kernel could be saved now, as far as that can be seen from outside."""
        self._get(caller, kernel_id)
        pids = await self.engine.processes(kernel_id)
        found = await asyncio.to_thread(presave.findings, pids)
        return PreflightReport(ok=not found, findings=found)

    async def start(
        self, caller: Caller, request: StartRequest, operation: Operation
    ) -> KernelModel:
        """Start a kernel, start an exited one again, or resume a checkpoint in a new one."""
        kernel = self._require_free(caller, request.kernel_id)
        mounts = checked_mounts(request.mounts)
        manifest: Manifest | None = None
        if request.checkpoint:
            manifest = await self.checkpoints.manifest(caller, request.checkpoint)
            owner = await self._owner(caller, manifest.checkpoint.uid)
            record = self._record_from(owner, request, manifest, mounts)
        else:
            owner = await self._owner(caller, caller.uid if kernel is None else kernel.record.uid)
            record = await self._record(owner, request, mounts)
        await self._check_image(record)
        if manifest is None:
            await asyncio.to_thread(self.opener.create_volumes, record.identity, mounts)
        async with self.opener.opened(record.identity, mounts) as opened:
            return await self._start(caller, record, manifest, opened, operation)

    async def _start(
        self,
        caller: Caller,
        record: Record,
        manifest: Manifest | None,
        mounts: list[OpenMount],
        operation: Operation,
    ) -> KernelModel:
        request = record.request
        kernel = self._require_free(caller, request.kernel_id)
        fresh = kernel is None
        if kernel is not None and kernel.record.uid != record.uid:
            raise Conflict(
                f"Kernel {request.kernel_id} is user {kernel.record.uid}'s, "
                f"and the checkpoint user {record.uid}'s.",
                hint="Resume it in a new kernel.",
            )
        self._require_quota(record)
        if kernel is None:
            kernel = self._kernels[request.kernel_id] = _Kernel(record)
        async with self._changing(kernel, request.kernel_id):
            if not fresh:
                self._require_free(caller, request.kernel_id)
            earlier = kernel.record
            kernel.record = record
            try:
                operation.check()
                await self._set(kernel, "starting" if manifest is None else "resuming")
                if manifest is None:
                    container = await self.engine.start(await self._spec(kernel, "", mounts))
                    kernel.pid = container.pid
                else:
                    await self._resume(kernel, manifest, mounts, False, operation)
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
        self, caller: Caller, kernel_id: str, checkpoint_id: str, operation: Operation
    ) -> KernelModel:
        """Put a kernel back to one of its checkpoints: same id, same address, same ports."""
        kernel = self._get(caller, kernel_id)
        manifest = await self.checkpoints.manifest(caller, checkpoint_id)
        async with self._changing(kernel, kernel_id):
            record = kernel.record
            if ports_of(manifest.connection) != ports_of(record.connection):
                raise Conflict(
                    "This checkpoint belongs to a kernel with another connection.",
                    hint="Resume it in a new kernel.",
                )
            if manifest.checkpoint.uid != record.uid:
                raise Conflict(
                    f"The kernel is user {record.uid}'s, and the checkpoint "
                    f"user {manifest.checkpoint.uid}'s.",
                    hint="Resume it in a new kernel.",
                )
            await self._check_image_of(record.uid, manifest.checkpoint.image_digest)
            if kernel.is_in("stopped", "exited"):
                self._require_quota(record)
            keep = record.state == "stopped" and record.checkpoint == checkpoint_id
            before = record.state, record.exit_code, record.reason
            try:
                operation.check()
                await self._set(kernel, "resuming")
                async with self.opener.opened(record.identity, record.mounts) as mounts:
                    await self._resume(kernel, manifest, mounts, keep, operation)
            except BaseException:
                # If it has ended meanwhile, on_exit has said so.
                if kernel.is_in("resuming"):
                    state, record.exit_code, record.reason = before
                    await self._set(kernel, state)
                raise
            await self._running(kernel)
        return self._model(kernel)

    async def _resume(
        self,
        kernel: _Kernel,
        manifest: Manifest,
        mounts: list[OpenMount],
        keep: bool,
        operation: Operation,
    ) -> None:
        record = kernel.record
        checkpoint = manifest.checkpoint
        with self.checkpoints.reading(checkpoint.id):
            operation(Event(event="progress", stage="preflight"))
            report = await self.checkpoints.check(
                manifest, record.identity, record.mounts, record.limits
            )
            if not report.ok:
                raise PreflightBlocked(
                    "This checkpoint cannot be resumed on this host; nothing was changed.",
                    findings=[msgspec.to_builtins(f) for f in report.findings],
                )
            recorded = {m.target for m in checkpoint.mounts}
            spec = await self._spec(kernel, manifest.connection.key, mounts)
            if not manifest.machine_id:
                spec = msgspec.structs.replace(spec, machine_id="")
            if checkpoint.mode == "process":
                # A mount that was not there at the save cannot be put into a restored container.
                spec = msgspec.structs.replace(
                    spec, mounts=[m for m in spec.mounts if m.target in recorded]
                )
            pages = ""
            if checkpoint.mode == "process" and await self.engine.lazily(spec):
                pages = await asyncio.to_thread(self.checkpoints.pages, checkpoint.id)
            if pages and kernel.pid is not None:
                # What is wrong with the memory would show only when its predecessor has gone.
                await self.checkpoints.require_intact(manifest, operation)
            try:
                container = await self._put_back(spec, manifest, keep, pages, operation)
            except NotLazily as why:
                log.info("All memory of kernel %s is brought at once: %s", spec.kernel_id, why)
                container = await self._put_back(spec, manifest, keep, "", operation)
            kernel.pid = container.pid
            record.checkpoint = record.parent = checkpoint.id
            # Its key may be another than that of the state it replaces.
            record.connection = manifest.connection

    async def _put_back(
        self,
        spec: ContainerSpec,
        manifest: Manifest,
        keep: bool,
        pages: str,
        operation: Operation,
    ) -> Container:
        lazily = bool(pages)
        record = self._kernels[spec.kernel_id].record

        def commit() -> None:
            operation.settle()
            # If an end was told of meanwhile it was that of the container that is replaced.
            record.state = "resuming"

        async with self.checkpoints.intact(manifest, operation, lazily=lazily) as images:
            operation.check()
            operation(Event(event="progress", stage="restore"))
            source = Source(
                checkpoint_id=manifest.checkpoint.id,
                mode=manifest.checkpoint.mode,
                images=images,
                keep_connections=keep,
                hostname=manifest.hostname,
                facts=manifest.facts,
                pages=pages,
            )
            return await self.engine.resume(spec, source, commit=commit)

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
        if signum == signal.SIGINT and self.engine.is_paused(kernel_id):
            raise Conflict(
                f"Kernel {kernel_id} is paused: it would be interrupted only when it goes on.",
                reason="Somebody has paused its container.",
                hint="Let it go on first, with `docker unpause`.",
            )
        await self.engine.signal(kernel_id, signum)

    async def change(self, caller: Caller, kernel_id: str, patch: KernelPatch) -> KernelModel:
        """Give a kernel to another runtime, or take note of its new key.

        Its checkpoints so far stay as they are.
        """
        kernel = self._get(caller, kernel_id)
        async with self._changing(kernel, kernel_id):
            record = kernel.record
            if patch.runtime is not None:
                record.request = msgspec.structs.replace(record.request, runtime=patch.runtime)
            if patch.key is not None:
                record.connection = msgspec.structs.replace(record.connection, key=patch.key)
                await self.engine.show_connection(kernel_id, _connection_file(record.connection))
            await self._set(kernel, record.state)
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
        self, caller: Caller, kernel_id: str, request: SaveRequest, operation: Operation
    ) -> CheckpointModel:
        """Save a kernel. It goes on as soon as its state is taken, not when all is written.

        With ``request.stop`` it stands still until the checkpoint is committed, and then ends;
        if the checkpoint cannot be committed it goes on as if nothing had happened.
        """
        kernel = self._get(caller, kernel_id)
        async with self._changing(kernel, kernel_id, to_save=True):
            _require_running(kernel)
            try:
                operation.check()
                await self._set(kernel, "saving")
                model = await self._save(kernel, request, operation)
            except BaseException:
                if kernel.is_in("saving"):
                    await self._set(kernel, "running")
                raise
            if kernel.is_in("saving"):
                await self._set(kernel, "running")
        return model

    async def _save(
        self, kernel: _Kernel, request: SaveRequest, operation: Operation
    ) -> CheckpointModel:
        mode = request.mode or kernel.record.request.mode
        memory = 0
        if mode == "process":
            await self.engine.filled(kernel.record.request.kernel_id)
            operation.check()
            memory = await self.engine.memory(kernel.record.request.kernel_id)
        async with self.checkpoints.storing(kernel.record.uid, _needed(memory)) as storing:
            return await self._save_within(kernel, request, mode, memory, storing, operation)

    async def _save_within(
        self,
        kernel: _Kernel,
        request: SaveRequest,
        mode: Mode,
        memory: int,
        storing: Storing,
        operation: Operation,
    ) -> CheckpointModel:
        began = time.perf_counter()
        kernel_id = kernel.record.request.kernel_id
        checkpoint_id = str(uuid.uuid4())
        basis = await self._basis(kernel)
        staging = await asyncio.to_thread(
            self.checkpoints.store.begin, checkpoint_id, storing.needed, basis
        )
        held = False
        snapshot = False
        try:
            operation(Event(event="progress", stage="dump", total=memory))
            saved = await self.engine.save(
                kernel_id, staging, mode, parent=basis, hold=request.stop
            )
            held, snapshot = request.stop, True
            # The dump itself is never broken off: CRIU is in the kernel's processes meanwhile.
            operation.check()
            operation(Event(event="progress", stage="pack", total=memory))
            tree = await self.engine.snapshot_tree(checkpoint_id)
            files, (digest, files_size), _ = await asyncio.gather(
                asyncio.to_thread(staging.seal, self.checkpoints.reporter("pack", operation)),
                asyncio.to_thread(tree_digest, tree),
                self.engine.snapshot_durable(checkpoint_id),
            )
            operation(Event(event="progress", stage="commit"))
            record = kernel.record
            model = CheckpointModel(
                id=checkpoint_id,
                kernel_id=kernel_id,
                uid=record.uid,
                mode=mode,
                trigger=request.trigger,
                created=now(),
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
                execution_count=request.execution_count,
                cpu_seconds=saved.cpu_seconds,
            )
            manifest = Manifest(
                version=MANIFEST_VERSION,
                checkpoint=model,
                connection=record.connection,
                env=record.env,
                cwd=record.cwd,
                hostname=record.hostname,
                machine_id=record.machine_id,
                files=list(files),
                tree_digest=digest,
                facts=saved.facts,
            )
            storing.check(model.memory_size + model.files_size)
            operation.settle()
            await asyncio.to_thread(staging.commit, manifest)
        except BaseException as error:
            if held:
                await self.engine.release(kernel_id)
            if snapshot:
                await self.engine.discard(checkpoint_id)
            await asyncio.to_thread(staging.abandon)
            if isinstance(error, OSError):
                raise from_os_error(error) from error
            raise
        kernel.record.parent = model.id
        await self._give_up_precopy(kernel)
        if held:
            # Written down first: an agent that dies here finds a kernel that is to be ended,
            # and not one whose state would be lost with it.
            kernel.record.checkpoint = model.id
            await self._set(kernel, "stopped")
            kernel.pid = None
            await self.engine.stop(kernel_id)
        return model

    # -- ahead of a save -----------------------------------------------------------------------

    async def precopy(self, caller: Caller, kernel_id: str, operation: Operation) -> KernelModel:
        """Copy the memory of a kernel ahead of its next save, which has to write less then.

        The kernel goes on, and no checkpoint is made. A save that comes meanwhile waits for it and
        builds on it; whatever else is to be done with the kernel ends it.
        """
        kernel = self._get(caller, kernel_id)
        if self._precopy_turn.locked() or kernel.lock.locked():
            # Nobody is to wait for this, neither here nor in a queue of his own operations.
            raise Conflict(f"Kernel {kernel_id} is being saved or changed, or another is copied.")
        _require_running(kernel)
        if kernel.record.request.mode != "process":
            raise InvalidRequest(f"Of kernel {kernel_id} files are saved, and no memory.")
        if not self.checkpoints.store.has_precopies:
            raise HostNotReady(
                "Nothing can be copied ahead of a save here.",
                reason="Checkpoints are kept whole (`store_format`).",
            )
        async with self._precopy_turn, self._changing(kernel, kernel_id):
            kernel.precopying = _Precopying(operation)
            try:
                await self._precopy(kernel, kernel.precopying.background, operation)
            finally:
                kernel.precopying = None
                if not kernel.is_in("running"):
                    await self._give_up_precopy(kernel)
        return self._model(kernel)

    async def _precopy(self, kernel: _Kernel, background: Background, operation: Operation) -> None:
        kernel_id = kernel.record.request.kernel_id
        memory = await self.engine.memory(kernel_id)
        operation(Event(event="progress", stage="copy", total=memory))
        # So much that what is saved later fits beside it.
        needed = 2 * _needed(memory)
        async with self.checkpoints.storing(kernel.record.uid, needed):
            basis = await self._basis(kernel)
            precopy_id = str(uuid.uuid4())
            staging = await asyncio.to_thread(
                self.checkpoints.store.begin, precopy_id, needed, basis
            )
            try:
                await self.engine.precopy(
                    kernel_id,
                    staging,
                    parent=basis,
                    background=background,
                    check=operation.check,
                )
                operation.check()
                report = self.checkpoints.reporter("pack", operation)
                made = await background.run(lambda: staging.precopy(report))
            except BaseException:
                await asyncio.to_thread(staging.abandon)
                raise
            if made:
                await asyncio.to_thread(
                    self.checkpoints.precopies.add, kernel_id, kernel.record.uid, precopy_id
                )
                log.info(
                    "Kernel %s: %.0f MB are copied ahead of its next save", kernel_id, memory / 1e6
                )

    async def forget_precopy(self, caller: Caller, kernel_id: str) -> None:
        """Give up what was copied ahead of a kernel's next save; it is whole then."""
        kernel = self._get(caller, kernel_id)
        async with self._changing(kernel, kernel_id):
            await self._give_up_precopy(kernel)

    async def _basis(self, kernel: _Kernel) -> str:
        """What the next save is compared with: what was copied ahead, or a checkpoint."""
        kernel_id = kernel.record.request.kernel_id
        made = await asyncio.to_thread(self.checkpoints.precopies.of, kernel_id)
        return made or kernel.record.parent

    async def _give_up_precopy(self, kernel: _Kernel) -> None:
        kernel_id = kernel.record.request.kernel_id
        await asyncio.to_thread(self.checkpoints.precopies.give_up, kernel_id)

    # -- images --------------------------------------------------------------------------------

    async def list_images(self) -> list[ImageModel]:
        return await asyncio.to_thread(self.images.list)

    async def remove_image(self, ref: str) -> None:
        """Remove an image that no kernel runs in and no checkpoint needs."""
        in_use = {k.record.image_digest for k in self._kernels.values()}
        manifests = await asyncio.to_thread(self.checkpoints.store.list)
        in_use.update(m.checkpoint.image_digest for m in manifests)
        await asyncio.to_thread(self.images.remove, ref, in_use=in_use)

    # -- inside --------------------------------------------------------------------------------

    def _get(self, caller: Caller, kernel_id: str) -> _Kernel:
        kernel = self._kernels.get(kernel_id)
        if kernel is None or kernel.removed or not caller.reaches(kernel.record.uid):
            raise NotFound(
                f"There is no kernel {kernel_id}.", hint="`jupyter checkpoints ps` lists them."
            )
        return kernel

    def _require_free(self, caller: Caller, kernel_id: str) -> _Kernel | None:
        """The caller's kernel of that id, if there is one; it has ended. Ask again after awaits."""
        kernel = self._kernels.get(kernel_id)
        if kernel is not None and not caller.reaches(kernel.record.uid):
            raise Conflict("This kernel id is taken.", hint="Choose another id.")
        if kernel is not None and not kernel.is_in("exited", "stopped"):
            raise Conflict(
                f"Kernel {kernel_id} is {kernel.record.state}.",
                hint="Delete it first, or wait until it has ended.",
            )
        return kernel

    async def _owner(self, caller: Caller, uid: int) -> Caller:
        """Whose a kernel is to be: what was somebody's stays his, whoever starts it."""
        if uid == caller.uid:
            return caller
        return Caller(uid, await asyncio.to_thread(identity_of, uid))

    async def _check_image(self, record: Record) -> None:
        await self._check_image_of(record.uid, record.image_digest)

    async def _check_image_of(self, uid: int, digest: str) -> None:
        if uid == 0:
            return
        known = await asyncio.to_thread(self.images.list)
        names = [image.name for image in known if image.digest == digest]
        self.quotas.check_image(uid, [*names, digest], (names or [digest[:12]])[0])

    def _require_quota(self, record: Record) -> None:
        """Whether its owner may have this kernel as well; no ``await`` until it is counted."""
        others = [
            k.record
            for k in self._kernels.values()
            if k.record.uid == record.uid
            and k.record.request.kernel_id != record.request.kernel_id
            and not k.removed
            and not k.is_in("exited", "stopped")
        ]
        self.quotas.check_kernels(record.uid, len(others))
        promised = sum(other.limits.memory or 0 for other in others)
        memory = self.quotas.memory_left(record.uid, promised, record.limits.memory)
        record.limits = msgspec.structs.replace(record.limits, memory=memory)

    async def _record(self, caller: Caller, request: StartRequest, mounts: list[Mount]) -> Record:
        if not request.argv or not request.key:
            raise InvalidRequest(
                "A kernel needs an argument vector and a key.",
                reason="`argv` or `key` is empty, and no checkpoint is named.",
            )
        image = await asyncio.to_thread(self.images.resolve, request.image)
        if request.cwd and not (os.path.isabs(request.cwd) and request.cwd.isprintable()):
            raise InvalidRequest("The working directory must be an absolute path.")
        self.quotas.check_limits(caller.uid, request.limits)
        return Record(
            request=request,
            uid=caller.uid,
            identity=caller.identity,
            created=now(),
            image=image.name,
            image_digest=image.digest,
            argv=checked_argv(request.argv),
            env=checked_env({**image.env, **request.env}),
            cwd=request.cwd or image.cwd,
            hostname=hostname_of(request.kernel_id),
            machine_id=uuid.uuid4().hex,
            limits=self._limits(request.limits, self.quotas.maxima),
            mounts=mounts,
            connection=connection_of(request.key, request.kernel_name),
        )

    def _record_from(
        self, caller: Caller, request: StartRequest, manifest: Manifest, mounts: list[Mount]
    ) -> Record:
        saved = manifest.checkpoint
        self.quotas.check_limits(caller.uid, request.limits)
        return Record(
            request=msgspec.structs.replace(
                request, mode=saved.mode, kernel_name=request.kernel_name or saved.kernel_name
            ),
            uid=caller.uid,
            identity=caller.identity,
            created=now(),
            image=saved.image,
            image_digest=saved.image_digest,
            argv=saved.argv,
            env=manifest.env,
            cwd=manifest.cwd,
            hostname=hostname_of(request.kernel_id)
            if "host_name" in request.renew or not manifest.hostname
            else manifest.hostname,
            # A container that had none when it was saved cannot get one.
            machine_id=uuid.uuid4().hex
            if "machine_id" in request.renew and manifest.machine_id
            else manifest.machine_id,
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

    async def _spec(self, kernel: _Kernel, key: str, mounts: list[OpenMount]) -> ContainerSpec:
        record = kernel.record
        connection = record.connection
        if key and key != connection.key:
            connection = msgspec.structs.replace(connection, key=key)
        return ContainerSpec(
            kernel_id=record.request.kernel_id,
            identity=record.identity,
            image_digest=record.image_digest,
            argv=record.argv,
            env={**_with_python_path(record.env), "JUPYTER_CONNECTION_FILE": CONNECTION_FILE},
            cwd=record.cwd,
            hostname=record.hostname,
            machine_id=record.machine_id,
            mounts=mounts,
            limits=record.limits,
            connection_file=_connection_file(connection),
            iopub_port=connection.iopub_port,
            ports=list(ports_of(connection)),
        )

    async def _running(self, kernel: _Kernel) -> None:
        """The container is up; its address is known now."""
        if kernel.is_in("starting", "resuming"):
            await self._set(kernel, "running")

    async def _set(self, kernel: _Kernel, state: KernelState) -> None:
        """Change a kernel's state: in memory, on disk, and for whoever is attached."""
        record = kernel.record
        record.state = state
        if state in ("starting", "running", "resuming", "stopped"):
            record.exit_code = None
            record.reason = ""
        async with kernel.writing:
            if not kernel.removed:
                await asyncio.to_thread(self._write, record)
        if state not in ("running", "saving"):
            # These processes are no more, or are not going to be.
            await self._give_up_precopy(kernel)
        await self._tell(kernel)

    async def _tell(self, kernel: _Kernel) -> None:
        async with kernel.changed:
            kernel.changed.notify_all()

    def _write(self, record: Record) -> None:
        directory = self.layout.kernel(record.request.kernel_id)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = directory / "record.tmp"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(record))
        os.replace(temporary, directory / "record.json")

    async def _forget(self, kernel_id: str, kernel: _Kernel) -> None:
        kernel.removed = True
        async with kernel.writing:
            await self.engine.remove(kernel_id)
        await self._give_up_precopy(kernel)
        self._kernels.pop(kernel_id, None)
        await self._tell(kernel)

    def _changing(self, kernel: _Kernel, kernel_id: str, *, to_save: bool = False) -> _Changing:
        return _Changing(kernel, kernel_id, to_save)

    def _model(self, kernel: _Kernel) -> KernelModel:
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
            reason=record.reason,
            paused=self.engine.is_paused(record.request.kernel_id),
            pid=kernel.pid,
            mounts=record.mounts,
            limits=record.limits,
            detached=record.request.detached,
            connection=msgspec.structs.replace(connection, ip=address) if address else None,
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
                # One that has ended is kept only for whoever wants to know how, or to restart it.
                ended = kernel.is_in("exited")
                grace = min(self.orphan_grace, _ENDED_SECONDS) if ended else self.orphan_grace
                if (
                    kernel.attached == 0
                    and not kernel.record.request.detached
                    and not kernel.lock.locked()
                    and alone > grace
                ):
                    log.warning(
                        "Ending kernel %s: nobody has been attached for %d s", kernel_id, alone
                    )
                    try:
                        await self.delete(Caller(0), kernel_id)
                    except CheckpointsError as error:
                        log.warning("Kernel %s could not be ended: %s", kernel_id, error)


def _require_running(kernel: _Kernel) -> None:
    if not kernel.is_in("running"):
        raise Conflict(
            f"Kernel {kernel.record.request.kernel_id} is {kernel.record.state}: "
            "there is nothing to save.",
            hint="Only a running kernel can be saved.",
        )


def _needed(memory: int) -> int:
    """Bytes that a checkpoint may need: page tables, sockets and pipes come on top of the pages."""
    return memory + memory // 20 + 32 * 2**20


def _connection_file(connection: ConnectionInfo) -> str:
    """The connection file as it is inside of a container."""
    return msgspec.json.encode(msgspec.structs.replace(connection, ip="0.0.0.0")).decode()


def _with_python_path(env: dict[str, str]) -> dict[str, str]:
    """Python in the container finds the part of this package that is for it."""
    path = env.get("PYTHONPATH", "")
    return {**env, "PYTHONPATH": f"{path}:{PYTHON_PATH}" if path else PYTHON_PATH}


class _Changing:
    """One change of a kernel at a time; a kernel that was removed while waiting is gone."""

    def __init__(self, kernel: _Kernel, kernel_id: str, to_save: bool) -> None:
        self.kernel, self.kernel_id, self.to_save = kernel, kernel_id, to_save

    async def __aenter__(self) -> None:
        if self.kernel.precopying is not None:
            self.kernel.precopying.give_way(to_save=self.to_save)
        await self.kernel.lock.acquire()
        if self.kernel.removed:
            self.kernel.lock.release()
            raise NotFound(f"Kernel {self.kernel_id} was deleted.")

    async def __aexit__(self, *_: object) -> None:
        self.kernel.lock.release()
