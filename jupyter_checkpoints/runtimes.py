"""Notebooks, their runtimes and their kernels: when to save, what to resume, what to keep.

The server extension's policies, without tornado. The kernel manager asks before it starts and
before it culls a kernel, the REST handlers ask for what users want, timers ask for the rest. What
touches kernels goes through :class:`Kernels`, what touches notebooks through the contents manager,
what touches checkpoints through the agent's client.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Protocol

import msgspec
from msgspec import Struct
from traitlets import Bool, Enum, Float, Integer
from traitlets.config import LoggingConfigurable

from .client import connect
from .errors import (
    Cancelled,
    CheckpointDamaged,
    CheckpointsError,
    Conflict,
    NotFound,
    PreflightBlocked,
)
from .event_schemas import PREFLIGHT_EVENT, RUNTIME_EVENT, SAVE_EVENT, error_fields
from .metadata import NotebookSettings
from .models import (
    CheckpointModel,
    CheckpointPatch,
    ConnectionInfo,
    Event,
    KernelPatch,
    Mode,
    SaveRequest,
    Trigger,
    VerifyReport,
)
from .notebooks import ON_RESUME_TAG, Notebooks, not_enabled
from .operations import Operation, Operations, known
from .registry import Registry
from .renewal import renewal_code
from .retention import Policy, Verdict, prunable

Emit = Callable[[str, dict[str, Any]], None]


class Kernels(Protocol):
    """What is asked of the server's kernel manager."""

    def in_container(self, kernel_id: str) -> bool:
        """Whether it is a kernel that can be saved."""

    def last_activity(self, kernel_id: str) -> datetime | None:
        """When something was last run in it; ``None`` if there is no such kernel."""

    def is_busy(self, kernel_id: str) -> bool:
        """Whether it is running something now."""

    def in_use(self, kernel_id: str) -> bool:
        """Whether it runs something, or a page is there that keeps it from being culled."""

    def language(self, kernel_id: str) -> str:
        """The language of its kernelspec, in small letters."""

    async def start_resumed(self, plan: Plan) -> str:
        """Start a new kernel from a plan's checkpoint; returns its id."""

    async def end(self, kernel_id: str) -> None:
        """Shut a kernel down that another has replaced."""

    async def adopt(self, kernel_id: str, connection: ConnectionInfo) -> bool:
        """It was put to another state: take over its key; whether it answers (or runs a cell)."""

    async def execute(self, kernel_id: str, code: str, timeout: float) -> str:
        """Run code that no history keeps; returns what went wrong, or nothing."""


class NotebookSessions(Protocol):
    """What is asked of the server's session manager."""

    async def path_of_kernel(self, kernel_id: str) -> str:
        """The path of the kernel's notebook, or empty."""

    async def change_kernel(self, path: str, kernel_id: str) -> str:
        """Give the notebook's session another kernel; the id of the one it had, or empty."""


class Plan(Struct, frozen=True, kw_only=True):
    """How a kernel is to be started."""

    path: str = ""
    runtime: str = ""
    checkpoint: CheckpointModel | None = None
    mode: Mode | None = None
    operation: str = ""
    """The operation that resumes it, where that is one."""


class _Bound(Struct, kw_only=True):
    """A kernel of this server and what it was saved to."""

    kernel_id: str
    path: str
    runtime: str
    checkpoint: str = ""
    """The newest checkpoint that holds its state."""
    seen: datetime | None = None
    """Its last activity when it was saved to, or started."""
    dirty: bool = False
    """Its state changed in a way that activity does not tell."""
    final: bool = False
    """It was saved for good and is only to be ended."""
    warned: bool = False
    """Its memory is near the limit, and it was saved for that."""
    cell: int | None = None
    """The number of the last cell that it has run, where that is known."""


class Runtimes(LoggingConfigurable):
    """See the module. Made once by the extension; lives on the server's event loop."""

    autosave_idle_timeout = Float(
        600.0,
        help="Seconds without activity after which a kernel is saved, once; 0: never. So whoever "
        "stops the whole server, a hub for instance, loses nothing.",
    ).tag(config=True)
    autosave_before_restart = Bool(
        False, help="Save a kernel before the restart that a user asks for."
    ).tag(config=True)
    on_save_failure = Enum(
        ["keep", "release"],
        "keep",
        help="What becomes of a kernel that is to be culled and cannot be saved: `keep` it "
        "running, or `release` it, and its state with it. Either way the user is told.",
    ).tag(config=True)
    verify_before_cull = Bool(
        True, help="Read a checkpoint again, whole, before its kernel is shut down."
    ).tag(config=True)
    max_concurrent_saves = Integer(
        4, min=1, help="How many kernels are saved at once; more are waiting."
    ).tag(config=True)
    shutdown_save_timeout = Float(
        60.0, help="Seconds in which all kernels have to be saved when the server stops."
    ).tag(config=True)
    danger_memory = Float(
        0.9,
        help="Save a kernel when it uses this part of its memory limit, before the limit ends it; "
        "0: never.",
    ).tag(config=True)
    danger_disk = Integer(
        512 * 2**20,
        help="Save all kernels when fewer bytes than this are free where the notebooks are; "
        "0: never.",
    ).tag(config=True)
    watch_interval = Float(15.0, help="Seconds between two looks at idle times and dangers.").tag(
        config=True
    )
    tidy_interval = Float(
        3600.0, help="Seconds between two looks at the checkpoints of deleted notebooks."
    ).tag(config=True)
    max_archive = Integer(
        16 * 2**30, help="Bytes that an archive may have to be imported by REST."
    ).tag(config=True)
    wake = Bool(
        True, help="Resume a notebook's newest checkpoint when its kernel starts next."
    ).tag(config=True)
    renew_random = Bool(
        True,
        help="In a new kernel that goes on from a checkpoint (Python only), renew OpenSSL's random "
        "numbers and the names of temporary files: two kernels must not share these.",
    ).tag(config=True)
    reseed_random = Bool(
        False,
        help="There, seed `random` and NumPy anew as well. It changes what cells compute.",
    ).tag(config=True)
    on_resume_timeout = Float(
        60.0, help=f"Seconds that each cell with the tag `{ON_RESUME_TAG}` may take."
    ).tag(config=True)

    keep_last = Integer(10, help="Keep so many of the newest of each runtime.").tag(config=True)
    keep_hourly = Integer(0, help="Keep one for each of so many hours.").tag(config=True)
    keep_daily = Integer(7, help="Keep one for each of so many days.").tag(config=True)
    keep_weekly = Integer(4, help="Keep one for each of so many weeks.").tag(config=True)
    runtime_quota = Integer(0, help="Bytes for the checkpoints of one runtime; 0: any.").tag(
        config=True
    )
    user_quota = Integer(0, help="Bytes for all checkpoints of this user; 0: any.").tag(config=True)
    orphan_grace = Float(
        30 * 86400.0, help="Seconds that the checkpoints of a deleted notebook are kept."
    ).tag(config=True)

    def __init__(
        self,
        *,
        contents: Any,
        emit: Emit,
        kernels: Kernels,
        sessions: NotebookSessions,
        registry: Registry | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.operations = Operations()
        self.registry = registry or Registry()
        self.notebooks = Notebooks(
            parent=self,
            contents=contents,
            registry=self.registry,
            tell=self.tell,
            save_original=self.save_original,
        )
        self.stopping = False
        #: What the user is to read in the banner of a kernel, by kernel.
        self.notices: dict[str, str] = {}
        self._emit = emit
        self._kernels = kernels
        self._sessions = sessions
        self._bound: dict[str, _Bound] = {}
        self._saving: dict[str, Operation] = {}
        self._resuming: dict[str, asyncio.Event] = {}
        self._fresh: set[str] = set()
        self._slots = asyncio.Semaphore(self.max_concurrent_saves)
        self._disk_low = False
        self._tasks: set[asyncio.Task[None]] = set()

    # -- life ---------------------------------------------------------------------------------

    def open(self) -> None:
        """Start the timers. Called when the server's event loop runs."""
        self._later(self._watch())
        self._later(self._tidy())

    async def close(self) -> None:
        """Save what asks for it, within the time limit. Called before kernels are shut down."""
        self.stopping = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not self._bound:
            return
        failed = await self.save_all("shutdown", stop=True, timeout=self.shutdown_save_timeout)
        for kernel_id, reason in failed.items():
            path = self._bound[kernel_id].path if kernel_id in self._bound else ""
            self.log.error(
                "Kernel %s (%s) could not be saved before the server stops, and its state is "
                "lost: %s",
                kernel_id,
                path or "no notebook",
                reason,
            )

    # -- starting -----------------------------------------------------------------------------

    async def plan_start(self, path: str, kernel_name: str, *, fresh: bool = False) -> Plan:
        """How the kernel of a notebook is to be started: afresh, or from its newest checkpoint."""
        settings = await self.notebooks.settings(path)
        runtime = await self.notebooks.runtime_of(path, settings)
        if not runtime:
            return Plan(path=path)
        fresh = fresh or runtime in self._fresh
        self._fresh.discard(runtime)
        checkpoint = None
        if self.wake and not fresh:
            try:
                async with connect() as agent:
                    checkpoint = next(
                        (
                            c
                            for c in await agent.checkpoints(runtime=runtime)
                            if c.kernel_name == kernel_name
                        ),
                        None,
                    )
            except CheckpointsError as error:
                self.log.warning("No checkpoint can be looked for: %s", error)
        return Plan(path=path, runtime=runtime, checkpoint=checkpoint, mode=settings.mode)

    def start_fresh_next(self, runtime: str) -> None:
        """The next kernel of this runtime starts without a checkpoint, once."""
        self._fresh.add(runtime)

    async def started(
        self, kernel_id: str, plan: Plan, *, resumed: bool, busy: bool = False
    ) -> None:
        """A kernel has started; with ``resumed`` it stands where its checkpoint was made.

        ``busy``: in the middle of a cell, it seems.
        """
        bound = _Bound(kernel_id=kernel_id, path=plan.path, runtime=plan.runtime, cell=0)
        self._bound[kernel_id] = bound
        if resumed and plan.checkpoint is not None:
            bound.checkpoint = plan.checkpoint.id
            bound.cell = plan.checkpoint.execution_count
            if not busy:
                await self._renew(kernel_id)
            await self._run_on_resume(kernel_id, plan.path, busy=busy)
            self.tell(
                RUNTIME_EVENT,
                action="resumed",
                kernel_id=kernel_id,
                notebook=plan.path,
                runtime=plan.runtime,
                checkpoint=plan.checkpoint.id,
                in_place=False,
            )
        bound.seen = self._kernels.last_activity(kernel_id)

    def resume_failed(self, kernel_id: str, plan: Plan, error: CheckpointsError) -> None:
        """The kernel is going to start fresh instead; the user is to know why."""
        assert plan.checkpoint is not None
        self.log.warning("%s starts afresh: %s", plan.path or kernel_id, error)
        self.notices[kernel_id] = (
            f"This kernel was started fresh: its runtime checkpoint of {plan.checkpoint.created} "
            f"could not be resumed, and is kept.\n{error}\n\n"
        )
        self._tell_failed(kernel_id, plan.checkpoint, plan.path, error, in_place=False)

    def _tell_failed(
        self,
        kernel_id: str,
        checkpoint: CheckpointModel,
        path: str,
        error: CheckpointsError,
        *,
        in_place: bool,
    ) -> None:
        self.tell(
            RUNTIME_EVENT,
            action="resume_cancelled" if isinstance(error, Cancelled) else "resume_failed",
            kernel_id=kernel_id,
            notebook=path,
            runtime=checkpoint.runtime,
            checkpoint=checkpoint.id,
            in_place=in_place,
            **error_fields(error),
        )
        if isinstance(error, PreflightBlocked):
            self.tell(
                PREFLIGHT_EVENT,
                checkpoint=checkpoint.id,
                kernel_id=kernel_id,
                notebook=path,
                findings=error.findings,
            )

    async def _renew(self, kernel_id: str) -> None:
        """Renew what no two kernels may share."""
        if not self.renew_random:
            return
        language = self._kernels.language(kernel_id)
        if code := renewal_code(language, seeds=self.reseed_random):
            problem = await self._kernels.execute(kernel_id, code, self.on_resume_timeout)
            if problem:
                self.log.warning("Kernel %s keeps its random numbers: %s", kernel_id, problem)

    async def _run_on_resume(self, kernel_id: str, path: str, *, busy: bool) -> None:
        """Run the cells that are to run after a resume; what they raise is told, not raised."""
        cells = await self.notebooks.on_resume_cells(path)
        if busy and cells:
            self.notices[kernel_id] = (
                f"This kernel goes on in the middle of a cell: the cells with the tag "
                f"`{ON_RESUME_TAG}` were not run.\n\n"
            )
            return
        for number, code in enumerate(cells, 1):
            problem = await self._kernels.execute(kernel_id, code, self.on_resume_timeout)
            if problem:
                text = f"Cell {number} with the tag `{ON_RESUME_TAG}` failed."
                self.log.warning("%s: %s %s", path, text, problem)
                self.notices[kernel_id] = f"{text}\n{problem}\n\n"

    def ended(self, kernel_id: str) -> None:
        """The kernel is no more."""
        self._bound.pop(kernel_id, None)
        self.notices.pop(kernel_id, None)

    def restarted(self, kernel_id: str) -> None:
        """The kernel has begun anew, so what it was saved to is not its state."""
        if (bound := self._bound.get(kernel_id)) is not None:
            bound.dirty = True
            bound.cell = 0

    def cell_started(self, kernel_id: str, number: int) -> None:
        """The kernel says that it runs a cell, and which number that has."""
        if (bound := self._bound.get(kernel_id)) is not None:
            bound.cell = number

    # -- saving -------------------------------------------------------------------------------

    def save(
        self,
        kernel_id: str,
        *,
        trigger: Trigger,
        name: str = "",
        mode: Mode | None = None,
        stop: bool = False,
    ) -> Operation:
        """Begin to save a kernel. Who asks while nothing is taken yet joins the save that waits.

        The operation's outcome is the :class:`CheckpointModel`; it raises as
        :meth:`AgentClient.save`, and ``Conflict`` if the notebook wants nothing to be saved.
        """
        current = self._saving.get(kernel_id)
        if current is not None and not stop and (name, mode) == ("", None):
            return current
        operation = Operation(
            "save",
            partial(self._save, kernel_id, trigger=trigger, name=name, mode=mode, stop=stop),
            kernel_id=kernel_id,
        )
        if not stop:
            self._saving[kernel_id] = operation
        return self.operations.start(operation)

    async def _save(
        self,
        kernel_id: str,
        operation: Operation,
        *,
        trigger: Trigger,
        name: str,
        mode: Mode | None,
        stop: bool,
    ) -> CheckpointModel:
        facts = {"kernel_id": kernel_id, "trigger": trigger, "operation": operation.id}
        try:
            async with self._slots:
                bound, settings = await self._current(kernel_id)
                if bound.path and not settings.enabled:
                    raise not_enabled(bound.path)
                facts |= {"notebook": bound.path, "runtime": bound.runtime, "name": name}
                self.tell(SAVE_EVENT, action="started", **facts)
                activity = self._kernels.last_activity(kernel_id)
                request = SaveRequest(
                    name=name,
                    trigger=trigger,
                    mode=mode or settings.mode,
                    stop=stop,
                    execution_count=bound.cell,
                )
                with operation.at_agent():
                    async with connect() as agent:
                        model = await agent.save(
                            kernel_id,
                            request,
                            partial(self._save_progress, operation, facts),
                            operation=operation.id,
                        )
        except BaseException as failure:
            error = known(failure)
            self._taken(operation)
            self.log.warning("Kernel %s was not saved: %s", kernel_id, error)
            action = "cancelled" if isinstance(error, Cancelled) else "failed"
            self.tell(SAVE_EVENT, action=action, **facts, **error_fields(error))
            raise
        bound.checkpoint, bound.seen, bound.dirty = model.id, activity, False
        operation.checkpoint = model.id
        self.log.info("Saved kernel %s (%s): %s", kernel_id, trigger, model.id)
        self.tell(SAVE_EVENT, action="done", checkpoint=model.id, **facts)
        if not self.stopping:
            self._later(self._prune_quietly())
        return model

    def _save_progress(self, operation: Operation, facts: dict[str, Any], event: Event) -> None:
        operation.progress(event)
        # From here on the state is being taken: later requests are for a later state.
        self._taken(operation)
        self.tell(
            SAVE_EVENT,
            action="progress",
            stage=event.stage,
            done=event.done,
            total=event.total,
            **facts,
        )

    def _taken(self, operation: Operation) -> None:
        if self._saving.get(operation.kernel_id) is operation:
            del self._saving[operation.kernel_id]

    async def _current(self, kernel_id: str) -> tuple[_Bound, NotebookSettings]:
        """A kernel, with its notebook's settings and place of now."""
        bound = self._bound.get(kernel_id)
        if bound is None:
            raise NotFound(
                f"There is no kernel {kernel_id} here that could be saved.",
                hint="Only kernels whose kernelspec runs them in a container can be saved.",
            )
        bound.path = await self._sessions.path_of_kernel(kernel_id) or bound.path
        settings = await self.notebooks.settings(bound.path)
        runtime = await self.notebooks.runtime_of(bound.path, settings)
        if runtime and runtime != bound.runtime:
            async with connect() as agent:
                await agent.change_kernel(kernel_id, KernelPatch(runtime=runtime))
            bound.runtime = runtime
        return bound, settings

    async def require_saveable(self, kernel_id: str) -> None:
        """Raise ``NotFound`` or ``Conflict`` if saving this kernel cannot even begin."""
        bound, settings = await self._current(kernel_id)
        if bound.path and not settings.enabled:
            raise not_enabled(bound.path)

    async def save_original(self, runtime: str) -> None:
        """A copy is to go on from what the original is now, not from when it was saved last."""
        for bound in list(self._bound.values()):
            if bound.runtime == runtime and self._changed(bound):
                try:
                    await self.save(bound.kernel_id, trigger="remix").outcome()
                except CheckpointsError as error:
                    self.log.warning("Kernel %s is not saved: %s", bound.kernel_id, error)

    def _changed(self, bound: _Bound) -> bool:
        """Whether something may have happened in a kernel since it was saved to, or started."""
        activity = self._kernels.last_activity(bound.kernel_id)
        if activity is None or self._kernels.is_busy(bound.kernel_id):
            return activity is not None
        return bound.dirty or bound.seen is None or activity > bound.seen

    async def autosave(
        self, kernel_id: str, trigger: Trigger, *, stop: bool = False
    ) -> CheckpointModel | None:
        """Save a kernel if its notebook asks for that; touch its checkpoint if nothing changed.

        Returns the checkpoint that holds its state now, ``None`` if none does and none is wanted:
        autosave is off, or nothing was ever run in it. Raises as :meth:`save`.
        """
        bound, settings = await self._current(kernel_id)
        if not (settings.enabled and settings.autosave):
            return None
        if not self._changed(bound):
            if not bound.checkpoint:
                return None
            try:
                async with connect() as agent:
                    model = await agent.change_checkpoint(
                        bound.checkpoint, CheckpointPatch(touch=True)
                    )
            except NotFound:
                bound.dirty = True  # it was deleted meanwhile
            else:
                self.tell(
                    SAVE_EVENT,
                    action="unchanged",
                    kernel_id=kernel_id,
                    trigger=trigger,
                    notebook=bound.path,
                    runtime=bound.runtime,
                    checkpoint=model.id,
                )
                return model
        saved: CheckpointModel
        saved = await self.save(kernel_id, trigger=trigger, stop=stop).outcome()
        bound.final = stop
        return saved

    async def save_all(
        self, trigger: Trigger, *, stop: bool = False, timeout: float | None = None
    ) -> dict[str, str]:
        """Save every kernel that asks for it, in parallel; why it failed, by kernel, where so."""
        tasks = {
            kernel_id: asyncio.create_task(self.autosave(kernel_id, trigger, stop=stop))
            for kernel_id in list(self._bound)
        }
        if not tasks:
            return {}
        await asyncio.wait(tasks.values(), timeout=timeout)
        failed = {}
        for kernel_id, task in tasks.items():
            if not task.done():
                task.cancel()
                failed[kernel_id] = f"it took longer than {timeout:g} seconds"
            elif task.exception() is not None:
                failed[kernel_id] = str(task.exception())
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        return failed

    async def may_cull(self, kernel_id: str) -> bool:
        """Whether an idle kernel may be shut down now: what is to be saved of it is saved.

        Called by the kernel manager for each kernel that it is about to cull.
        """
        if self._kernels.last_activity(kernel_id) is None or kernel_id not in self._bound:
            return True
        if kernel_id in self._resuming:
            return False
        before = self._kernels.last_activity(kernel_id)
        try:
            model = await self.autosave(kernel_id, "cull")
            if model is not None and self.verify_before_cull:
                await self._require_intact(model)
        except CheckpointsError as error:
            keep = self.on_save_failure == "keep" or isinstance(error, Cancelled)
            self.log.error(
                "Kernel %s could not be saved before it is culled, so it is %s: %s",
                kernel_id,
                "kept" if keep else "culled with all of its state",
                error,
            )
            self.tell(
                RUNTIME_EVENT,
                action="kept" if keep else "culled",
                kernel_id=kernel_id,
                notebook=self._bound[kernel_id].path if kernel_id in self._bound else "",
                **error_fields(error),
            )
            return not keep
        if self._kernels.last_activity(kernel_id) != before or self._kernels.in_use(kernel_id):
            self.log.info("Kernel %s is kept: it was used while it was saved", kernel_id)
            return False
        if model is not None:
            bound = self._bound[kernel_id]
            bound.final = True
            self.tell(
                RUNTIME_EVENT,
                action="culled",
                kernel_id=kernel_id,
                notebook=bound.path,
                runtime=bound.runtime,
                checkpoint=model.id,
            )
        return True

    async def _require_intact(self, model: CheckpointModel) -> None:
        async with connect() as agent:
            report = await agent.verify(model.id)
        if not report.ok:
            raise CheckpointDamaged(
                f"Checkpoint {model.id} is not what was saved.",
                reason="; ".join(report.problems[:5]),
                hint="Look into the system's log for errors of the disk.",
            )

    def is_final(self, kernel_id: str) -> bool:
        """Whether the kernel is saved for good: nothing in it may run to its end any more.

        What a kernel does when it is asked to end (delete its files, say) would be missed in its
        checkpoint.
        """
        bound = self._bound.get(kernel_id)
        return bound is not None and bound.final

    async def before_restart(self, kernel_id: str) -> None:
        """The user restarts a kernel. Raises as :meth:`save` if it had to be saved and was not."""
        if self.autosave_before_restart and kernel_id in self._bound:
            await self.autosave(kernel_id, "restart")

    # -- resuming -----------------------------------------------------------------------------

    def is_resuming(self, kernel_id: str) -> bool:
        """Whether a kernel is being put to another state: requests wait, signals are refused."""
        return kernel_id in self._resuming

    async def settled(self, kernel_id: str) -> None:
        """Wait until the kernel is not being resumed."""
        while (event := self._resuming.get(kernel_id)) is not None:
            await event.wait()

    def resume_in_place(self, checkpoint: CheckpointModel, kernel_id: str) -> Operation:
        """Begin to put a kernel back to a checkpoint. Its outcome is the kernel's id.

        Raises
        ------
        NotFound
            If there is no such kernel here.
        Conflict
            If it is being resumed already.
        """
        if kernel_id not in self._bound:
            raise NotFound(f"There is no kernel {kernel_id} here that could be resumed.")
        if kernel_id in self._resuming:
            raise Conflict(f"Kernel {kernel_id} is being resumed already.")
        self._resuming[kernel_id] = asyncio.Event()
        return self.operations.start(
            Operation(
                "resume",
                partial(self._resume_in_place, checkpoint, kernel_id),
                kernel_id=kernel_id,
                checkpoint=checkpoint.id,
            )
        )

    async def _resume_in_place(
        self, checkpoint: CheckpointModel, kernel_id: str, operation: Operation
    ) -> dict[str, str]:
        bound = self._bound[kernel_id]
        facts = {
            "kernel_id": kernel_id,
            "notebook": bound.path,
            "runtime": bound.runtime,
            "checkpoint": checkpoint.id,
            "operation": operation.id,
            "in_place": True,
        }
        self.tell(RUNTIME_EVENT, action="resuming", **facts)
        try:
            with operation.at_agent():
                async with connect() as agent:
                    model = await agent.resume(
                        kernel_id, checkpoint.id, operation.progress, operation=operation.id
                    )
            busy = False
            if model.connection is not None:
                busy = not await self._kernels.adopt(kernel_id, model.connection)
            bound.checkpoint, bound.dirty = checkpoint.id, False
            bound.cell = checkpoint.execution_count
            bound.seen = self._kernels.last_activity(kernel_id)
            await self._run_on_resume(kernel_id, bound.path, busy=busy)
        except (CheckpointsError, asyncio.CancelledError) as error:
            self.log.warning("Kernel %s was not resumed: %s", kernel_id, known(error))
            self._tell_failed(kernel_id, checkpoint, bound.path, known(error), in_place=True)
            raise
        finally:
            self._resuming.pop(kernel_id).set()
        self.tell(RUNTIME_EVENT, action="resumed", **facts)
        return {"kernel_id": kernel_id}

    async def resume_in_new_kernel(self, checkpoint: CheckpointModel, path: str = "") -> Operation:
        """Begin to resume a checkpoint in a new kernel, for the session of a notebook.

        ``path``: the notebook; default: the one that the checkpoint's runtime belongs to. Its
        former kernel is shut down when the new one is there.

        Raises
        ------
        Conflict
            If there is no such notebook, or checkpoints are not switched on for it.
        """
        if not path:
            entry = await asyncio.to_thread(self.registry.find, checkpoint.runtime)
            path = self.notebooks.path_of(entry.place) if entry is not None else ""
        runtime = await self.notebooks.runtime_of(path)
        if not runtime:
            if not path:
                raise Conflict(
                    "This checkpoint belongs to no notebook of this server.",
                    hint="Name the notebook that is to go on from it.",
                )
            raise not_enabled(path)
        plan = Plan(path=path, runtime=runtime, checkpoint=checkpoint)
        return self.operations.start(
            Operation("resume", partial(self._resume_new, plan), checkpoint=checkpoint.id)
        )

    async def _resume_new(self, plan: Plan, operation: Operation) -> dict[str, str]:
        assert plan.checkpoint is not None
        try:
            with operation.at_agent():
                kernel_id = await self._kernels.start_resumed(
                    msgspec.structs.replace(plan, operation=operation.id)
                )
        except (CheckpointsError, asyncio.CancelledError) as error:
            self._tell_failed("", plan.checkpoint, plan.path, known(error), in_place=False)
            raise
        operation.kernel_id = kernel_id
        former = await self._sessions.change_kernel(plan.path, kernel_id)
        if former:
            await self._kernels.end(former)
        return {"kernel_id": kernel_id, "notebook": plan.path}

    # -- verifying ----------------------------------------------------------------------------

    def verify(self, checkpoint: CheckpointModel) -> Operation:
        """Begin to read a checkpoint again, whole. Its outcome is a :class:`VerifyReport`."""
        return self.operations.start(
            Operation("verify", partial(self._verify, checkpoint), checkpoint=checkpoint.id)
        )

    async def _verify(self, checkpoint: CheckpointModel, operation: Operation) -> VerifyReport:
        with operation.at_agent():
            async with connect() as agent:
                report = await agent.verify(
                    checkpoint.id, operation.progress, operation=operation.id
                )
        self.tell(
            RUNTIME_EVENT,
            action="verified",
            checkpoint=checkpoint.id,
            runtime=checkpoint.runtime,
            operation=operation.id,
            ok=report.ok,
            reason="; ".join(report.problems[:5]),
        )
        return report

    # -- what is kept -------------------------------------------------------------------------

    def policy(self) -> Policy:
        """The configured retention."""
        return Policy(
            last=self.keep_last,
            hourly=self.keep_hourly,
            daily=self.keep_daily,
            weekly=self.keep_weekly,
            runtime_quota=self.runtime_quota,
            user_quota=self.user_quota,
        )

    async def prune(self, *, dry_run: bool = False) -> list[Verdict]:
        """Delete what retention does not keep; returns what that was, or would be."""
        async with connect() as agent:
            usage = await agent.usage()
            verdicts = prunable(await agent.checkpoints(), usage.checkpoints, self.policy())
            for verdict in verdicts if not dry_run else ():
                try:
                    await agent.delete_checkpoint(verdict.checkpoint)
                except (Conflict, NotFound) as error:
                    self.log.info("Checkpoint %s stays: %s", verdict.checkpoint, error)
                    continue
                self.deleted(verdict.checkpoint, verdict.runtime, verdict.reason)
        return verdicts

    def deleted(self, checkpoint_id: str, runtime: str, reason: str = "") -> None:
        """A checkpoint is no more."""
        self.tell(
            RUNTIME_EVENT,
            action="deleted",
            checkpoint=checkpoint_id,
            runtime=runtime,
            reason=reason,
        )

    def changed(self, model: CheckpointModel) -> None:
        """A checkpoint was named or pinned."""
        self.tell(RUNTIME_EVENT, action="changed", checkpoint=model.id, runtime=model.runtime)

    async def _prune_quietly(self) -> None:
        try:
            await self.prune()
        except CheckpointsError as error:
            self.log.warning("Old checkpoints are not deleted: %s", error)

    async def free_orphans(self) -> None:
        """Delete the checkpoints of notebooks that were deleted long enough ago."""
        limit = (datetime.now(UTC) - timedelta(seconds=self.orphan_grace)).isoformat()
        for entry in await asyncio.to_thread(self.registry.all):
            if not entry.deleted or entry.deleted > limit:
                continue
            async with connect() as agent:
                for checkpoint in await agent.checkpoints(runtime=entry.runtime):
                    await agent.delete_checkpoint(checkpoint.id)
                    self.deleted(checkpoint.id, entry.runtime, "its notebook was deleted")
            await asyncio.to_thread(self.registry.forget, entry.runtime)

    # -- timers -------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            idle = self.autosave_idle_timeout
            await asyncio.sleep(min(self.watch_interval, idle / 2 if idle > 0 else 3600))
            for bound in list(self._bound.values()):
                await self._quietly(self._look_at(bound))
            await self._quietly(self._look_at_disk())

    async def _quietly(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except CheckpointsError as error:
            self.log.debug("Not now: %s", error)
        except Exception:
            self.log.exception("A look at the kernels failed")

    async def _look_at(self, bound: _Bound) -> None:
        """Save a kernel that has been idle for long, or that may soon be ended by its limit."""
        if self.is_resuming(bound.kernel_id) or not self._changed(bound):
            return
        activity = self._kernels.last_activity(bound.kernel_id)
        if activity is None:
            return
        idle = (datetime.now(UTC) - activity).total_seconds()
        if 0 < self.autosave_idle_timeout <= idle and not self._kernels.is_busy(bound.kernel_id):
            await self.autosave(bound.kernel_id, "idle")
        elif self.danger_memory > 0:
            async with connect() as agent:
                kernel = await agent.kernel(bound.kernel_id)
            limit, used = kernel.limits.memory, kernel.memory
            near = limit is not None and used is not None and used > self.danger_memory * limit
            if near and not bound.warned:
                await self.autosave(bound.kernel_id, "danger")
            bound.warned = near

    async def _look_at_disk(self) -> None:
        root = self.notebooks.root
        if not root or not self.danger_disk:
            return
        low = (await asyncio.to_thread(shutil.disk_usage, root)).free < self.danger_disk
        if low and not self._disk_low:
            self.log.warning("The disk is nearly full: saving all kernels")
            await self.save_all("danger")
        self._disk_low = low

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(self.tidy_interval)
            await self._quietly(self.free_orphans())

    # -- inside -------------------------------------------------------------------------------

    def tell(self, schema: str, **data: Any) -> None:
        """Emit an event, without what is empty. Never fails."""
        self._emit(schema, {k: v for k, v in data.items() if v not in ("", None)})

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
