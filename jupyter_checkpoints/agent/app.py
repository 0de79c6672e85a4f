"""``jupyter checkpoints agent``: the one privileged process of a host.

Started by systemd (socket activation), by a root client that finds no agent, or by hand. Kernels
outlive it: the next agent takes them over.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, cast

from jupyter_core.application import JupyterApp
from traitlets import Bool, Dict, Enum, Float, Int, List, TraitError, Unicode, validate

from .. import __version__, layout
from ..errors import CheckpointsError, Conflict, HostNotReady, NotAllowed
from ..message_types import make_types_ready
from ..models import Limits
from ..store.directory import DirectoryStore
from ..store.packs import PackStore
from ..store.store import Store
from . import criu, subnets
from .admission import Admission
from .api import application
from .audit import Audit
from .checkpoints import CheckpointService
from .connections import AgentServer, raise_descriptor_limit
from .docker_host_config import HOST_CONFIG, OWN_CONFIG, checked_host_config
from .docker_images import DockerImages
from .docker_network import DockerNetwork
from .docker_volumes import DockerVolumes
from .engines.choice import choose
from .engines.docker import DockerEngine
from .engines.embedded import EmbeddedEngine
from .engines.engine import Engine
from .identity import PathOpener, group_ids
from .images import Images, ImageStore
from .kernels import KernelService
from .network import Network
from .preflight import host_facts
from .quotas import Quotas, Turns
from .rootfs import open_pool
from .seccomp import load_profile
from .subids import SubordinateIds
from .tools import find_tools

#: Threads for whatever blocks: so many that no user's long work keeps others' short work waiting.
_THREADS = 128


class AgentApp(JupyterApp):
    """The agent's configuration and life."""

    name = "jupyter-checkpoints-agent"
    version = __version__
    description = "The privileged process that runs, saves and resumes kernels on this host."
    #: To go on with defaults would be to go on without the administrator's limits.
    raise_config_file_errors = True

    data_dir_path = Unicode(
        str(layout.DATA_DIR), help="Where checkpoints, images and kernels' files are kept."
    ).tag(config=True)
    run_dir_path = Unicode(
        str(layout.RUN_DIR), help="Run-time state: the socket, bundles, mount points."
    ).tag(config=True)
    images_dir = Unicode("", help="Where images are kept, if not below data_dir_path.").tag(
        config=True
    )
    allowed_uids = List(
        Int(), [], help="Users who may use the agent, by number. Root always may."
    ).tag(config=True)
    allowed_groups = List(
        Unicode(),
        [layout.GROUP],
        help="Groups whose members may use the agent, by name. `setup` creates the default one. "
        "The socket belongs to the first of them.",
    ).tag(config=True)
    socket_mode = Enum(
        ["0660", "0666"],
        "0660",
        help="Who may connect to the socket: the first of allowed_groups, or everybody. Whom it "
        "serves the agent decides either way; 0666 is needed for allowed_uids who are in no "
        "group, and for more than one group.",
    ).tag(config=True)
    max_connections = Int(
        256, help="Connections that one user may have: a kernel that is watched takes one."
    ).tag(config=True)
    engine = Enum(
        ["auto", "embedded", "docker"],
        "auto",
        help="Who holds the kernels' containers: the agent itself, or Docker Engine. auto: Docker "
        "if it answers and `setup --engine docker` has registered the runtime. As long as there "
        "are kernels, auto stays with the engine that they were started by.",
    ).tag(config=True)
    docker_host = Unicode(
        "", help="URL of Docker's socket, if it is not the usual one: unix:///run/docker.sock."
    ).tag(config=True)
    extra_host_config = Dict(
        help="With Docker: further limits, logging and names of hosts for kernels' containers, by "
        "the names of the Docker SDK: " + ", ".join(sorted(HOST_CONFIG | OWN_CONFIG)) + ".",
    ).tag(config=True)
    network_name = Unicode(
        "",
        help="With Docker: a bridge network whose containers kernels reach by name. Kernels stay "
        "in their own network, and are not reached from it.",
    ).tag(config=True)
    allowed_volumes = List(
        Unicode(),
        [],
        help="With Docker: volumes that ordinary users may mount by name: names or patterns, where "
        "{username} is the user's own name (jupyterhub-user-{username}). Root may mount all.",
    ).tag(config=True)
    pool = Enum(
        ["auto", "btrfs", "reflink", "copy"],
        "auto",
        help="How kernels' files are kept and snapshot; auto measures what the host can do.",
    ).tag(config=True)
    subnet = Unicode(
        str(subnets.DEFAULT), help="Addresses for kernels, four of them for each kernel."
    ).tag(config=True)
    outbound_nat = Bool(
        True, help="Let kernels reach the outside through the host (switches IP forwarding on)."
    ).tag(config=True)
    user_namespaces = Bool(
        True,
        help="Let ordinary users' kernels be root in a user namespace, where the host can do that. "
        "Without it they run as their users, and cannot install into their container's files.",
    ).tag(config=True)
    first_subordinate_id = Int(
        0x7740_0000,
        help="Where the ids of ordinary users' containers begin on the host: 65536 for each user, "
        "of user and group ids alike, which nobody else may have. What was given once stays.",
    ).tag(config=True)
    mem_limit = Int(
        0,
        help="Bytes of memory a kernel may use, if it does not ask for less; 0: all. Root's "
        "kernels may ask for more, here and below.",
    ).tag(config=True)
    cpu_limit = Float(0.0, help="Processors a kernel may use; 0: all.").tag(config=True)
    pids_limit = Int(4096, help="Processes and threads a kernel may have.").tag(config=True)
    allowed_images = List(
        Unicode(),
        ["*"],
        help="Images that users' kernels may run in: names, digests, or patterns (jupyter/*).",
    ).tag(config=True)
    user_kernels = Int(0, help="Kernels that one user may run; 0: any number.").tag(config=True)
    user_memory = Int(
        0,
        help="Bytes that the memory limits of one user's kernels may come to in all; 0: any. A "
        "kernel without a limit gets what is left.",
    ).tag(config=True)
    user_storage = Int(
        0, help="Bytes on the disk that one user's checkpoints may have; 0: any."
    ).tag(config=True)
    user_operations = Int(
        4, help="Saves, resumes and the like of one user that go on at a time; others wait."
    ).tag(config=True)
    criu_timeout = Float(
        60.0,
        help="Seconds that a save or resume may take, besides a second for every 20 MB of memory; "
        "then it is ended. It is there for what would never end, not for what is slow.",
    ).tag(config=True)
    lazy_resume = Enum(
        ["auto", "off"],
        "auto",
        help="Whether a resumed kernel goes on while its memory is still arriving; auto: where "
        "the host can do that (it needs userfaultfd).",
    ).tag(config=True)
    orphan_grace = Float(
        300.0,
        help="Seconds after which a kernel is ended whose client (a Jupyter server, say) has died.",
    ).tag(config=True)

    max_archive = Int(
        64 * 2**30, help="Bytes that an archive of a checkpoint may have to be imported."
    ).tag(config=True)

    aliases = {
        "config": "JupyterApp.config_file",
        "data-dir": "AgentApp.data_dir_path",
        "run-dir": "AgentApp.run_dir_path",
        "images-dir": "AgentApp.images_dir",
        "subnet": "AgentApp.subnet",
        "pool": "AgentApp.pool",
        "engine": "AgentApp.engine",
        "docker-host": "AgentApp.docker_host",
        "log-level": "Application.log_level",
    }

    store_format = Enum(
        ["packs", "directories"],
        "packs",
        help="How new checkpoints are kept: packs keep what is the same in several checkpoints "
        "once; directories keep each whole. Packs can read both.",
    ).tag(config=True)
    compress_after = Float(
        3600.0,
        min=0,
        help="Seconds after which the memory in packs is compressed, where that gains, when the "
        "processor has nothing else to do; reading it takes a little longer then. 0: never.",
    ).tag(config=True)

    keep_precopies = Float(
        4 * 3600.0,
        min=0,
        help="Seconds for which what was copied ahead of a kernel's next save is kept for one.",
    ).tag(config=True)

    @validate("extra_host_config")
    def _validate_host_config(self, proposal: dict[str, Any]) -> Any:
        try:
            return checked_host_config(proposal["value"])
        except ValueError as error:
            raise TraitError(f"extra_host_config: {error}") from error

    def _log_level_default(self) -> int:
        return logging.INFO

    def start(self) -> None:
        super().start()
        package = logging.getLogger("jupyter_checkpoints")
        # Not the logger's: that lets everything through, and its handlers choose.
        package.setLevel(cast("int | str", self.log_level))
        package.handlers = self.log.handlers
        try:
            if os.geteuid() != 0:
                raise NotAllowed(
                    "The agent must be run by root.",
                    hint="Ask an administrator to run `sudo jupyter checkpoints setup`.",
                )
            make_types_ready()
            asyncio.run(self._serve())
        except CheckpointsError as error:
            self.log.critical("%s", error)
            self.exit(error.exit_code)

    def _open_store(self, paths: layout.Layout) -> Store:
        if self.store_format == "directories":
            return DirectoryStore(paths.store, memory=criu.memory)
        return PackStore(paths.store, paths.packs, memory=criu.memory)

    async def _serve(self) -> None:
        paths = layout.Layout(
            Path(self.data_dir_path),
            Path(self.run_dir_path),
            Path(self.images_dir) if self.images_dir else None,
        )
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS))
        raise_descriptor_limit()
        lock = await asyncio.to_thread(_prepare, paths)
        try:
            # Early: clients that come while an earlier agent's rest is cleaned up wait for us.
            listening = _listen(paths.socket)
            await asyncio.to_thread(self._open_to_users, paths.socket)
            await self._run(paths, listening)
        finally:
            lock.close()

    def _open_to_users(self, path: Path) -> None:
        """Give the socket's file, which systemd may have made, its group and mode."""
        groups = [g for name in self.allowed_groups for g in group_ids([name])]
        os.chown(path, 0, groups[0] if groups else 0)
        path.chmod(int(self.socket_mode, 8))

    async def _run(self, paths: layout.Layout, listening: socket.socket) -> None:
        tools = await asyncio.to_thread(find_tools)
        seccomp = await asyncio.to_thread(load_profile)
        pool = await asyncio.to_thread(open_pool, paths, self.pool)
        engine_name, docker = await asyncio.to_thread(choose, self.engine, self.docker_host, paths)
        facts = await asyncio.to_thread(host_facts, tools, engine_name, pool.name)
        store = ImageStore(paths.images)
        images: Images = store if docker is None else DockerImages(docker, store)
        checkpoints = CheckpointService(
            layout=paths,
            images=images,
            store=await asyncio.to_thread(self._open_store, paths),
            facts=facts,
            opener=PathOpener(
                DockerVolumes(docker, self.allowed_volumes) if docker is not None else None
            ),
            quotas=Quotas(
                images=tuple(self.allowed_images),
                maxima=Limits(
                    memory=self.mem_limit or None,
                    cpus=self.cpu_limit or None,
                    pids=self.pids_limit or None,
                ),
                kernels=self.user_kernels,
                memory=self.user_memory,
                storage=self.user_storage,
            ),
            max_archive=self.max_archive,
        )
        service = KernelService(
            layout=paths,
            images=images,
            checkpoints=checkpoints,
            facts=facts,
            orphan_grace=self.orphan_grace,
            compress_after=self.compress_after,
            keep_precopies=self.keep_precopies,
        )
        network = Network(paths.instance, self.subnet, self.outbound_nat)
        subids = SubordinateIds(paths.subordinate_ids, self.first_subordinate_id)
        below = (pool, network, subids, seccomp, service.on_exit, self.criu_timeout)
        engine: Engine
        if isinstance(images, DockerImages):
            engine = DockerEngine(
                images,
                paths,
                tools,
                *below,
                on_change=service.on_change,
                lazy_resume=self.lazy_resume == "auto",
                user_namespaces=self.user_namespaces,
                host_config=self.extra_host_config,
                docker_network=DockerNetwork(docker, self.network_name)
                if self.network_name
                else None,
            )
        else:
            engine = EmbeddedEngine(
                paths,
                tools,
                store,
                *below,
                lazy_resume=self.lazy_resume == "auto",
                user_namespaces=self.user_namespaces,
            )
        try:
            await service.open(engine)
        except BaseException:
            await engine.close()
            raise
        audit = Audit()
        admission = Admission(self.allowed_uids, self.allowed_groups)
        server = AgentServer(
            application(service, admission, audit, Turns(self.user_operations)),
            most=self.max_connections,
            audit=audit,
        )
        server.add_socket(listening)
        self.log.info("Runtime checkpoints agent %s listens on %s", __version__, paths.socket)
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        await stopping.wait()
        self.log.info("Stopping; kernels run on")
        server.stop()
        await service.close()
        await server.close_all_connections()


def _prepare(paths: layout.Layout) -> IO[str]:
    """Directories and the lock that makes this agent the only one of its run directory."""
    os.umask(0o077)
    # 0711: whoever is not allowed gets the agent's answer, not the file system's.
    paths.run_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    paths.run_dir.chmod(0o711)
    paths.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    paths.data_dir.chmod(0o700)
    lock = open(paths.lock, "a+")  # noqa: SIM115 - held as long as the agent lives
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise Conflict(
            f"Another agent serves {paths.run_dir} already.",
            hint="There is nothing to do: clients use that one.",
        ) from None
    return lock


def _listen(path: Path) -> socket.socket:
    """The socket systemd has opened for us, or one of our own."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1":
        inherited = socket.socket(fileno=3)
        inherited.setblocking(False)
        return inherited
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.setblocking(False)
    try:
        listening.bind(os.fspath(path))
    except OSError as error:
        raise HostNotReady(
            f"The agent cannot listen on {path}.",
            reason=str(error),
            hint="Choose another `run_dir_path`; a socket's path has 107 characters at most.",
        ) from error
    listening.listen(1024)
    return listening


def main(argv: list[str] | None = None, **kwargs: Any) -> None:
    """Entry point of ``jupyter checkpoints agent`` and ``python -m jupyter_checkpoints.agent``."""
    AgentApp.launch_instance(argv, **kwargs)
