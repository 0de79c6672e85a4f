"""The Docker engine: Docker Engine holds the containers, in place of a monitor of our own.

To Docker a kernel's container is one like any other: ``docker ps``, ``logs``, ``stats``, ``exec``,
``top``, ``kill`` and ``update`` work. What Docker cannot do is done beneath it: its own checkpoints
take ten times as long (and since version 28 cannot be resumed), its layers cannot be snapshot, and
its networks do not keep a kernel's address. So layers, networks, saving and resuming are the
embedded engine's, and the OCI runtime ``jupyter-checkpoints`` puts a container together of both
(:mod:`..docker_runtime`). That is also why a checkpoint of either engine can be resumed by the
other.

That a container has ended is told by the kernel, through a pidfd, at once and whether Docker runs
or not; how it ended, and whether it is paused, is told by Docker (:mod:`..docker_events`).
Containers are found by their labels.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import queue
import shutil
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from ... import layout as places
from ...errors import CheckpointsError, Conflict, HostNotReady, OperationTimeout
from ...layout import INIT_PATH, Layout
from ...models import Mode, is_volume
from ...store.store import Staging
from .. import mounting, process, userns
from ..background import Background
from ..cgroup import Cgroup
from ..docker_client import IMAGE_SECONDS, SECONDS, DockerFailed, DockerMissing, told
from ..docker_events import ACTIONS, DockerEvent, DockerEvents
from ..docker_host_config import HOST_CONFIG, applied, hosts, resolv_conf
from ..docker_images import DockerImages
from ..docker_log import DockerLog
from ..docker_network import EVENTS as NETWORK_EVENTS
from ..docker_network import DockerNetwork
from ..docker_runtime.create import STALE
from ..docker_setup import RUNTIME
from ..monitor import Log
from ..network import Link, Network
from ..rootfs import Pool, forget_origins
from ..seccomp import DEFAULT_CAPABILITIES
from ..subids import SubordinateIds
from ..tools import Tools
from .embedded import _LOG_FILES, _LOG_SIZE, EmbeddedEngine, _Held, _Kernel, _Parts
from .engine import Adopted, ContainerSpec, OnExit, Saved, Source

log = logging.getLogger(__name__)

_LABEL = "org.jupyter.runtime-checkpoints"
_AGENT, _KERNEL, _GENERATION = f"{_LABEL}.agent", f"{_LABEL}.kernel", f"{_LABEL}.generation"
_ADDRESS = f"{_LABEL}.address"
#: In ``/etc/hosts``: what follows is renewed.
_NEIGHBOURS = "# containers of Docker's network\n"
_INIT = Path("/usr/bin/tini-static")
_EXIT_SECONDS = 20
_PAUSED_SECONDS = 5.0
_DRAIN_SECONDS = 5.0
_EVENT_SECONDS = 2.0
_RETRY_SECONDS = 1.0
# How often Docker's log of a kernel is looked at: while there is output, and while there is none.
_LOOK_SECONDS = (0.05, 0.4)


class _Place(Struct, frozen=True, kw_only=True):
    """Where a generation's container is; ``docker.json`` in its bundle."""

    container: str
    runc_root: str
    cgroup: str


class DockerEngine(EmbeddedEngine):
    """See the module, and :class:`~jupyter_checkpoints.agent.engines.engine.Engine`.

    Parameters
    ----------
    images:
        Docker's, with its client.
    host_config:
        Further arguments of ``APIClient.create_host_config``, checked.
    docker_network:
        The one whose containers kernels reach by name, if there is one.
    on_change:
        Called with the id of a kernel that was paused, or goes on.
    """

    name = "docker"

    def __init__(
        self,
        images: DockerImages,
        layout: Layout,
        tools: Tools,
        pool: Pool,
        network: Network,
        subids: SubordinateIds,
        seccomp: dict[str, Any],
        on_exit: OnExit,
        criu_timeout: float,
        *,
        lazy_resume: bool = True,
        user_namespaces: bool,
        host_config: Mapping[str, Any],
        docker_network: DockerNetwork | None,
        on_change: Callable[[str], None],
    ) -> None:
        super().__init__(
            layout,
            tools,
            images.store,
            pool,
            network,
            subids,
            seccomp,
            on_exit,
            criu_timeout,
            lazy_resume=lazy_resume,
            user_namespaces=user_namespaces,
        )
        self.api = images.api
        self.docker_images = images
        self.host_config = dict(host_config)
        self.requests = places.REQUESTS
        self._places: dict[str, _Place] = {}
        self._followers: dict[str, threading.Thread] = {}
        #: Generations whose containers Docker could not remove when it was time.
        self._unremoved: set[str] = set()
        self._removing = threading.Lock()
        self._removals: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._closing = threading.Event()
        self.on_change = on_change
        #: Containers that are paused at Docker, and those that are being saved or held.
        self._paused: set[str] = set()
        self._saving: set[str] = set()
        self._loop = asyncio.get_running_loop()
        self._events = DockerEvents(
            self.api,
            {"type": "container", "label": f"{_AGENT}={layout.run_dir}", "event": ACTIONS},
            self._on_event,
            self._on_connected,
        )
        self._docker_network = docker_network
        self._neighbours = ""
        """Names of its containers, for ``/etc/hosts``."""
        self._network_events = (
            DockerEvents(
                self.api,
                NETWORK_EVENTS,
                lambda event: self._neighbours_changed(),
                self._neighbours_changed,
            )
            if docker_network is not None
            else None
        )

    # -- names ---------------------------------------------------------------------------------

    def _cgroup(self, name: str) -> Cgroup:
        place = self._places.get(name)
        return Cgroup(place.cgroup) if place is not None else super()._cgroup(name)

    def _runc_state(self, name: str) -> tuple[Path, str]:
        place = self._place(name)
        return Path(place.runc_root), place.container

    def _place(self, name: str) -> _Place:
        place = self._places.get(name)
        if place is None:
            raise Conflict("The kernel's container has ended.")
        return place

    def _labels(self, name: str) -> dict[str, str]:
        kernel, _, generation = name.rpartition(".")
        return {_AGENT: str(self.layout.run_dir), _KERNEL: kernel, _GENERATION: generation}

    # -- start of the agent, end of the agent --------------------------------------------------

    async def open(self, known: dict[str, bool], checkpoints: set[str]) -> dict[str, Adopted]:
        await asyncio.to_thread(self._open_requests)
        self._paused = await asyncio.to_thread(self._list_paused)
        subnets: list[str] = []
        if self._docker_network is not None:
            subnets = await asyncio.to_thread(self._docker_network.subnets)
        threading.Thread(target=self._remove_later, name="removals", daemon=True).start()
        adopted = await super().open(known, checkpoints)
        await self.network.pass_firewall_of_docker(subnets)
        self._events.open()
        if self._network_events is not None:
            self._network_events.open()
        return adopted

    def _open_requests(self) -> None:
        """Have a place for requests; what an earlier agent left there is not to be used."""
        self.requests.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        self.requests.mkdir(mode=0o700, exist_ok=True)
        for path in self.requests.iterdir():
            with contextlib.suppress(OSError, ValueError, KeyError):
                if json.loads(path.read_bytes())["instance"] == str(self.layout.run_dir):
                    path.unlink()

    async def _adopt(self, directory: Path, stopped: bool) -> Adopted:
        await asyncio.to_thread(self._find_places, directory)
        return await super()._adopt(directory, stopped)

    def _find_places(self, directory: Path) -> None:
        for path in directory.glob("*/docker.json"):
            name = self._name(directory.name, int(path.parent.name))
            with contextlib.suppress(OSError, msgspec.DecodeError):
                self._places[name] = msgspec.json.decode(path.read_bytes(), type=_Place)

    def _sweep_containers(self, running: set[str]) -> None:
        with told():
            found = self.api.containers(
                all=True, filters={"label": f"{_AGENT}={self.layout.run_dir}"}
            )
        for container in found:
            labels = container["Labels"]
            name = f"{labels.get(_KERNEL)}.{labels.get(_GENERATION)}"
            if name not in running:
                log.info("Removing a container of an earlier agent: %s", name)
                self._remove_containers(name)

    def _image_files(self) -> Path:
        with told():
            return Path(self.api.info()["DockerRootDir"])

    async def close(self) -> None:
        self._closing.set()
        await asyncio.to_thread(self._events.close)
        if self._network_events is not None:
            await asyncio.to_thread(self._network_events.close)
        self._removals.put("")
        await super().close()

    async def _keep_spare(self) -> None:
        async with self._spare_lock:
            await self.network.keep_spare({k.state.index for k in self._kernels.values()})
        await self._keep_pager()

    # -- starting and resuming -----------------------------------------------------------------

    def _lay_out(self, spec: ContainerSpec, layer: Path, parts: _Parts, *, fresh: bool) -> None:
        """The runtime mounts the root file system; here the layer gets the init it may need."""
        if parts.ids is not None:
            parts.rootfs.mkdir(mode=0o755)
        if not fresh:
            return
        init = layer / "upper" / INIT_PATH.lstrip("/")
        init.parent.mkdir(mode=0o755)
        init.parent.chmod(0o755)
        shutil.copyfile(_INIT, init)
        init.chmod(0o755)

    async def _bring_up(
        self,
        spec: ContainerSpec,
        bundle: Path,
        parts: _Parts,
        source: Source | None,
        timeout: float,
    ) -> _Held:
        name = self._name(spec.kernel_id, int(bundle.name))
        restores = source is not None and source.mode == "process"
        images = None
        if source is not None and restores:
            images = await asyncio.to_thread(self._images, bundle, parts, source)
        request = {
            "instance": str(self.layout.run_dir),
            "operation": self._operation(name),
            "bundle": str(bundle),
            "layer": str(self.pool.layer(name)),
            "images": str(images or ""),
            "lazily": "yes" if source is not None and restores and source.pages else "",
        }
        try:
            held = await self._run(spec, name, bundle, request, timeout)
        except DockerFailed as error:
            if STALE not in str(error):
                raise
            # The layer comes from the embedded engine, or Docker was given the image anew.
            await asyncio.to_thread(self._destroy_processes, name)
            await asyncio.to_thread(forget_origins, self.pool.layer(name))
            held = await self._run(spec, name, bundle, request, timeout)
        await asyncio.to_thread(userns.drop_images, bundle / "images")
        return held

    async def _run(
        self,
        spec: ContainerSpec,
        name: str,
        bundle: Path,
        request: dict[str, str],
        timeout: float,
    ) -> _Held:
        container = await asyncio.to_thread(self._create, spec, name, request)
        operation = self._operation(name)
        starting = asyncio.ensure_future(asyncio.to_thread(self._start, container, timeout))
        # runc is no child of the agent's here; it is what carries the mark first.
        watch = asyncio.ensure_future(
            process.end_if_bereft(lambda: process.eldest(operation), operation)
        )
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(starting)
        except BaseException as error:
            if not starting.done():
                await asyncio.to_thread(process.end_marked, operation)
                await asyncio.wait([starting])
                # It has failed now, as it was ended: that is no news.
                starting.exception()
            if isinstance(error, TimeoutError):
                raise OperationTimeout(
                    f"The container did not come up within {timeout:.0f} seconds.",
                    reason="It was ended.",
                    hint="A file lock that another kernel holds is one possible cause.",
                ) from None
            raise
        finally:
            watch.cancel()
        pid = await asyncio.to_thread(self._find, name, container, bundle)
        return _Held(pid=pid, keeper=pid)

    def _create(self, spec: ContainerSpec, name: str, request: dict[str, str]) -> str:
        """Make Docker's container, and leave word for the runtime what it is to be."""
        from docker.types import Mount

        labels = {**self._labels(name), _ADDRESS: self.address(spec.kernel_id)}
        limits = spec.limits
        image = self.docker_images.reference(spec.image_digest)
        with self._removing:
            if name in self._unremoved:
                self._try_to_remove(name)
        with told(IMAGE_SECONDS):
            host_config = self.api.create_host_config(
                **{
                    "runtime": RUNTIME,
                    "network_mode": "none",
                    "ipc_mode": "private",
                    "cap_drop": ["ALL"],
                    # What `docker exec` gets; the container's own are in its configuration.
                    "cap_add": [c.removeprefix("CAP_") for c in DEFAULT_CAPABILITIES],
                    "security_opt": ["no-new-privileges"],
                    "log_config": {
                        "Type": "json-file",
                        "Config": {"max-size": str(_LOG_SIZE), "max-file": str(_LOG_FILES)},
                    },
                    **_limits(limits.memory, limits.cpus, limits.pids),
                    **{k: v for k, v in self.host_config.items() if k in HOST_CONFIG},
                    # So that Docker knows that they are in use.
                    "mounts": [
                        Mount(m.target, m.source, "volume", m.read_only, no_copy=True)
                        for m in spec.mounts
                        if is_volume(m.source)
                    ],
                }
            )
            made = self.api.create_container(
                image,
                entrypoint=[INIT_PATH, "-g", "--"],
                command=spec.argv,
                environment=spec.env,
                hostname=spec.hostname,
                labels=labels,
                # A pipe, as the embedded engine has it: a checkpoint fits either.
                stdin_open=True,
                # Its network is ours.
                network_disabled=True,
                host_config=host_config,
            )
        container = str(made["Id"])
        path = self.requests / container
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(msgspec.json.encode(request))
        return container

    def _configuration(
        self, spec: ContainerSpec, bundle: Path, parts: _Parts, link: Link
    ) -> dict[str, Any]:
        return applied(super()._configuration(spec, bundle, parts, link), self.host_config)

    def _hosts(self, hostname: str) -> str:
        text = super()._hosts(hostname) + hosts(self.host_config)
        return text if self._docker_network is None else text + _NEIGHBOURS + self._neighbours

    def _resolv_conf(self) -> str:
        return resolv_conf(self.host_config, super()._resolv_conf())

    def _start(self, container: str, timeout: float) -> None:
        # What takes too long is ended; then Docker answers, if it answers at all.
        with told(timeout + SECONDS):
            self.api.start(container)

    def _find(self, name: str, container: str, bundle: Path) -> int:
        """Where the container that has just started is, also for a later agent; its process."""
        with told():
            state = self.api.inspect_container(container)["State"]
        pid = int(state["Pid"])
        if pid == 0:
            raise DockerFailed(f"It ended with {state['ExitCode']}: {self._said(container)}")
        place = _Place(
            container=container,
            runc_root=(bundle / "runc-root").read_text(),
            cgroup=Cgroup.of(pid).path,
        )
        temporary = bundle / "docker.tmp"
        temporary.write_bytes(msgspec.json.encode(place))
        os.replace(temporary, bundle / "docker.json")
        self._places[name] = place
        return pid

    def _said(self, container: str) -> str:
        with told():
            return bytes(self.api.logs(container, tail=5)).decode(errors="replace").strip()

    # -- while it runs, and its end ------------------------------------------------------------

    def _watch(self, kernel: _Kernel) -> None:
        name = self._name(kernel.id, kernel.state.generation)
        if name not in self._followers:
            follower = threading.Thread(
                target=self._follow,
                args=(name, kernel.state.pid, kernel.state.pid_start, self.log_file(kernel.id)),
                name=f"log of {name}",
                daemon=True,
            )
            self._followers[name] = follower
            follower.start()
        super()._watch(kernel)

    def _follow(self, name: str, pid: int, pid_start: int, path: Path) -> None:
        """Copy what Docker has logged into the kernel's own log, which holds all generations."""
        container = self._places[name].container
        # How far an earlier agent has come.
        marker = path.with_name(f"log-of-{name.rpartition('.')[2]}")
        position = os.open(marker, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        copy = Log(str(path), _LOG_SIZE, _LOG_FILES)
        logged: DockerLog | None = None
        wait = _LOOK_SECONDS[0]
        ended = False
        try:
            while not self._closing.is_set():
                try:
                    if logged is None:
                        with told():
                            found = self.api.inspect_container(container)
                        driver = found["HostConfig"]["LogConfig"]
                        if driver["Type"] != "json-file":
                            copy.write(f"Docker hands the output to {driver['Type']}.\n".encode())
                            break
                        files = int(driver["Config"].get("max-file", 1))
                        last = os.pread(position, 64, 0).decode()
                        logged = DockerLog(Path(found["LogPath"]), files, last)
                    if not ended and process.start_time(pid) != pid_start:
                        # When the Engine has seen the end it has written all there was.
                        with told(_EXIT_SECONDS):
                            self.api.wait(container)
                        ended = True
                except DockerMissing:
                    ended = True
                except (DockerFailed, CheckpointsError) as error:
                    log.debug("Docker does not tell about %s now: %s", name, error)
                if logged is not None and (data := logged.read()):
                    copy.write(data)
                    os.pwrite(position, f"{logged.position:<63}\n".encode(), 0)
                    wait = _LOOK_SECONDS[0]
                elif ended:
                    break
                else:
                    self._closing.wait(wait)
                    wait = min(2 * wait, _LOOK_SECONDS[1])
        finally:
            os.close(position)
            os.close(copy.fd)
            if logged is not None:
                logged.close()
        if ended:
            marker.unlink(missing_ok=True)

    # -- what others do to it ------------------------------------------------------------------

    def _on_event(self, event: DockerEvent) -> None:
        """In the thread of the events."""
        name = f"{event.attributes.get(_KERNEL)}.{event.attributes.get(_GENERATION)}"
        if event.action in ("pause", "unpause"):
            self._from_thread(name, event.container)
        elif event.action == "oom":
            log.warning("Linux ends a process of %s: its memory limit is reached", name)

    def _on_connected(self) -> None:
        for name, place in list(self._places.items()):
            self._from_thread(name, place.container)

    def _from_thread(self, name: str, container: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(
                lambda: self._later(self._look_whether_paused(name, container))
            )

    def _neighbours_changed(self) -> None:
        """In the thread of the events: somebody has come to the network, or gone."""
        assert self._docker_network is not None
        try:
            self._neighbours = self._docker_network.hosts()
        except (DockerFailed, CheckpointsError) as error:
            log.debug("Docker does not tell of %s now: %s", self._docker_network.name, error)
            return
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(lambda: self._later(self._show_neighbours()))

    async def _show_neighbours(self) -> None:
        for kernel in list(self._kernels.values()):
            if kernel.running:
                path = self._private(kernel) / "hosts"
                with contextlib.suppress(OSError):  # it is ending
                    await asyncio.to_thread(_write_hosts, path, self._neighbours)

    async def _look_whether_paused(self, name: str, container: str) -> None:
        """Take over what Docker says now; events may be old, and some may be missing."""
        if name not in self._places:
            return
        paused = await asyncio.to_thread(self._ask_whether_paused, name, container)
        if name not in self._places or paused == (name in self._paused):
            return
        (self._paused.add if paused else self._paused.discard)(name)
        if name in self._saving:
            # The save goes first: CRIU would wait for processes that Docker has stopped.
            if paused:
                await asyncio.to_thread(self._cgroup(name).thaw)
        else:
            await self._let_go_on(name)
        self.on_change(name.rpartition(".")[0])

    def _ask_whether_paused(self, name: str, container: str) -> bool:
        try:
            # A save waits for this; its events have told already, if Docker is slow.
            with told(_PAUSED_SECONDS):
                return bool(self.api.inspect_container(container)["State"]["Paused"])
        except DockerMissing:
            return False
        except (DockerFailed, CheckpointsError) as error:
            log.debug("Docker does not tell about %s now: %s", name, error)
            return name in self._paused

    def _list_paused(self) -> set[str]:
        filters = {"label": f"{_AGENT}={self.layout.run_dir}", "status": "paused"}
        with told():
            found = self.api.containers(filters=filters)
        return {f"{c['Labels'].get(_KERNEL)}.{c['Labels'].get(_GENERATION)}" for c in found}

    def _is_paused(self, name: str) -> bool:
        return name in self._paused

    async def _stand_still(self, name: str) -> None:
        await self._look_whether_paused(name, self._place(name).container)
        if name in self._paused:
            await self._let_go_on(name)  # it may be running for a save
        else:
            await super()._stand_still(name)

    async def _let_go_on(self, name: str) -> None:
        if name in self._paused:
            await asyncio.to_thread(self._cgroup(name).freeze)
        else:
            await super()._let_go_on(name)

    async def save(
        self, kernel_id: str, staging: Staging, mode: Mode, *, parent: str, hold: bool
    ) -> Saved:
        kernel = self._running(kernel_id)
        name = self._name(kernel_id, kernel.state.generation)
        await self._look_whether_paused(name, self._place(name).container)
        self._saving.add(name)
        held = False
        try:
            saved = await super().save(kernel_id, staging, mode, parent=parent, hold=hold)
            held = hold
        finally:
            if not held:
                self._saving.discard(name)
                if kernel.running:
                    # It may have been paused, or let go on, meanwhile.
                    await self._let_go_on(name)
        return saved

    async def precopy(
        self,
        kernel_id: str,
        staging: Staging,
        *,
        parent: str,
        background: Background,
        check: Callable[[], None],
    ) -> None:
        name = self._name(kernel_id, self._running(kernel_id).state.generation)
        await self._look_whether_paused(name, self._place(name).container)
        await super().precopy(kernel_id, staging, parent=parent, background=background, check=check)

    async def release(self, kernel_id: str) -> None:
        kernel = self._kernels[kernel_id]
        self._saving.discard(self._name(kernel_id, kernel.state.generation))
        await super().release(kernel_id)

    def _end_of(self, kernel: _Kernel) -> tuple[int, str]:
        name = self._name(kernel.id, kernel.state.generation)
        place = self._places.get(name)
        bundle = self._bundle(kernel.id, kernel.state.generation)
        if place is not None and not (bundle / "exit.json").exists():
            try:
                with told(_EXIT_SECONDS):
                    code = self.api.wait(place.container)["StatusCode"]
                (bundle / "exit.json").write_text(json.dumps({"code": code}))
            except (DockerFailed, HostNotReady) as error:
                log.info("How kernel %s ended is not known: %s", kernel.id, error)
        code, reason = super()._end_of(kernel)
        if place is not None and not reason:
            reason = _reason(self._events.causes(place.container, _EVENT_SECONDS), code)
        return code, reason

    def _destroy_processes(self, name: str) -> None:
        self._kill(name)
        follower = self._followers.pop(name, None)
        if follower is not None:
            follower.join(_DRAIN_SECONDS)
        self._places.pop(name, None)
        self._paused.discard(name)
        self._saving.discard(name)
        self._remove_containers(name)

    def _kill(self, name: str) -> None:
        """End the processes of a generation, also if Docker has not said yet where they are."""
        cgroup = self._cgroup(name)
        if name not in self._places:
            kernel, _, generation = name.rpartition(".")
            with contextlib.suppress(OSError):
                said = (self._bundle(kernel, int(generation)) / "cgroup").read_text()
                cgroup = Cgroup.of_configuration(said)
        cgroup.kill()

    def _remove_containers(self, name: str) -> None:
        """Remove what Docker has of a generation; if it cannot be done now, it is done later.

        A kernel's processes have ended, and its files go, whatever Docker does: it may be just
        about to be started again.
        """
        try:
            with self._removing:
                self._try_to_remove(name)
        except CheckpointsError as error:
            log.warning("The container of %s is removed later: %s", name, error)
            self._removals.put(name)

    def _remove_later(self) -> None:
        """Tries until it is done; a thread, until the agent ends. The next one looks for itself."""
        while name := self._removals.get():
            done = False
            while not (done or self._closing.wait(_RETRY_SECONDS)):
                with self._removing, contextlib.suppress(CheckpointsError):
                    if name in self._unremoved:
                        self._try_to_remove(name)
                        log.info("The container of %s is removed", name)
                    done = True

    def _try_to_remove(self, name: str) -> None:
        self._unremoved.add(name)
        labels = [f"{key}={value}" for key, value in self._labels(name).items()]
        with told():
            found = self.api.containers(all=True, filters={"label": labels})
        if found:
            self._require_containerd()
        for container in found:
            self._remove_container(container["Id"])
        self._unremoved.discard(name)

    def _require_containerd(self) -> None:
        """Without it Docker would forget a container, and its shim would stay for good."""
        with told():
            parts = self.api.version().get("Components", ())
        if "containerd" not in {part["Name"] for part in parts}:
            raise HostNotReady("Docker cannot reach containerd.")

    def _remove_container(self, container: str) -> None:
        self._events.forget(container)
        try:
            with told():
                self.api.remove_container(container, v=True, force=True)
        except DockerMissing:
            pass  # whoever used `docker rm` was faster
        except DockerFailed as error:
            if "already in progress" not in str(error):
                raise HostNotReady(
                    "Docker could not remove a container.", reason=str(error)
                ) from error
        # runc's, of a restore in whose midst it was killed with containerd.
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            place = line.split()[4]
            if place.endswith(f"/{container}/criu-root"):
                mounting.detach(place)
        # Not before: without a request it would be an ordinary container if it were started yet.
        for path in (self.requests / container, self.requests / f"{container}.restored"):
            path.unlink(missing_ok=True)


def _write_hosts(path: Path, neighbours: str) -> None:
    """Change the part of a container's ``/etc/hosts`` that may change. Raises ``OSError``."""
    # In place: the container has this very file.
    with open(os.open(path, os.O_RDWR | os.O_NOFOLLOW), "r+") as file:
        text = file.read()
        kept = text.partition(_NEIGHBOURS)[0] + _NEIGHBOURS
        if text != kept + neighbours:
            file.seek(0)
            file.write(kept + neighbours)
            file.truncate()


def _reason(causes: list[DockerEvent], code: int) -> str:
    """Why a container has ended, if Docker knows of something that led to its exit code."""
    if code <= 128:
        return ""
    if code == 128 + signal.SIGKILL and any(event.action == "oom" for event in causes):
        return "its memory limit was reached"
    for event in reversed(causes):
        if event.attributes.get("signal") == str(code - 128):
            return f"Docker was told to end it (`docker stop`, `kill` or `rm`, signal {code - 128})"
    return ""


def _limits(memory: int | None, cpus: float | None, pids: int | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if memory is not None:
        found |= {"mem_limit": memory, "memswap_limit": memory}
    if cpus is not None:
        found |= {"cpu_period": 100_000, "cpu_quota": max(1000, int(cpus * 100_000))}
    if pids is not None:
        found["pids_limit"] = pids
    return found
