"""The embedded engine: runc directly, no daemon. One overlay, one network, one monitor each.

A kernel's containers are its *generations*: a restart or a resume in place makes a new one beside
the old one, so that an attempt that fails leaves the old one as it was. All that belongs to a
generation is named ``KERNEL.GENERATION``: bundle directory, runc container, cgroup, layer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import msgspec
from msgspec import Struct

import jupyter_checkpoints

from ...errors import (
    CheckpointDamaged,
    CheckpointsError,
    Conflict,
    HostNotReady,
    InsufficientResources,
    NotFound,
    OperationTimeout,
    ResumeFailed,
    SaveFailed,
    StartFailed,
)
from ...layout import Layout
from ...models import Finding, Mode
from ...store.store import Staging
from .. import binds, criu, dirty, monitor, mounting, oci, process, timers, userns
from ..background import Background
from ..cgroup import Cgroup, cpu_seconds, link_hierarchies
from ..criu_cache import CriuCache
from ..dump import Request
from ..identity import Identity
from ..images import ImageStore
from ..network import Link, Network
from ..pager import pagers, userfaultfd
from ..pager.job import Job, Outcome
from ..pager.pagers import NoPager, Pager, Pagers
from ..process import CommandFailed
from ..records import from_os_error
from ..rootfs import Pool, mount_mapped_overlay, mount_overlay, unmount_below
from ..subids import SubordinateIds
from ..taking import Taking
from ..tools import Tools
from ..userns import IdMap
from ..watching import Watch
from ..window import Window, affordable
from .engine import (
    Adopted,
    Container,
    ContainerSpec,
    Engine,
    NotLazily,
    OnExit,
    RunsAs,
    Saved,
    Source,
)

log = logging.getLogger(__name__)

A = TypeVar("A")
B = TypeVar("B")

_START_SECONDS = 60.0
#: A save that meets a connection just being made is tried so often, with pauses in seconds.
_SAVE_ATTEMPTS = 10
_SAVE_PAUSE = 0.2
_FREEZE_ATTEMPTS = 5
#: A dump or restore may take a second more for every 20 MB of memory.
_CRIU_RATE = 20e6
#: How long clients get to come back, iopub first, after a resume that could not keep connections.
_GATE_SECONDS = 3.0
_SPARE_SECONDS = 0.5
#: Seconds for the end of a kernel of which a process has ended.
_END_SECONDS = 2.0
_LOG_SIZE = 10 * 2**20
_LOG_FILES = 3
#: Runs a command, then lets the processes go on if nobody has; its status is the command's. What it
#: says goes to a file: a process of CRIU's may outlive it (usernsd), and would keep a pipe open.
_DUMP = """{urge}
"$@" > {said} 2>&1; status=$?
[ -e {thawed} ] || : > {thawed}
{thaw}
exit $status"""
#: On a busy host a dump would be kept from the processor ten times while processes stand still.
#: Where that may not be changed, it goes on as it is.
_URGENTLY = "chrt --rr --pid 1 $$ 2> /dev/null || :"
#: runc's options where the network namespace is the container's own, and connected by a hook.
_OWN_NETWORK: dict[bool, tuple[str, ...]] = {False: (), True: ("--empty-ns", "network")}
#: What is for IPython in the container.
_IPYTHON = Path(jupyter_checkpoints.__file__).with_name("ipython.py")


class _State(Struct, kw_only=True):
    """What a later agent needs to take a kernel over; ``engine.json`` in its directory."""

    index: int
    generation: int
    uid: int = 0
    """Whose kernel it is."""
    user_namespace: bool = False
    network: bool = False
    """Whether the generation's network exists."""
    pid: int = 0
    pid_start: int = 0
    monitor: int = 0
    monitor_start: int = 0
    boot_id: str = ""
    iopub_port: int = 0
    one_gateway: bool = False
    """Whether the host's side of its connections is the gateway of all kernels, as it is now."""
    subscribers: int = 0
    """How many clients were connected when the kernel was made to stand still for good."""
    filled_from: str = ""
    """The checkpoint that its memory is still arriving from."""


class _Kernel:
    """One kernel as this engine sees it."""

    def __init__(self, kernel_id: str, state: _State) -> None:
        self.id = kernel_id
        self.state = state
        self.running = False
        self.ending = False
        """Its end is our doing, or another container is to take its place: nobody is told."""
        self.pidfd = -1
        self.child: subprocess.Popen[bytes] | None = None
        self.ended = asyncio.Event()
        self.link_ready = False
        """Its first container's network is there already."""
        self.teardown: asyncio.Task[None] | None = None
        """Removes the container that has ended by itself."""
        self.replaced: set[asyncio.Task[None]] = set()
        """Remove the containers that others have taken the place of."""
        self.filling: asyncio.Task[None] | None = None
        """Waits until all of its memory is there."""
        self.watch = Watch()
        """What is known of what its container's processes write."""


class _Held(Struct, frozen=True, kw_only=True):
    """A container that has come up, and the process whose end is its end."""

    pid: int
    keeper: int
    child: subprocess.Popen[bytes] | None = None
    """The keeper, if it is a child of ours."""


class _Parts(NamedTuple):
    """What one container is made of."""

    rootfs: Path
    mounts: Path
    """What it is shown of the host, by number."""
    private: Path
    """What the agent gives it."""
    owner: tuple[int, int]
    """Uid and gid that the kernel has outside."""
    ids: IdMap | None
    """Its user namespace; ``None`` for the host's."""


class _Passing(Exception):
    """A save failed for something that is about to be over, or needs no window."""

    def __init__(self, error: CheckpointsError, *, crowded: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.crowded = crowded
        """CRIU had not as many descriptors as a window needs."""


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _has_ended() -> SaveFailed:
    return SaveFailed(
        "The kernel could not be saved: it has ended.",
        reason="It ended, or was ended, while it was being saved.",
        hint="Resume an earlier checkpoint, or start it again.",
    )


def _otherwise(error: BaseException) -> str:
    """The reason where a dump has failed and CRIU does not say why."""
    if isinstance(error, CommandFailed) and error.status > 128:
        with contextlib.suppress(ValueError):  # as a shell gives it
            return f"CRIU was ended by {signal.Signals(error.status - 128).name}"
    return str(error)


def _still_there(state: _State) -> bool:
    """Whether container and monitor are the processes that were written down."""
    return (
        process.start_time(state.pid) == state.pid_start
        and process.start_time(state.monitor) == state.monitor_start
    )


class EmbeddedEngine(Engine):
    """See :class:`~jupyter_checkpoints.agent.engines.engine.Engine`."""

    name = "embedded"

    def __init__(
        self,
        layout: Layout,
        tools: Tools,
        images: ImageStore,
        pool: Pool,
        network: Network,
        subids: SubordinateIds,
        seccomp: dict[str, Any],
        on_exit: OnExit,
        criu_timeout: float,
        *,
        lazy_resume: bool = True,
        user_namespaces: bool,
    ) -> None:
        super().__init__(on_exit)
        self.criu_timeout = criu_timeout
        #: What CRIU asks of the host for memory that comes later, or is left out of a dump.
        self._windows = userfaultfd.available()
        self._lazy = lazy_resume and self._windows
        self.layout = layout
        self._cgroups = f"/jupyter-checkpoints-{layout.instance}"
        """Where each container has its control group."""
        self.tools = tools
        self.images = images
        self.pool = pool
        self.network = network
        self.subids = subids
        self.seccomp = seccomp
        self._namespaces = userns.UserNamespaces()
        self._unmapped = "" if user_namespaces else "They are switched off (`user_namespaces`)."
        """Why ordinary users' kernels get no user namespaces; empty if they do."""
        self._kernels: dict[str, _Kernel] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._spare: subprocess.Popen[bytes] | None = None
        self._spare_lock = asyncio.Lock()
        self._pagers = Pagers(layout.run_dir)
        self._criu_cache = CriuCache(tools)
        self._boot_id = _boot_id()

    # -- names ---------------------------------------------------------------------------------

    def _name(self, kernel_id: str, generation: int) -> str:
        return f"{kernel_id}.{generation}"

    def _bundle(self, kernel_id: str, generation: int) -> Path:
        return self.layout.kernel(kernel_id) / str(generation)

    def _stage(self, name: str) -> Path:
        """What a container with a user namespace is made of; root inside can pass it."""
        return self.layout.stages / name

    def _cgroup(self, name: str) -> Cgroup:
        return Cgroup(f"{self._cgroups}/{name}")

    def _runc_state(self, name: str) -> tuple[Path, str]:
        """Where runc keeps a container's state, and what it calls the container."""
        return self.layout.runc_root, name

    def _operation(self, name: str) -> str:
        return f"{self.layout.instance}/{name}"

    def _pager(self, name: str) -> str:
        """The mark of a container's pager, which an agent's end does not end."""
        return f"pager:{self.layout.instance}/{name}"

    def _link(self, kernel: _Kernel) -> Link:
        return self.network.link(kernel.state.index, kernel.state.generation)

    def address(self, kernel_id: str) -> str:
        kernel = self._kernels.get(kernel_id)
        return self._link(kernel).address if kernel is not None else ""

    def log_file(self, kernel_id: str) -> Path:
        return self.layout.kernel(kernel_id) / "log"

    # -- start of the agent, end of the agent --------------------------------------------------

    async def open(self, known: dict[str, bool], checkpoints: set[str]) -> dict[str, Adopted]:
        # Children of a predecessor that was killed: their operations have no owner any more.
        ended = await asyncio.to_thread(process.end_marked, f"{self.layout.instance}/")
        if ended:
            log.info("Ended %d processes of an earlier agent's unfinished operations", ended)
        self.layout.kernels.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.layout.runc_root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.layout.stages.mkdir(mode=0o711, parents=True, exist_ok=True)
        self.layout.stages.chmod(0o711)
        if not await asyncio.to_thread(link_hierarchies, self.layout.cgroups):
            log.info("Not all control groups are mounted here: CRIU mounts them at each save")
            await asyncio.to_thread(shutil.rmtree, self.layout.cgroups)
        await self.network.open()
        adopted: dict[str, Adopted] = {}
        for directory in sorted(self.layout.kernels.iterdir()):
            if directory.name in known:
                adopted[directory.name] = await self._adopt(directory, known[directory.name])
            else:
                await self._remove_directory(directory)
        keep_names = {
            name
            for k in self._kernels.values()
            if k.state.network
            for name in (self._link(k).namespace, self._link(k).veth)
        }
        for name in await self.network.sweep(keep_names):
            log.info("Removed a network of an earlier agent: %s", name)
        await asyncio.to_thread(self._sweep, checkpoints)
        self._unmapped = self._unmapped or await asyncio.to_thread(self._try_mapping)
        if self._unmapped:
            log.warning("No root inside for ordinary users' kernels: %s", self._unmapped)
        await self._keep_spare()
        self._later(asyncio.to_thread(self._criu_cache.open))
        return adopted

    async def _adopt(self, directory: Path, stopped: bool) -> Adopted:
        try:
            state = msgspec.json.decode((directory / "engine.json").read_bytes(), type=_State)
        except (OSError, msgspec.DecodeError):
            # The predecessor died before the kernel's first container ran.
            state = _State(index=-1, generation=-1)
        kernel = _Kernel(directory.name, state)
        if state.index >= 0:
            self._kernels[kernel.id] = kernel
            await self.network.admit(self._link(kernel), state.uid)
        others = [
            g for g in await asyncio.to_thread(_generations, directory) if g != state.generation
        ]
        for generation in others:
            await self._destroy(directory.name, generation)
        if state.index < 0:
            return Adopted(container=None, exit_code=1)
        name = self._name(kernel.id, state.generation)
        if state.boot_id != self._boot_id:
            state.network = False
        elif await asyncio.to_thread(_still_there, state):
            self._watch(kernel)
            if state.filled_from:
                bundle = self._bundle(kernel.id, state.generation)
                if await asyncio.to_thread(pagers.lost, bundle):
                    await self._end(kernel)
                    code, reason = await asyncio.to_thread(self._end_of, kernel)
                    await self._destroy(kernel.id, state.generation, keep_network=True)
                    return Adopted(container=None, exit_code=code, reason=reason)
                self._watch_filling(kernel)
            if stopped:
                await self.stop(kernel.id)
                return Adopted(container=None, exit_code=None)
            # It may have been frozen, locked or cut off for a save.
            await self._let_go_on(name)
            await self._dump_is_over(kernel, name)
            await self.network.unlock(self._link(kernel))
            await self._let_go_on(name)
            await self.network.activate(self._link(kernel))
            if others:
                await self.network.cut(self._link(kernel))
            return Adopted(
                container=Container(pid=state.pid, address=self._link(kernel).address),
                exit_code=None,
            )
        code, reason = await asyncio.to_thread(self._end_of, kernel)
        await self._destroy(kernel.id, state.generation, keep_network=state.network)
        return Adopted(container=None, exit_code=code, reason=reason)

    def _sweep(self, checkpoints: set[str]) -> None:
        """Remove layers, snapshots, mounts, runc states and cgroups that nothing owns."""
        running = {self._name(k.id, k.state.generation) for k in self._kernels.values()}
        for name in self.pool.list_layers() - running:
            self.pool.delete_layer(name)
            log.info("Removed a layer of an earlier agent: %s", name)
        for name in self.pool.list_snapshots() - checkpoints:
            self.pool.delete_snapshot(name)
            log.info("Removed a snapshot without a checkpoint: %s", name)
        for path in self.layout.touched("x").parent.glob("*"):
            if path.name not in checkpoints:
                path.unlink()
        criu.remove_roots()
        self._sweep_containers(running)

    def _sweep_containers(self, running: set[str]) -> None:
        for state in (*self.layout.runc_root.iterdir(), *self.layout.stages.iterdir()):
            if state.name not in running:
                unmount_below(state)
                shutil.rmtree(state, ignore_errors=True)
        parent = self._cgroup("")
        for directory in parent.directories():
            for group in directory.iterdir():
                if group.is_dir() and group.name not in running:
                    self._cgroup(group.name).kill()
                    self._cgroup(group.name).remove()

    def runs_as(self, identity: Identity) -> RunsAs:
        if identity.is_root:
            return RunsAs()
        return RunsAs(uid=identity.uid, user_namespace=not self._unmapped)

    def findings(self) -> list[Finding]:
        if not self._unmapped:
            return []
        return [
            Finding(
                code="no-user-namespaces",
                severity="warn",
                message="Kernels of ordinary users have no root inside: they cannot install into "
                f"their container's files. {self._unmapped}",
                hint="This needs Linux 5.19, and data on ext4, XFS or btrfs.",
            )
        ]

    def _try_mapping(self) -> str:
        """Make what a kernel of an ordinary user is made of; why it cannot be made here."""
        name = "probe"
        ids = userns.id_map(Identity(uid=self.subids.first, gid=self.subids.first), 1)
        stage = self._stage(name)
        try:
            layer = self.pool.create(name)
            stage.mkdir(mode=0o700)
            with self._namespaces.get(ids) as namespace:
                parts = (self._image_files(), layer, stage / "rootfs", namespace, ids.root)
                mount_mapped_overlay(*parts)
                mounting.attach(str(self.layout.store), str(stage / "images"), namespace)
        except (OSError, CheckpointsError) as error:
            return str(error)
        finally:
            unmount_below(stage)
            shutil.rmtree(stage, ignore_errors=True)
            self.pool.delete_layer(name)
        return ""

    def _image_files(self) -> Path:
        """The directory, or one on the same file system, that images' files are in."""
        self.layout.images.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.layout.images

    async def close(self) -> None:
        for kernel in self._kernels.values():
            self._unwatch(kernel)
            self._forget_filling(kernel)
            await asyncio.to_thread(kernel.watch.close)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._criu_cache.close)
        await asyncio.to_thread(self._pagers.close)
        if self._spare is not None:
            await asyncio.to_thread(self._spare.communicate)
        await self.network.drop_spare()
        await asyncio.to_thread(self._namespaces.close)
        if not any(k.running for k in self._kernels.values()):
            for kernel in list(self._kernels.values()):
                if kernel.state.network:
                    return
            await self.network.close()
            await asyncio.to_thread(self.pool.close)
            await asyncio.to_thread(Cgroup(self._cgroups).remove)

    # -- starting ------------------------------------------------------------------------------

    async def start(self, spec: ContainerSpec) -> Container:
        kernel = self._kernels.get(spec.kernel_id)
        if kernel is None:
            kernel = self._new_kernel(spec)
        elif kernel.running or kernel.state.network:
            await self._end(kernel)
            await self._destroy(kernel.id, kernel.state.generation)
        generation = kernel.state.generation + 1
        try:
            return await self._launch(kernel, spec, generation, None)
        except BaseException as error:
            await self._destroy(kernel.id, generation)
            if kernel.state.generation < 0:
                await self.remove(kernel.id)
            if isinstance(error, (CheckpointsError, asyncio.CancelledError)):
                raise
            raise StartFailed(
                "The kernel's container did not start.",
                reason=str(error),
                hint="`jupyter checkpoints doctor` tests this host.",
            ) from error

    def _new_kernel(self, spec: ContainerSpec) -> _Kernel:
        used = {k.state.index for k in self._kernels.values()}
        index, ready = self.network.allocate(used), False
        if spec.identity.is_root:
            index, ready = self.network.allocate_ready(used)
        state = _State(index=index, generation=-1, uid=spec.identity.uid)
        kernel = _Kernel(spec.kernel_id, state)
        kernel.link_ready = ready
        self._kernels[kernel.id] = kernel
        return kernel

    async def _launch(
        self,
        kernel: _Kernel,
        spec: ContainerSpec,
        generation: int,
        source: Source | None,
        commit: Callable[[], None] = lambda: None,
    ) -> Container:
        """Make one generation and let it run; on any error the caller destroys it."""
        name = self._name(kernel.id, generation)
        bundle = self._bundle(kernel.id, generation)
        link = self.network.link(kernel.state.index, generation)
        restores = source is not None and source.mode == "process"
        pager: Pager | None = None

        parts = await asyncio.to_thread(self._parts, spec, bundle)
        if source is not None and restores:
            await asyncio.to_thread(self._require_rights, spec, source)
        activate = not restores and not kernel.state.network

        def prepare() -> None:
            bundle.mkdir(mode=0o700, parents=True)
            (bundle / "work").mkdir(mode=0o700)
            layer = self.pool.create(name, source.checkpoint_id if source else None)
            self._fill(spec, layer, parts, fresh=source is None)
            configuration = self._configuration(spec, bundle, parts, link)
            (bundle / "config.json").write_text(json.dumps(configuration))
            (bundle / "network.sh").write_text(self.network.hook(link, active=activate))
            (bundle / "criu.conf").write_text(
                criu.configuration(
                    ghost_limit=_ghost_limit(self.layout.data_dir),
                    keep_connections=source is None or source.keep_connections,
                )
            )

        async def connect() -> None:
            if kernel.state.generation < 0:
                await self.network.admit(link, spec.identity.uid)
            if parts.ids is None and not kernel.link_ready:
                await self.network.create(link, active=activate)
            kernel.link_ready = False

        async def prepare_all() -> None:
            nonlocal pager
            await asyncio.to_thread(prepare)
            if source is not None and restores and source.pages:
                pager = await self._pagers.serve(self._job(name, bundle, source))

        timeout = _START_SECONDS
        if source is not None and restores:
            timeout = self._criu_timeout(await asyncio.to_thread(_tree_bytes, source.images))
        try:
            await _both(prepare_all(), connect())
            held = await self._bring_up(spec, bundle, parts, source, timeout)
        except BaseException:
            if pager is not None:
                self._later(asyncio.to_thread(pager.reap))
            raise
        finally:
            if pager is not None:
                pager.leave()
        state = _State(
            index=kernel.state.index,
            generation=generation,
            uid=spec.identity.uid,
            user_namespace=parts.ids is not None,
            network=True,
            pid=held.pid,
            monitor=held.keeper,
            boot_id=self._boot_id,
            iopub_port=spec.iopub_port,
            one_gateway=True,
            filled_from=source.checkpoint_id if source is not None and pager is not None else "",
        )
        if restores and source is not None and source.hostname not in ("", spec.hostname):
            await self._rename_host(held.pid, spec.hostname)
        commit()
        # Written down before the old container is ended: whoever dies in between, one of the two
        # is found again.
        await asyncio.to_thread(self._write_new, kernel.id, state)
        expected = 0 if activate else await self._switch(kernel, spec, link, source)
        previous = kernel.state.generation
        kernel.state, kernel.child = state, held.child
        self._later(self._replace_spare())
        if previous >= 0:
            replaced = self._later(self._destroy(kernel.id, previous))
            kernel.replaced.add(replaced)
            replaced.add_done_callback(kernel.replaced.discard)
        self._watch(kernel)
        if pager is not None:
            self._watch_filling(kernel, pager)
        if expected and not await self.network.open_gate(
            link, spec.iopub_port, expected, _GATE_SECONDS
        ):
            log.info("Not every client of kernel %s has come back to its new state", kernel.id)
        return Container(pid=held.pid, address=link.address)

    def _parts(self, spec: ContainerSpec, bundle: Path) -> _Parts:
        """Where a container's files will be, and what its ids are outside."""
        user = spec.identity
        if not self.runs_as(user).user_namespace:
            private = self.layout.kernel(spec.kernel_id)
            owner = (user.uid, user.gid)
            return _Parts(bundle / "rootfs", bundle / "mounts", private, owner, None)
        stage = self._stage(self._name(spec.kernel_id, int(bundle.name)))
        ids = userns.id_map(user, self.subids.range_of(user.uid))
        return _Parts(stage / "rootfs", stage / "mounts", stage / "private", ids.root, ids)

    def _fill(self, spec: ContainerSpec, layer: Path, parts: _Parts, *, fresh: bool) -> None:
        """Mount the container's files, and write those that the agent gives it."""
        stage = parts.rootfs.parent
        if parts.ids is not None:
            stage.mkdir(mode=0o700)
        self._lay_out(spec, layer, parts, fresh=fresh)
        binds.stage(spec.mounts, parts.mounts)
        names = {"hosts": self._hosts(spec.hostname), "resolv.conf": self._resolv_conf()}
        _write_private(parts.private, spec, parts.owner, names)
        if parts.ids is not None:
            for directory in (stage, parts.mounts, parts.private):
                os.chown(directory, *parts.ids.keeper)

    def _lay_out(self, spec: ContainerSpec, layer: Path, parts: _Parts, *, fresh: bool) -> None:
        """Make the root file system, of the image and a layer that is empty if ``fresh``."""
        image = self.images.rootfs(spec.image_digest)
        if parts.ids is None:
            mount_overlay(image, layer, parts.rootfs)
            return
        with self._namespaces.get(parts.ids) as namespace:
            mount_mapped_overlay(image, layer, parts.rootfs, namespace, parts.owner)

    def _hosts(self, hostname: str) -> str:
        """``/etc/hosts`` of a container."""
        return f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {hostname}\n"

    def _resolv_conf(self) -> str:
        """``/etc/resolv.conf`` of a container."""
        return _resolv_conf()

    def _job(self, name: str, bundle: Path, source: Source) -> Job:
        return Job(
            operation=self._pager(name),
            bundle=str(bundle),
            images=str(source.images),
            pages=source.pages,
            touched=str(self.layout.touched(source.checkpoint_id)),
        )

    def _runc_command(
        self, name: str, bundle: Path, parts: _Parts, source: Source | None
    ) -> list[str]:
        command = [
            *(str(self.tools.runc), "--root", str(self.layout.runc_root)),
            *("--log", str(bundle / "runc.log")),
        ]
        if source is None or source.mode == "filesystem":
            return [*command, "run", "--detach", *self._files(bundle), name]
        return [
            *(*command, "restore", "--detach", *self._files(bundle)),
            *("--image-path", str(self._images(bundle, parts, source))),
            *("--work-path", str(bundle / "work"), *_OWN_NETWORK[parts.ids is not None]),
            *("--tcp-established", "--file-locks", *(["--lazy-pages"] if source.pages else [])),
            name,
        ]

    def _require_rights(self, spec: ContainerSpec, source: Source) -> None:
        """Whoever is given saved processes gets them with his own rights, or not at all."""
        saved = msgspec.convert(source.facts, RunsAs)
        same = saved.user_namespace == userns.is_namespaced(source.images)
        if not same or not saved.can_become(self.runs_as(spec.identity)):
            raise ResumeFailed(
                "The kernel's state could not be resumed.",
                reason="It was saved with other rights than this user's kernels have here.",
                hint="Preflight tells more.",
            )

    def _images(self, bundle: Path, parts: _Parts, source: Source) -> Path:
        """The images of a checkpoint, with the user namespace's mapping as it has to be now."""
        if parts.ids is not None:
            with self._namespaces.get(parts.ids) as namespace:
                return userns.mapped_images(source.images, parts.ids, namespace, bundle / "images")
        return source.images

    @staticmethod
    def _files(bundle: Path) -> list[str]:
        return ["--bundle", str(bundle), "--pid-file", str(bundle / "pid")]

    def _configuration(
        self, spec: ContainerSpec, bundle: Path, parts: _Parts, link: Link
    ) -> dict[str, Any]:
        name = self._name(spec.kernel_id, int(bundle.name))
        namespaced = parts.ids is not None
        hook = {
            "path": "/bin/sh",
            "args": ["sh", str(bundle / "network.sh")],
            "env": [f"PATH={self.tools.env['PATH']}", f"{process.MARK}={self._operation(name)}"],
            "timeout": int(_START_SECONDS),
        }
        return oci.configuration(
            rootfs=parts.rootfs,
            argv=spec.argv,
            user=spec.identity,
            env=spec.env,
            cwd=spec.cwd,
            hostname=spec.hostname,
            network_namespace=None if namespaced else Path("/run/netns", link.namespace),
            ids=parts.ids,
            hook=hook if namespaced else None,
            cgroup=self._cgroup(name).path,
            criu_config=bundle / "criu.conf",
            private=parts.private,
            machine_id=bool(spec.machine_id),
            mounts=[(parts.mounts / str(n), m) for n, m in enumerate(spec.mounts)],
            limits=spec.limits,
            seccomp=self.seccomp,
        )

    async def _next_monitor(self) -> subprocess.Popen[bytes]:
        """A monitor that waits for its job; one is always kept ready, for starts are to be quick.

        It ends by itself with the agent, whose death closes its standard input.
        """
        ready, self._spare = self._spare, None
        if ready is not None and ready.poll() is None:
            return ready
        return await asyncio.to_thread(_start_monitor, self.layout.run_dir)

    def _watch_filling(self, kernel: _Kernel, pager: Pager | None = None) -> None:
        """Memory is arriving by a pager, this agent's or an earlier one's."""
        kernel.filling = asyncio.create_task(self._memory_arrives(kernel, pager))

    def _forget_filling(self, kernel: _Kernel) -> None:
        if kernel.filling is not None:
            kernel.filling.cancel()
            kernel.filling = None

    async def _memory_arrives(self, kernel: _Kernel, pager: Pager | None) -> None:
        state = kernel.state
        name = self._name(kernel.id, state.generation)
        outcome = await pagers.ended(self._bundle(kernel.id, state.generation))
        if pager is not None:
            await asyncio.to_thread(pager.reap)
        if outcome is None:
            log.error("Kernel %s is ended: nobody brings its memory any more", kernel.id)
            await asyncio.to_thread(self._cgroup(name).kill)
            return
        if outcome.error:
            log.error("Kernel %s was ended: %s", kernel.id, outcome.error)
        state.filled_from = ""
        await asyncio.to_thread(self._write_state, kernel.id, state)
        kernel.filling = None

    async def lazily(self, spec: ContainerSpec) -> bool:
        if self._lazy and not spec.identity.is_root:
            # Of a user namespace's root nobody believes that he may trace the host's processes.
            return await asyncio.to_thread(userfaultfd.for_everybody)
        return self._lazy

    async def filled(self, kernel_id: str) -> None:
        kernel = self._kernels.get(kernel_id)
        if kernel is not None and kernel.filling is not None:
            await asyncio.wait([kernel.filling])

    async def unread(self, checkpoint_id: str, timeout: float) -> bool:
        reading = [
            kernel.filling
            for kernel in self._kernels.values()
            if kernel.filling is not None and kernel.state.filled_from == checkpoint_id
        ]
        if reading:
            await asyncio.wait(reading, timeout=timeout)
        return all(task.done() for task in reading)

    async def _replace_spare(self) -> None:
        # Not while the new kernel wants the processors for its own start.
        await asyncio.sleep(_SPARE_SECONDS)
        await self._keep_spare()

    async def _keep_spare(self) -> None:
        async with self._spare_lock:
            if self._spare is None:
                self._spare = await asyncio.to_thread(_start_monitor, self.layout.run_dir)
            await self.network.keep_spare({k.state.index for k in self._kernels.values()})
        await self._keep_pager()

    async def _keep_pager(self) -> None:
        if self._lazy:
            await self._pagers.keep_ready()

    async def _bring_up(
        self,
        spec: ContainerSpec,
        bundle: Path,
        parts: _Parts,
        source: Source | None,
        timeout: float,
    ) -> _Held:
        """Make the prepared container run, new or restored: a monitor has runc do it."""
        name = self._name(spec.kernel_id, int(bundle.name))
        operation = self._operation(name)
        command = await asyncio.to_thread(self._runc_command, name, bundle, parts, source)
        began = await self._next_monitor()
        job = {
            "command": command,
            "env": {**self.tools.env, process.MARK: operation},
            "pid_file": str(bundle / "pid"),
            "exit_file": str(bundle / "exit.json"),
            "owner": parts.owner,
            "log": str(self.log_file(spec.kernel_id)),
            "log_size": _LOG_SIZE,
            "log_files": _LOG_FILES,
        }
        answer = asyncio.ensure_future(asyncio.to_thread(_tell, began, job))
        watch = asyncio.ensure_future(
            process.end_if_bereft(lambda: process.runc_below(began.pid), operation)
        )
        try:
            async with asyncio.timeout(timeout):
                said = await asyncio.shield(answer)
        except BaseException as error:
            await asyncio.to_thread(process.end_marked, operation)
            await answer
            await asyncio.to_thread(began.wait)
            if isinstance(error, TimeoutError):
                raise OperationTimeout(
                    f"The container did not come up within {timeout:.0f} seconds.",
                    reason=await asyncio.to_thread(_why, bundle) or "It was ended.",
                    hint="A file lock that another kernel holds is one possible cause.",
                ) from None
            raise
        finally:
            watch.cancel()
        if "pid" not in said:
            await asyncio.to_thread(began.wait)
            why = await asyncio.to_thread(_why, bundle)
            raise CommandFailed(command, said.get("status", 255), why)
        await asyncio.to_thread(userns.drop_images, bundle / "images")
        return _Held(pid=said["pid"], keeper=began.pid, child=began)

    # -- resuming ------------------------------------------------------------------------------

    async def resume(
        self, spec: ContainerSpec, source: Source, commit: Callable[[], None]
    ) -> Container:
        kernel = self._kernels.get(spec.kernel_id)
        if kernel is None:
            kernel = self._new_kernel(spec)
        elif not kernel.running:
            await self._end(kernel)
        if not kernel.state.one_gateway:
            source = msgspec.structs.replace(source, keep_connections=False)
        generation = kernel.state.generation + 1
        was_running = kernel.running
        old = self._name(kernel.id, kernel.state.generation)
        try:
            if was_running:
                # It stands still while its successor comes up, and goes on if that fails. If it
                # is ended from outside meanwhile, that matters only then.
                kernel.ending = True
                kernel.state.subscribers, _ = await _both(
                    self.network.subscribers(self._link(kernel), kernel.state.iopub_port),
                    self._stand_still(old),
                )
            return await self._launch(kernel, spec, generation, source, commit)
        except BaseException as error:
            work = self._bundle(kernel.id, generation) / "work"
            text = await asyncio.to_thread(_logs, work)
            explained = criu.explain(text, str(error))
            outcome = await asyncio.to_thread(Outcome.read, work.parent)
            if kernel.state.generation != generation:
                await self._destroy(kernel.id, generation)
                if kernel.state.generation < 0:
                    await self.remove(kernel.id)
                else:
                    await asyncio.to_thread(self._write_state, kernel.id, kernel.state)
                if kernel.running:
                    kernel.ending = False
                    await self._let_go_on(old)
                elif was_running:
                    kernel.teardown = self._later(self._tear_down(kernel))
                    await asyncio.wait([kernel.teardown])
            if outcome is not None and outcome.error:
                raise CheckpointDamaged(
                    f"Checkpoint {source.checkpoint_id} is damaged; nothing was changed.",
                    reason=outcome.error,
                    hint="Resume another checkpoint, and delete this one.",
                ) from error
            if source.pages and (isinstance(error, NoPager) or criu.lacks_userfaultfd(text)):
                raise NotLazily(str(error)) from error
            if isinstance(error, (CheckpointsError, asyncio.CancelledError)):
                raise
            if source.mode == "process":
                raise ResumeFailed(
                    "The kernel's state could not be resumed.",
                    reason=explained.reason,
                    hint=explained.hint,
                ) from error
            raise ResumeFailed(
                "The kernel's files could not be resumed.", reason=str(error)
            ) from error

    async def _switch(
        self, kernel: _Kernel, spec: ContainerSpec, link: Link, source: Source | None
    ) -> int:
        """Give the kernel's address to a new container that is up; the old one is over.

        Returns how many clients have to subscribe again before the gate is opened for all.
        """
        keep = source is not None and source.keep_connections
        known = kernel.state.generation >= 0
        replaced = self._link(kernel) if kernel.state.network else None
        expected = 0 if keep else kernel.state.subscribers
        if kernel.running:
            await self._end(kernel)
        if known and not keep:
            await self.network.cut(link)
        if expected:
            await self.network.gate(link, [p for p in spec.ports if p != spec.iopub_port])
        await self.network.activate(link, replaced)
        return expected

    # -- saving --------------------------------------------------------------------------------

    async def save(
        self, kernel_id: str, staging: Staging, mode: Mode, *, parent: str, hold: bool
    ) -> Saved:
        await self.filled(kernel_id)
        taking = Taking(staging, self._running(kernel_id).watch, parent)
        attempts = _SAVE_ATTEMPTS
        windows = self._windows
        try:
            while True:
                attempts -= 1
                try:
                    return await self._save(
                        kernel_id, staging, taking, mode, windows=windows, hold=hold
                    )
                except _Passing as passing:
                    windows = windows and not passing.crowded
                    if not attempts:
                        raise passing.error from passing
                    log.info("Kernel %s is saved again: %s", kernel_id, passing.error.reason)
                    await asyncio.to_thread(_empty, staging.images)
                    await asyncio.sleep(_SAVE_PAUSE)
        finally:
            await asyncio.to_thread(taking.close)

    async def _save(
        self,
        kernel_id: str,
        staging: Staging,
        taking: Taking,
        mode: Mode,
        *,
        windows: bool,
        hold: bool,
    ) -> Saved:
        await self.filled(kernel_id)
        kernel = self._running(kernel_id)
        name = self._name(kernel_id, kernel.state.generation)
        bundle = self._bundle(kernel_id, kernel.state.generation)
        cpu_file = await asyncio.to_thread(self._cgroup(name).cpu_file)
        cpu_copy = bundle / "cpu"
        files = self.pool.snapshot_script(name, staging.id)
        # Inside the frozen window, like the files: what is used later is no part of the state.
        cpu = f"cat {cpu_file} > {cpu_copy} || :\n" if cpu_file is not None else ""
        try:
            has_window = windows and await asyncio.to_thread(
                lambda: affordable(self._cgroup(name).memory())
            )
            # Of a process that somebody has paused nothing can be asked, and it writes nothing.
            if mode == "process" and has_window and not self._is_paused(name):
                await asyncio.to_thread(taking.ahead, await self.processes(kernel_id))
            if hold:
                # Data that reached the sockets after the dump would be acknowledged and lost.
                await self.network.disconnect(self._link(kernel))
                await self._stand_still(name)
            if mode == "process":
                window = Window() if has_window else None
                pause = await self._dump(kernel, staging, taking, cpu, files, window, hold=hold)
            else:
                pause = await self._snapshot(name, cpu + files, frozen=hold)
        except BaseException as error:
            logs = await asyncio.to_thread(_logs, bundle / "dump")
            explained = criu.explain(logs, _otherwise(error))
            await self._recover(kernel, name, staging.id)
            if hold:
                await self.release(kernel_id)
            if isinstance(error, OSError | ValueError | CommandFailed):
                killed = isinstance(error, CommandFailed) and error.status < 0
                if killed:
                    # What it held has died: that is seen in a moment.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_END_SECONDS):
                            await kernel.ended.wait()
                pid = kernel.state.pid
                if not kernel.running or await asyncio.to_thread(process.start_time, pid) is None:
                    raise _has_ended() from error
                disk_full = explained.disk_full or "No space left" in str(error)
                failure = (InsufficientResources if disk_full else SaveFailed)(
                    "The kernel could not be saved; it goes on running.",
                    reason=explained.reason if mode == "process" else str(error),
                    hint=explained.hint if mode == "process" else "",
                )
                crowded = windows and criu.lacks_descriptors(logs)
                if not killed and (explained.passing or crowded):
                    raise _Passing(failure, crowded=crowded) from error
                raise failure from error
            raise
        cpu_used = await asyncio.to_thread(cpu_seconds, cpu_copy)
        runs_as = RunsAs(uid=kernel.state.uid, user_namespace=kernel.state.user_namespace)
        return Saved(pause_seconds=pause, cpu_seconds=cpu_used, facts=msgspec.to_builtins(runs_as))

    async def precopy(
        self,
        kernel_id: str,
        staging: Staging,
        *,
        parent: str,
        background: Background,
        check: Callable[[], None],
    ) -> None:
        kernel = self._running(kernel_id)
        name = self._name(kernel_id, kernel.state.generation)
        if kernel.filling is not None or self._is_paused(name):
            raise Conflict(
                f"Kernel {kernel_id} cannot be copied ahead of a save now.",
                reason="It is paused." if kernel.filling is None else "Its memory still arrives.",
            )
        size = await self.memory(kernel_id)
        if not (self._windows and dirty.available() and affordable(size)):
            raise HostNotReady(
                "Nothing can be copied ahead of a save here.",
                reason="What a kernel writes after that would not be known.",
            )
        pids = await self.processes(kernel_id)

        def take() -> None:
            taking = Taking(staging, kernel.watch, parent, background.enter)
            try:
                taking.precopy(pids, check)
            finally:
                taking.close()

        try:
            await background.run(take)
        except OSError as error:
            raise from_os_error(error, "The kernel could not be copied ahead of a save.") from error

    async def stop(self, kernel_id: str) -> None:
        kernel = self._kernels[kernel_id]
        if kernel.running:
            kernel.state.subscribers = await self.network.subscribers(
                self._link(kernel), kernel.state.iopub_port
            )
        await self._end(kernel)
        await self._destroy(kernel_id, kernel.state.generation)
        await asyncio.to_thread(self._write_state, kernel.id, kernel.state)

    async def release(self, kernel_id: str) -> None:
        kernel = self._kernels[kernel_id]
        if kernel.running:
            await self._let_go_on(self._name(kernel_id, kernel.state.generation))
            await self.network.activate(self._link(kernel))

    async def _dump(
        self,
        kernel: _Kernel,
        staging: Staging,
        taking: Taking,
        cpu: str,
        files: str,
        window: Window | None,
        *,
        hold: bool,
    ) -> float:
        """Save processes and files; how long they stood still. A window is used up.

        ``cpu`` and ``files`` are shell commands that take the processor time, and the snapshot.
        """
        name = self._name(kernel.id, kernel.state.generation)
        bundle = self._bundle(kernel.id, kernel.state.generation)
        work = bundle / "dump"
        frozen, thawed = work / "frozen", work / "thawed"
        remaps = staging.images / criu.REMAPS
        in_window = window is not None and self.pool.at_once
        if in_window:
            files = f"[ ! -e {shlex.quote(os.fspath(remaps))} ] || {{\n{files}\n}}"

        def prepare() -> tuple[str, int, Request]:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(mode=0o700)
            script = bundle / "snapshot.sh"
            freeze = f": > {frozen}\n{self._cgroup(name).freeze_script()}"
            script.write_text(criu.action_script(freeze=freeze, snapshot=cpu + files))
            script.chmod(0o700)
            configuration = bundle / "criu.conf"
            configuration.write_text(
                criu.configuration(
                    ghost_limit=_ghost_limit(staging.images),
                    keep_connections=True,
                    work=work,
                    lock_network=hold,
                    action_script=script,
                    cgroups=self.layout.cgroups if self.layout.cgroups.exists() else None,
                    more=window.configuration if window is not None else "",
                )
            )
            stays = hold or self._is_paused(name)
            thaw = "" if stays else self._cgroup(name).thaw_script()
            root, container = self._runc_state(name)
            request = Request(
                root / container / "state.json",
                staging.images,
                configuration,
                empty_network=kernel.state.user_namespace,
                lazy=window is not None,
                in_detail=log.isEnabledFor(logging.DEBUG),
            )
            return thaw, self._cgroup(name).memory(), request

        # Not where CRIU writes all memory: others need the processor meanwhile.
        urge = _URGENTLY if window is not None else ":"

        waited: dict[int, int] = {}

        def take() -> None:
            with ThreadPoolExecutor(1, thread_name_prefix="snapshot") as beside:
                taken = None
                if in_window and not remaps.exists():
                    taken = beside.submit(self.pool.snapshot, name, staging.id)
                processes = self._cgroup(name).processes()
                taking.frozen(processes)
                waited.update(timers.waiting(processes))
                if taken is not None:
                    taken.result()

        def go_on(ended: Callable[[], bool]) -> None:
            if not hold and self._cgroup(name).thaw_again(ended):
                thawed.touch()

        with contextlib.ExitStack() as used:
            if window is not None:
                used.callback(window.close)
            thaw, size, request = await asyncio.to_thread(prepare)
            used.callback(request.close)
            script = _DUMP.format(urge=urge, said=work / "criu.log", thawed=thawed, thaw=thaw)
            dump = process.run(
                # Whoever is killed meanwhile, the processes go on.
                *("sh", "-c", script, "sh", self.tools.criu, *request.arguments),
                env=self.tools.env,
                timeout=self._criu_timeout(size),
                operation=self._operation(name) + "/save",
                runs_criu=True,
                inherited=[request.give(), *(window.give() if window is not None else ())],
            )
            if window is None:
                await dump
            else:
                await window.during(dump, take, go_on)
            await asyncio.to_thread(taking.finish)
        if await asyncio.to_thread(criu.kernel_has_ended, staging.images):
            raise _has_ended()
        await asyncio.to_thread(timers.rearm, staging.images, waited)
        # Files, as a shell can touch one without starting a process.
        return await asyncio.to_thread(lambda: thawed.stat().st_mtime - frozen.stat().st_mtime)

    async def _snapshot(self, name: str, snapshot: str, *, frozen: bool) -> float:
        """Files only: the processes stand still for the moment of the snapshot."""
        if not frozen:
            await self._stand_still(name)
        began = time.perf_counter()
        try:
            await process.run(
                *("sh", "-c", snapshot),
                env=self.tools.env,
                timeout=self.criu_timeout,
                operation=self._operation(name) + "/save",
            )
        finally:
            if not frozen:
                await self._let_go_on(name)
        return time.perf_counter() - began

    async def _recover(self, kernel: _Kernel, name: str, checkpoint_id: str) -> None:
        """After a save that failed: nothing stays frozen, locked, or half written."""
        await asyncio.to_thread(process.end_marked, self._operation(name) + "/save")
        await self._let_go_on(name)
        await self._dump_is_over(kernel, name)
        await self._let_go_on(name)
        await self.network.unlock(self._link(kernel))
        await asyncio.to_thread(self.pool.delete_snapshot, checkpoint_id)

    async def _dump_is_over(self, kernel: _Kernel, name: str) -> None:
        """Wait for a CRIU without a caller: it leaves processes as it has found them, frozen."""
        if await asyncio.to_thread(process.dump_of, kernel.state.pid):
            log.info("CRIU still has kernel %s: waiting for it", kernel.id)
        size = await asyncio.to_thread(self._cgroup(name).memory)
        await process.dump_is_over(kernel.state.pid, self._criu_timeout(size))

    async def discard(self, checkpoint_id: str) -> None:
        await asyncio.to_thread(self.layout.touched(checkpoint_id).unlink, missing_ok=True)
        await asyncio.to_thread(self.pool.delete_snapshot, checkpoint_id)

    async def copy_snapshot(self, source: str, target: str) -> None:
        await asyncio.to_thread(self.pool.copy_snapshot, source, target)

    async def make_snapshot(self, checkpoint_id: str, fill: Callable[[Path], None]) -> None:
        name = f"import-{checkpoint_id}"

        def make() -> str:
            layer = self.pool.create(name)
            (layer / "upper").rmdir()
            fill(layer)
            return self.pool.snapshot_script(name, checkpoint_id)

        try:
            script = await asyncio.to_thread(make)
            await process.run(
                *("sh", "-c", script),
                env=self.tools.env,
                timeout=_START_SECONDS,
                operation=self._operation(name),
            )
        finally:
            await asyncio.to_thread(self.pool.delete_layer, name)

    async def snapshot_durable(self, checkpoint_id: str) -> None:
        await asyncio.to_thread(self.pool.sync, checkpoint_id)

    async def snapshot_tree(self, checkpoint_id: str) -> Path:
        return await asyncio.to_thread(self.pool.snapshot_upper, checkpoint_id)

    async def _rename_host(self, pid: int, hostname: str) -> None:
        """Change the host name of a container that came back with the one it was saved with."""
        script = 'printf %s "$1" > /proc/sys/kernel/hostname'
        await process.run(
            *("nsenter", f"--uts=/proc/{pid}/ns/uts", "sh", "-c", script, "sh", hostname),
            env=self.tools.env,
            timeout=_START_SECONDS,
        )

    # -- while it runs -------------------------------------------------------------------------

    async def show_connection(self, kernel_id: str, connection_file: str) -> None:
        private = self._private(self._running(kernel_id))

        def write() -> None:
            path = private / "connection" / "connection.json"
            with open(os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW), "w") as file:
                file.write(connection_file)

        await asyncio.to_thread(write)

    def _private(self, kernel: _Kernel) -> Path:
        """Where what the agent gives a container is."""
        if kernel.state.user_namespace:
            return self._stage(self._name(kernel.id, kernel.state.generation)) / "private"
        return self.layout.kernel(kernel.id)

    async def signal(self, kernel_id: str, signum: int) -> None:
        kernel = self._kernels.get(kernel_id)
        if kernel is None or not kernel.running:
            return
        if signum == signal.SIGKILL:
            name = self._name(kernel_id, kernel.state.generation)
            await asyncio.to_thread(self._cgroup(name).kill)
            return
        try:
            os.kill(kernel.state.pid, signum)
        except ProcessLookupError:
            return

    async def memory(self, kernel_id: str) -> int:
        kernel = self._kernels.get(kernel_id)
        if kernel is None or not kernel.running:
            return 0
        name = self._name(kernel_id, kernel.state.generation)
        return await asyncio.to_thread(self._cgroup(name).memory)

    async def cpu_seconds(self, kernel_id: str) -> float | None:
        group = self._group(kernel_id)
        return await asyncio.to_thread(lambda: cpu_seconds(group.cpu_file()) if group else None)

    async def processes(self, kernel_id: str) -> list[int]:
        group = self._group(kernel_id)
        return await asyncio.to_thread(group.processes) if group else []

    def _group(self, kernel_id: str) -> Cgroup | None:
        kernel = self._kernels.get(kernel_id)
        if kernel is None or not kernel.running:
            return None
        return self._cgroup(self._name(kernel_id, kernel.state.generation))

    def _running(self, kernel_id: str) -> _Kernel:
        kernel = self._kernels.get(kernel_id)
        if kernel is None:
            raise NotFound(f"There is no kernel {kernel_id}.")
        if not kernel.running:
            raise Conflict(f"Kernel {kernel_id} is not running.")
        return kernel

    # -- ending --------------------------------------------------------------------------------

    def _watch(self, kernel: _Kernel) -> None:
        kernel.running, kernel.ending = True, False
        kernel.ended = asyncio.Event()
        try:
            kernel.pidfd = os.pidfd_open(kernel.state.monitor)
        except ProcessLookupError:
            asyncio.get_running_loop().call_soon(self._monitor_ended, kernel)
            return
        asyncio.get_running_loop().add_reader(kernel.pidfd, self._monitor_ended, kernel)

    def _unwatch(self, kernel: _Kernel) -> None:
        if kernel.pidfd >= 0:
            asyncio.get_running_loop().remove_reader(kernel.pidfd)
            os.close(kernel.pidfd)
            kernel.pidfd = -1

    def _monitor_ended(self, kernel: _Kernel) -> None:
        """The monitor leaves when its container has ended."""
        self._unwatch(kernel)
        self._forget_filling(kernel)
        self._later(asyncio.to_thread(kernel.watch.close))
        kernel.watch = Watch()
        if kernel.child is not None:
            kernel.child.wait()  # it has ended: this only reaps it
            kernel.child = None
        kernel.running = False
        kernel.ended.set()
        if not kernel.ending:
            kernel.teardown = self._later(self._tear_down(kernel))

    async def _tear_down(self, kernel: _Kernel) -> None:
        """Tell of an end that was not our doing, and remove what is left of the container."""
        self.on_exit(kernel.id, *await asyncio.to_thread(self._end_of, kernel))
        await self._destroy(kernel.id, kernel.state.generation, keep_network=True)

    def _end_of(self, kernel: _Kernel) -> tuple[int, str]:
        """The exit code of a container that has ended, and the reason where it was not its own."""
        bundle = self._bundle(kernel.id, kernel.state.generation)
        outcome = Outcome.read(bundle)
        reason = outcome.error if outcome is not None else ""
        if kernel.state.filled_from and pagers.lost(bundle):
            # It may have ended by itself then, of the zeros in the place of its memory.
            reason = "the processes that brought its memory were killed"
        try:
            return int(json.loads((bundle / "exit.json").read_text())["code"]), reason
        except (OSError, ValueError, KeyError):
            # The monitor was killed, and the container with it.
            return 128 + signal.SIGKILL, reason

    async def _end(self, kernel: _Kernel) -> None:
        """Kill the container and wait until it is gone; nobody is told."""
        if kernel.teardown is not None:
            await asyncio.wait([kernel.teardown])
        if not kernel.running:
            return
        kernel.ending = True
        name = self._name(kernel.id, kernel.state.generation)
        await asyncio.to_thread(self._cgroup(name).kill)
        await asyncio.to_thread(process.end_dump_of, kernel.state.pid)
        try:
            async with asyncio.timeout(10):
                await kernel.ended.wait()
        except TimeoutError:
            log.warning("The monitor of kernel %s does not end: killing it", kernel.id)
            os.kill(kernel.state.monitor, signal.SIGKILL)
            await kernel.ended.wait()

    async def remove(self, kernel_id: str) -> None:
        kernel = self._kernels.get(kernel_id)
        if kernel is not None:
            await self._end(kernel)
            if kernel.replaced:
                # Their networks have the names that the next kernel of this index will use.
                await asyncio.wait(kernel.replaced)
            if kernel.state.generation >= 0:
                await self._destroy(kernel_id, kernel.state.generation)
            await self.network.expel(self._link(kernel), kernel.state.uid)
            self._kernels.pop(kernel_id, None)
        await self._remove_directory(self.layout.kernel(kernel_id))

    async def _remove_directory(self, directory: Path) -> None:
        """A kernel's directory with all its generations; their networks are swept by name."""
        for generation in await asyncio.to_thread(_generations, directory):
            await self._destroy(directory.name, generation)
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    async def _destroy(
        self, kernel_id: str, generation: int, *, keep_network: bool = False
    ) -> None:
        """Remove all of one generation, whatever state it is in. Idempotent."""
        name = self._name(kernel_id, generation)
        bundle = self._bundle(kernel_id, generation)
        await asyncio.to_thread(self._destroy_container, name, bundle)
        kernel = self._kernels.get(kernel_id)
        if kernel is None or keep_network:
            return
        await self.network.remove(self.network.link(kernel.state.index, generation))
        if kernel.state.generation == generation:
            kernel.state.network = False

    def _destroy_container(self, name: str, bundle: Path) -> None:
        process.end_marked(self._operation(name))
        self._destroy_processes(name)
        # Not before: memory that nobody brings any more reads as zeros.
        process.end_marked(self._pager(name))
        unmount_below(bundle)
        unmount_below(self._stage(name))
        self.pool.delete_layer(name)
        shutil.rmtree(bundle, ignore_errors=True)
        shutil.rmtree(self._stage(name), ignore_errors=True)

    def _destroy_processes(self, name: str) -> None:
        # Not `runc delete`: of a container that was killed in mid-restore it waits for ever.
        group = self._cgroup(name)
        group.kill()
        state = self.layout.runc_root / name
        unmount_below(state)
        shutil.rmtree(state, ignore_errors=True)
        group.remove()

    def _criu_timeout(self, size: int) -> float:
        """Seconds that a dump or restore of ``size`` bytes may take before it is ended."""
        return self.criu_timeout + size / _CRIU_RATE

    # -- small things --------------------------------------------------------------------------

    def _later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a clean-up that nobody waits for; :meth:`close` does."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._cleaned_up)
        return task

    def _cleaned_up(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("A clean-up failed; the next start repeats it", exc_info=error)

    def is_paused(self, kernel_id: str) -> bool:
        kernel = self._kernels.get(kernel_id)
        if kernel is None or not kernel.running:
            return False
        return self._is_paused(self._name(kernel_id, kernel.state.generation))

    def _is_paused(self, name: str) -> bool:
        """Whether somebody else than the agent has a container stand still."""
        return False

    async def _stand_still(self, name: str) -> None:
        """Freeze a container, and wait until it is."""
        attempts = _FREEZE_ATTEMPTS
        while True:
            attempts -= 1
            try:
                await self._runc("pause", name)
                return
            except CommandFailed as error:
                # On a busy host runc gives up early with cgroup v1, and lets it go on.
                if not attempts or "unable to freeze" not in error.output:
                    raise

    async def _let_go_on(self, name: str) -> None:
        """Let a container run that the agent may have frozen."""
        await asyncio.to_thread(self._cgroup(name).thaw)

    async def _runc(self, verb: str, name: str) -> None:
        root, container = self._runc_state(name)
        await process.run(
            *(self.tools.runc, "--root", root, verb, container),
            env=self.tools.env,
            timeout=_START_SECONDS,
            operation=self._operation(name),
        )

    def _write_new(self, kernel_id: str, state: _State) -> None:
        state.pid_start = process.start_time(state.pid) or 0
        state.monitor_start = process.start_time(state.monitor) or 0
        self._write_state(kernel_id, state)

    def _write_state(self, kernel_id: str, state: _State) -> None:
        path = self.layout.kernel(kernel_id) / "engine.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.encode(state))
        os.replace(temporary, path)


async def _both(first: Awaitable[A], second: Awaitable[B]) -> tuple[A, B]:
    """Both at once; when it raises neither still runs, so that clean-up may begin."""
    results = await asyncio.gather(first, second, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return cast("tuple[A, B]", tuple(results))


def _start_monitor(run_dir: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        # The last argument is for whoever looks at a list of processes.
        [sys.executable, "-I", "-S", monitor.__file__, str(run_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        cwd="/",
        start_new_session=True,
    )


def _tell(child: subprocess.Popen[bytes], job: dict[str, Any]) -> dict[str, Any]:
    """Give a monitor its job and wait for what it has to say; in a thread."""
    assert child.stdin is not None and child.stdout is not None
    with child.stdin, child.stdout:
        child.stdin.write(json.dumps(job).encode() + b"\n")
        child.stdin.flush()
        answer = child.stdout.readline()
    return dict(json.loads(answer)) if answer else {}


def _empty(directory: Path) -> None:
    """Remove what a dump that failed has left in its directory."""
    for path in directory.iterdir():
        path.unlink()


def _generations(directory: Path) -> list[int]:
    """The generations that have a bundle in a kernel's directory, if there is one."""
    if not directory.exists():
        return []
    return [int(p.name) for p in directory.iterdir() if p.name.isdigit()]


def _tree_bytes(directory: Path) -> int:
    return sum(p.stat().st_size for p in directory.rglob("*") if p.is_file())


def _ghost_limit(path: Path) -> int:
    """Half of the free space; CRIU keeps it in 32 bits."""
    disk = os.statvfs(path)
    return min(disk.f_bavail * disk.f_frsize // 2, 4095 * 2**20)


def _logs(directory: Path) -> str:
    texts = [p.read_text(errors="replace") for p in sorted(directory.glob("*.log"))]
    return "\n".join(texts)


def _why(bundle: Path) -> str:
    """The last words of runc, for an error message."""
    try:
        lines = (bundle / "runc.log").read_text(errors="replace").splitlines()
    except OSError:
        return ""
    errors = [line for line in lines if "level=error" in line] or lines
    if not errors:
        return ""
    message = errors[-1].partition("msg=")[2] or errors[-1]
    try:
        return str(json.loads(message)) if message.startswith('"') else message
    except ValueError:
        return message


def _resolv_conf() -> str:
    """The host's name servers; a stub on the host's loopback cannot be reached from a container."""
    text = ""
    for path in (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf")):
        if path.exists():
            text = path.read_text(errors="replace")
            if "nameserver 127." not in text:
                break
    return text


def _write_private(
    directory: Path, spec: ContainerSpec, owner: tuple[int, int], names: dict[str, str]
) -> None:
    """The small files that the agent gives a container; ``names``: those for names of hosts."""
    python = directory / "connection" / "python" / "jupyter_checkpoints"
    for part in (python.parent.parent, python.parent, python):
        part.mkdir(mode=0o755, parents=True, exist_ok=True)
        part.chmod(0o755)
    directory.chmod(0o700)
    for path, text, mode in (
        (directory / "connection" / "connection.json", spec.connection_file, 0o600),
        *((directory / name, text, 0o644) for name, text in names.items()),
        (directory / "machine-id", spec.machine_id + "\n", 0o444),
        (python / "ipython.py", _IPYTHON.read_text(), 0o644),
    ):
        # In place, not by rename: an earlier container may have the file mounted.
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
            os.fchown(file.fileno(), *owner)
            os.fchmod(file.fileno(), mode)
            file.write(text)
