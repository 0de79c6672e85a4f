"""One Jupyter kernel, one container: the kernel provisioner.

Jupyter's own programs use it by name, ``checkpoint-container-provisioner`` in a kernelspec::

    "metadata": {"kernel_provisioner": {
        "provisioner_name": "checkpoint-container-provisioner",
        "config": {"image": "python3", "mem_limit": "4G"}}}

It works the same under jupyter_client's managers (asynchronous and blocking), Jupyter Server,
``jupyter console``, nbclient and papermill, because all it does is talk to the agent.
"""

from __future__ import annotations

import fnmatch
import os
import re
import secrets
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio.to_thread
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase
from traitlets import Dict, Enum, Float, Integer, List, TraitError, Unicode, Union, validate

from . import mounts
from .client import AgentClient, ProgressCallback, connect
from .errors import AgentUnavailable, CheckpointsError, Conflict, InvalidRequest, NotFound
from .layout import default_socket
from .models import (
    CONNECTION_FILE,
    CheckpointModel,
    ConnectionInfo,
    KernelModel,
    Limits,
    Mode,
    Mount,
    Renewal,
    SaveRequest,
    StartRequest,
    Trigger,
    renewals,
)
from .watch import KernelWatch

_PLACEHOLDER = re.compile(r"\{([A-Za-z0-9_]+)\}")
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*$", re.IGNORECASE)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
#: Lines of a kernel's log that an error carries.
_LOG_LINES = 20


def parse_size(size: int | str) -> int:
    """Bytes from ``4294967296``, ``"4G"``, ``"512M"`` or ``"1.5 GiB"`` (powers of 1024).

    Raises
    ------
    ValueError
        If it is none of these.
    """
    match = _SIZE.match(str(size))
    if match is None:
        raise ValueError(f"{size!r} is not a size; write it like 512M or 4G")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def format_argv(
    spec: KernelSpec,
    extra_arguments: Sequence[str],
    values: Mapping[str, Any],
    *,
    prefix: str,
) -> list[str]:
    """A kernelspec's argument vector as it runs inside the container.

    ``{connection_file}`` becomes the container's own; the host's never appears. ``values`` fill
    other placeholders; unknown ones stay as they are, as in jupyter_client.
    """
    argv = [*spec.argv, *extra_arguments]
    if argv and argv[0] == sys.executable:
        argv[0] = "python"  # jupyter_client's built-in kernelspec names this very interpreter
    known = {
        **values,
        "connection_file": CONNECTION_FILE,
        "resource_dir": spec.resource_dir,
        "prefix": prefix,
    }
    return [_PLACEHOLDER.sub(lambda m: str(known.get(m[1], m[0])), arg) for arg in argv]


def allowed_environment(environment: Mapping[str, str], patterns: Sequence[str]) -> dict[str, str]:
    """The variables whose name matches one of ``patterns`` (shell-style)."""
    return {
        name: value
        for name, value in environment.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }


class ContainerProvisioner(KernelProvisionerBase):
    """Runs a kernel in a container of its own, which can be saved and resumed."""

    image = Unicode(
        "python3", help="The image kernels start from; see `jupyter checkpoints image`."
    ).tag(config=True)
    mode: Mode = Enum(
        ["process", "filesystem"],
        "process",
        help="""What a save keeps: `process` memory and files, `filesystem` files only.

        The latter suits kernels with no state worth keeping in memory.""",
    ).tag(config=True)  # type: ignore[assignment]
    mem_limit = Union(
        [Integer(), Unicode()],
        default_value=None,
        allow_none=True,
        help="Most memory of the container, in bytes or like 4G. None: the agent's default.",
    ).tag(config=True)
    cpu_limit = Float(
        None,
        allow_none=True,
        help="Most CPUs of the container, like 1.5. None: the agent's default.",
    ).tag(config=True)
    pids_limit = Integer(
        None, allow_none=True, help="Most processes and threads. None: the agent's default."
    ).tag(config=True)
    volumes = Dict(
        help="""Host directories to show in the container: {host path: container path}, or
        {host path: {"bind": container path, "mode": "ro"}}."""
    ).tag(config=True)
    read_only_volumes = Dict(help="As `volumes`, read-only.").tag(config=True)
    env_keep = List(
        Unicode(),
        ["LANG", "LANGUAGE", "LC_*", "TZ"],
        help="""Names (shell-style patterns) of environment variables the kernel gets.

        JPY_SESSION_NAME and the kernelspec's own `env` it always gets, and nothing else: what
        is in a kernel's environment is in its checkpoints.""",
    ).tag(config=True)
    notebook_dir = Unicode(
        help="""The host directory shown in the container at its own path.

        Default: the server's root directory, or the current directory without a server."""
    ).tag(config=True)
    image_prefix = Unicode(
        "/opt/kernel", help="What {prefix} in a kernelspec's argv stands for inside of the image."
    ).tag(config=True)

    #: The kernel's working directory, on the host and in the container alike.
    cwd: str | None = None

    _watch: KernelWatch | None = None
    #: Called with whether it is paused when that changes, from another thread.
    on_paused: Callable[[bool], None] | None = None

    _running = False
    _ending = False
    _exit_told = False
    _restore_from = ""
    _operation = ""
    _renew: list[Renewal] | None = None
    _runtime = ""

    @validate("mem_limit")
    def _validate_mem_limit(self, proposal: dict[str, Any]) -> Any:
        try:
            return None if proposal["value"] is None else parse_size(proposal["value"])
        except ValueError as error:
            raise TraitError(f"mem_limit: {error}") from error

    # -- what a kernel manager asks -----------------------------------------------------------

    @property
    def has_process(self) -> bool:
        """True from :meth:`launch_kernel` until :meth:`wait` has seen the kernel end."""
        return self._running

    async def poll(self) -> int | None:
        """``None`` while the kernel lives (stopped at a checkpoint is alive), else its exit code.

        Called by ``KernelManager.is_alive``, often. It costs nothing, but for the first time it
        tells of an unexpected end: then the end of the kernel's log goes to the manager's log.
        """
        if self._watch is None:
            return 0
        code = self._watch.exit_code
        if code and not self._ending and not self._exit_told:
            self._exit_told = True
            tail = await self._log_tail()
            self.log.error(
                "Kernel %s ended with exit code %s%s%s",
                self.kernel_id,
                code,
                f": {self._watch.reason}" if self._watch.reason else "",
                f"; the end of its log:\n{tail}" if tail else "",
            )
        return code

    async def wait(self) -> int | None:
        """Wait for the end of the kernel. Called while a manager ends it, with a timeout there."""
        while (code := await self.poll()) is None:  # noqa: ASYNC110  (told by another thread)
            await anyio.sleep(0.02)
        self._running = False
        return code

    async def send_signal(self, signum: int) -> None:
        """Send a signal to the kernel and its children. Called to interrupt, with SIGINT.

        Raises
        ------
        Conflict
            If the kernel is stopped at a checkpoint or paused, so that nothing can reach it. Not
            raised where the kernel is about to be ended anyway.
        """
        if self._watch is None or self._watch.exit_code is not None:
            return
        try:
            async with connect() as agent:
                await agent.signal(self._id, signum)
        except NotFound:
            return  # it ended meanwhile, and so the signal has nobody to reach
        except Conflict:
            ending = self._ending or getattr(self.parent, "shutting_down", False)
            if not ending and self._watch.exit_code is None:
                raise

    async def kill(self, restart: bool = False) -> None:
        """Kill the container. Called by ``KernelManager.shutdown_kernel(now=True)``."""
        self._ending = True
        await self.send_signal(signal.SIGKILL)

    async def terminate(self, restart: bool = False) -> None:
        """SIGTERM. Called when a kernel did not follow its shutdown request for a while."""
        self._ending = True
        await self.send_signal(signal.SIGTERM)

    async def shutdown_requested(self, restart: bool = False) -> None:
        """Called once the shutdown request is on its way: an end is no surprise from now on."""
        self._ending = True

    async def cleanup(self, restart: bool = False) -> None:
        """Remove all of the kernel but its checkpoints, unless it starts again at once.

        Called at the end of a shutdown. Problems are logged: the kernel is ended either way, and
        the agent removes what nobody is attached to.
        """
        if restart or self._watch is None:
            return
        watch, self._watch, self._running = self._watch, None, False
        try:
            async with connect() as agent:
                await agent.delete_kernel(self._id)
        except NotFound:
            pass
        except CheckpointsError as error:
            self.log.warning("Kernel %s could not be removed: %s", self.kernel_id, error)
        await anyio.to_thread.run_sync(watch.close)

    def get_shutdown_wait_time(self, recommended: float = 5.0) -> float:
        """Do not wait for a kernel that stands still: it cannot answer a shutdown request."""
        if self._watch is not None and (self._watch.state == "stopped" or self._watch.paused):
            return min(recommended, 0.2)
        return recommended

    def resolve_path(self, path: str) -> str | None:
        """A path as the kernel sees it, resolved against its working directory; for debuggers."""
        resolved = Path(path).expanduser()
        if not resolved.is_absolute() and self.cwd:
            resolved = (Path(self.cwd) / resolved).resolve()
        return resolved.as_posix() if resolved.exists() else None

    # -- start --------------------------------------------------------------------------------

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Turn the start's arguments into those of :meth:`launch_kernel`.

        Understood besides jupyter_client's own: ``restore_from``, the id of a checkpoint to
        resume instead of starting afresh, once; ``operation``, an id to cancel that with;
        ``renew``, what of the checkpoint's the container is to have anew (default, for a remix's
        first one: all); ``runtime``, which line of states it belongs to.

        Raises
        ------
        InvalidRequest
            If the manager demands encrypted transport, which is not supported.
        """
        if getattr(self.parent, "transport_encryption", "disabled") == "required":
            raise InvalidRequest(
                "Kernels in containers cannot use encrypted transport.",
                reason="transport_encryption is 'required'",
                hint="Set it to 'auto': the connection never leaves this host.",
            )
        self._restore_from = str(kwargs.pop("restore_from", None) or "")
        self._operation = str(kwargs.pop("operation", None) or "")
        self._renew = kwargs.pop("renew", None)
        # The manager replays these arguments at each restart; a checkpoint is resumed once.
        launch_args = getattr(self.parent, "_launch_args", None)
        if launch_args is not None:
            launch_args.pop("restore_from", None)
            launch_args.pop("operation", None)
            launch_args.pop("renew", None)
        self._runtime = str(kwargs.pop("runtime", None) or "")

        environment = kwargs.pop("env", None) or dict(os.environ)
        argv = format_argv(
            self.kernel_spec,
            kwargs.pop("extra_arguments", None) or [],
            kwargs,
            prefix=self.image_prefix,
        )
        prepared = await super().pre_launch(
            env=allowed_environment(environment, [*self.env_keep, "JPY_SESSION_NAME"])
        )
        return {"cmd": argv, "env": prepared["env"], "cwd": kwargs.get("cwd")}

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Have the agent start the container; returns the connection it really has.

        A kernel that exited is started again at the address it had.

        Raises
        ------
        CheckpointsError
            As the agent answers, with the end of the kernel's log where there is one.
        """
        cwd = os.fspath(kwargs.get("cwd") or os.getcwd())
        checkpoint, self._restore_from = self._restore_from, ""
        async with connect() as agent:
            if checkpoint:
                request = await self._resume_request(agent, checkpoint)
            else:
                request = await anyio.to_thread.run_sync(
                    self._start_request, cmd, kwargs.get("env") or {}, cwd
                )
            try:
                model = await agent.start_kernel(request, operation=self._operation)
            except CheckpointsError as error:
                await self._explain(agent, error)
                raise
        self.cwd = request.cwd or None
        await self._follow(model)
        self._ending = self._exit_told = False
        return self._adopt(model)

    def _start_request(self, argv: list[str], env: dict[str, str], cwd: str) -> StartRequest:
        """A fresh start. Blocks (looks at directories)."""
        shown = self._mounts(cwd, argv)
        here = mounts.covers(shown, cwd)
        if not here:
            self.log.warning(
                "Kernel %s starts in its image's own directory: %s is not shown in the container.",
                self.kernel_id,
                cwd,
            )
        session = getattr(self.parent, "session", None)
        return StartRequest(
            kernel_id=self._id,
            argv=argv,
            key=session.key.decode() if session is not None else secrets.token_hex(32),
            image=self.image,
            env=env,
            cwd=cwd if here else "",
            mounts=shown,
            limits=self._limits(),
            mode=self.mode,
            kernel_name=getattr(self.parent, "kernel_name", "") or "",
            runtime=self._runtime,
        )

    async def _resume_request(self, agent: AgentClient, checkpoint_id: str) -> StartRequest:
        """A start that resumes. The user asks for the very mounts the checkpoint was saved with:
        open files and the working directory are there, and without them it cannot be resumed.
        """
        checkpoint = await agent.checkpoint(checkpoint_id)
        return StartRequest(
            kernel_id=self._id,
            checkpoint=checkpoint.id,
            mounts=checkpoint.mounts,
            limits=self._limits(),
            mode=checkpoint.mode,
            kernel_name=getattr(self.parent, "kernel_name", "") or checkpoint.kernel_name,
            runtime=self._runtime or checkpoint.runtime,
            renew=renewals(checkpoint) if self._renew is None else self._renew,
        )

    def _limits(self) -> Limits:
        return Limits(memory=self.mem_limit, cpus=self.cpu_limit, pids=self.pids_limit)

    def _mounts(self, cwd: str, argv: list[str]) -> list[Mount]:
        shown = []
        root = self.notebook_dir or getattr(getattr(self.parent, "parent", None), "root_dir", "")
        directory = root or cwd
        if (own := mounts.own_path_mount(directory)) is not None:
            shown.append(own)
        else:
            self.log.warning(
                "%s is not shown in the kernel's container: it belongs to the system or does not "
                "exist. Start Jupyter in a directory of your own.",
                directory,
            )
        resources = self.kernel_spec.resource_dir
        if resources and any(resources in arg for arg in argv):
            shown.append(Mount(source=resources, target=resources, read_only=True))
        shown += mounts.volume_mounts(self.volumes)
        shown += mounts.volume_mounts(self.read_only_volumes, read_only=True)
        return shown

    async def _explain(self, agent: AgentClient, error: CheckpointsError) -> None:
        """Add the end of the kernel's log to an error of its start, where there is a log."""
        try:
            tail = (await agent.log_tail(self._id, _LOG_LINES)).strip()
        except CheckpointsError:
            return
        if tail and tail not in error.reason:
            error.reason = f"{error.reason}\n{tail}" if error.reason else tail

    # -- runtime checkpoints --------------------------------------------------------------------

    async def save(
        self,
        *,
        name: str = "",
        trigger: Trigger = "manual",
        stop: bool = False,
        progress: ProgressCallback | None = None,
    ) -> CheckpointModel:
        """Save this kernel; with ``stop`` it sleeps at that very state until it is resumed.

        For server extensions. Raises as :meth:`AgentClient.save`.
        """
        async with connect() as agent:
            request = SaveRequest(name=name, trigger=trigger, stop=stop)
            return await agent.save(self._id, request, progress)

    async def resume_in_place(
        self, checkpoint: str, progress: ProgressCallback | None = None
    ) -> KernelModel:
        """Put this kernel back to one of its checkpoints: same id, same address, same ports.

        Clients may stay connected. For server extensions. Raises as :meth:`AgentClient.resume`.
        """
        async with connect() as agent:
            return await agent.resume(self._id, checkpoint, progress)

    # -- persistence ----------------------------------------------------------------------------

    async def get_provisioner_info(self) -> dict[str, Any]:
        """What another process needs to take this kernel over; JSON but for the key's bytes."""
        info = await super().get_provisioner_info()
        return {**info, "cwd": self.cwd, "runtime": self._runtime}

    async def load_provisioner_info(self, provisioner_info: dict[str, Any]) -> None:
        """Take over a kernel that another process had started.

        Raises
        ------
        NotFound
            If it is no more.
        """
        await super().load_provisioner_info(provisioner_info)
        self.cwd = provisioner_info.get("cwd")
        self._runtime = provisioner_info.get("runtime") or ""
        async with connect() as agent:
            model = await agent.kernel(self._id)
        await self._follow(model)
        self._adopt(model)

    # -- inside -----------------------------------------------------------------------------------

    @property
    def _id(self) -> str:
        if not self.kernel_id:
            raise InvalidRequest("This provisioner has no kernel id yet.")
        return str(self.kernel_id)

    async def _follow(self, model: KernelModel) -> None:
        # The new watch first: at no moment shall the kernel look abandoned.
        watch = KernelWatch(default_socket(), model, self.log, self._paused_or_not)
        await anyio.to_thread.run_sync(watch.open)
        former, self._watch = self._watch, watch
        if former is not None:
            await anyio.to_thread.run_sync(former.close)
        self._running = True

    def _paused_or_not(self, paused: bool) -> None:
        """In the thread that follows the agent."""
        if paused:
            self.log.warning(
                "Kernel %s was paused (`docker pause`): it runs nothing until `docker unpause`.",
                self.kernel_id,
            )
        else:
            self.log.info("Kernel %s is not paused any more.", self.kernel_id)
        if self.on_paused is not None:
            self.on_paused(paused)

    def _adopt(self, model: KernelModel) -> KernelConnectionInfo:
        if model.connection is None:
            raise AgentUnavailable(
                f"The agent gives no connection for kernel {model.id}.",
                reason=f"its state is {model.state}",
                hint="Agent and client may be of different versions: restart the agent.",
            )
        self.connection_info = connection_dict(model.connection)
        return self.connection_info

    async def _log_tail(self) -> str:
        try:
            async with connect() as agent:
                return (await agent.log_tail(self._id, _LOG_LINES)).strip()
        except CheckpointsError:
            return ""


def connection_dict(connection: ConnectionInfo) -> KernelConnectionInfo:
    """The connection as jupyter_client wants it: the key in bytes."""
    return {
        "transport": connection.transport,
        "ip": connection.ip,
        "shell_port": connection.shell_port,
        "iopub_port": connection.iopub_port,
        "stdin_port": connection.stdin_port,
        "control_port": connection.control_port,
        "hb_port": connection.hb_port,
        "signature_scheme": connection.signature_scheme,
        # The annotation says text, but managers compare with the session's key: bytes.
        "key": connection.key.encode(),  # type: ignore[typeddict-item]
    }
