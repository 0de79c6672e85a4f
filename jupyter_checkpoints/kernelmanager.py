"""Jupyter Server's kernel manager, taught to save before it culls and to resume when it starts.

There is no hook before a cull, and a provisioner hears of a shutdown when the kernel has its
shutdown request already. So the few methods through which everything passes are overridden:
:class:`CheckpointKernels` can be mixed into any asynchronous mapping kernel manager, and
:class:`CheckpointKernelManager` is what the extension puts into place.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from contextvars import ContextVar
from datetime import datetime
from queue import Empty
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.kernelspec import NoSuchKernel
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado import web
from traitlets import Instance

from .bound import Plan
from .client import connect
from .errors import CheckpointsError, ResumeFailed
from .kernelspecs import PROVISIONER
from .models import ConnectionInfo, KernelPatch
from .provisioner import ContainerProvisioner, connection_dict
from .renewal import key_code
from .runtimes import Runtimes
from .websocket import CheckpointWebsocketConnection

#: Whether what is done now is done by the culler.
_culling: ContextVar[bool] = ContextVar("culling", default=False)

#: Whether the kernel that is started now is to leave its notebook's checkpoint alone.
starting_fresh: ContextVar[bool] = ContextVar("starting_fresh", default=False)

#: The user name in the headers of what we run ourselves: it is nobody's activity.
_OURS = "jupyter-checkpoints"

#: Seconds that a kernel gets to answer after a resume.
_ANSWER_SECONDS = 10.0
#: After so long it is asked for the second time, and then less and less often.
_ASK_AGAIN_SECONDS = 0.05


class CheckpointKernels(AsyncMappingKernelManager):
    """The overrides. Without :attr:`runtimes` (the extension sets it) nothing is different."""

    runtimes = Instance(Runtimes, allow_none=True)

    # -- starting -----------------------------------------------------------------------------

    async def _async_start_kernel(
        self, *, kernel_id: str | None = None, path: Any = None, **kwargs: Any
    ) -> str:
        """Start a kernel; that of a notebook with a checkpoint goes on where it was saved.

        ``plan`` says what to resume, and makes it an error if that fails.
        """
        plan: Plan | None = kwargs.pop("plan", None)
        name = kwargs.get("kernel_name") or self.default_kernel_name
        if (
            self.runtimes is None
            or (kernel_id is not None and kernel_id in self)
            or not await asyncio.to_thread(self._runs_in_container, name)
        ):
            return await super()._async_start_kernel(kernel_id=kernel_id, path=path, **kwargs)
        kernel_id = kernel_id or self.new_kernel_id(**kwargs)
        required = plan is not None
        if plan is None:
            notebook = (kwargs.get("env") or {}).get("JPY_SESSION_NAME", "")
            plan = await self.runtimes.starting.plan(
                self._contents_path(notebook), name, fresh=starting_fresh.get()
            )
        kwargs |= {"kernel_id": kernel_id, "path": path, "runtime": plan.runtime}
        if plan.checkpoint is not None:
            try:
                await super()._async_start_kernel(
                    **kwargs,
                    restore_from=plan.checkpoint.id,
                    operation=plan.operation,
                    renew=self.runtimes.starting.renewals(plan),
                )
                await self._started(kernel_id)
            except Exception as error:
                # jupyter_client keeps the task of a start that failed.
                self._pending_kernels.pop(kernel_id, None)
                self.remove_kernel(kernel_id)
                if required:
                    raise
                self.runtimes.starting.resume_failed(kernel_id, plan, _known(error))
            else:
                busy = not await self._answers(kernel_id)
                await self._bind(kernel_id, plan, resumed=True, busy=busy)
                return kernel_id
        await super()._async_start_kernel(**kwargs)
        if plan.checkpoint is not None:
            # So that what it says of its start is not taken for its being used.
            await self._answers(kernel_id)
        await self._bind(kernel_id, plan, resumed=False)
        return kernel_id

    start_kernel = _async_start_kernel  # type: ignore[assignment]

    async def _bind(self, kernel_id: str, plan: Plan, *, resumed: bool, busy: bool = False) -> None:
        runtimes = self.runtimes
        assert runtimes is not None
        loop = asyncio.get_running_loop()

        def paused_or_not(paused: bool) -> None:
            with contextlib.suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(runtimes.paused_or_not, kernel_id, paused)

        provisioner = self.get_kernel(kernel_id).provisioner
        if isinstance(provisioner, ContainerProvisioner):
            provisioner.on_paused = paused_or_not
        # When it dies, and its manager starts it again.
        self.add_restart_callback(kernel_id, lambda: runtimes.bound.restarted(kernel_id), "restart")
        await runtimes.starting.started(kernel_id, plan, resumed=resumed, busy=busy)

    def _runs_in_container(self, kernel_name: str) -> bool:
        """Whether kernels of this kernelspec are ours. Blocks."""
        try:
            manager: Any = self.kernel_spec_manager
            spec = manager.get_kernel_spec(kernel_name)
        except (NoSuchKernel, OSError, ValueError):  # the start says what is wrong with it
            return False
        stanza = spec.metadata.get("kernel_provisioner", {})
        factory = KernelProvisionerFactory.instance(parent=self)
        return bool(stanza.get("provisioner_name", factory.default_provisioner_name) == PROVISIONER)

    def _contents_path(self, notebook: str) -> str:
        """What contents call the file that a session has named."""
        root = self.root_dir.rstrip("/") + "/"
        return notebook.removeprefix(root) if notebook.startswith(root) else ""

    async def _started(self, kernel_id: str) -> None:
        ready = self.get_kernel(kernel_id).ready
        await (ready if isinstance(ready, asyncio.Future) else asyncio.wrap_future(ready))

    # -- listening ----------------------------------------------------------------------------

    def start_watching_activity(self, kernel_id: str) -> None:
        """Listen to a kernel's iopub channel: also for the numbers of the cells it runs."""
        super().start_watching_activity(kernel_id)
        kernel: Any = self._kernels[kernel_id]
        stream = kernel._activity_stream
        record = stream._recv_callback

        def listen(parts: list[bytes]) -> None:
            _, message = kernel.session.feed_identities(parts)
            if self.runtimes is not None and (number := _cell_number(message)) is not None:
                self.runtimes.bound.cell_started(kernel_id, number)
            # Signature, header, parent header, metadata, content.
            if f'"{_OURS}"'.encode() not in message[2]:
                record(parts)

        stream.on_recv(listen)

    # -- ending -------------------------------------------------------------------------------

    async def cull_kernels(self) -> None:
        """Look at all kernels at once: each may have to be saved first."""
        await asyncio.gather(*(self._cull_one(kernel_id) for kernel_id in list(self._kernels)))

    async def _cull_one(self, kernel_id: str) -> None:
        try:
            await self.cull_kernel_if_idle(kernel_id)
        except Exception:
            self.log.exception("Kernel %s could not be culled", kernel_id)

    async def cull_kernel_if_idle(self, kernel_id: str) -> None:
        """Cull a kernel if it is idle, and only when it has been saved."""
        token = _culling.set(True)
        try:
            await super().cull_kernel_if_idle(kernel_id)
        finally:
            _culling.reset(token)

    async def _async_shutdown_kernel(
        self, kernel_id: str, now: bool | None = False, restart: bool | None = False
    ) -> Any:
        """Shut a kernel down: not before what is to be saved is saved, nor in mid-resume."""
        runtimes = self.runtimes
        if runtimes is None:
            return await super()._async_shutdown_kernel(kernel_id, now=now, restart=restart)
        if _culling.get() and not await runtimes.culling.may_cull(kernel_id):
            return None
        await runtimes.resuming.settled(kernel_id)
        now = now or runtimes.culling.is_final(kernel_id)
        result = await super()._async_shutdown_kernel(kernel_id, now=now, restart=restart)
        runtimes.bound.ended(kernel_id)
        return result

    shutdown_kernel = _async_shutdown_kernel  # type: ignore[assignment]

    def remove_kernel(self, kernel_id: str) -> Any:
        """Forget a kernel; also called when it died for good."""
        if self.runtimes is not None and kernel_id in self._kernels:
            self.runtimes.bound.ended(kernel_id)
        return super().remove_kernel(kernel_id)

    async def _async_restart_kernel(self, kernel_id: str, now: bool = False) -> Any:
        """Restart: a fresh kernel, whatever was saved."""
        if self.runtimes is None:
            return await super()._async_restart_kernel(kernel_id, now=now)
        await self.runtimes.resuming.settled(kernel_id)
        await self.runtimes.culling.before_restart(kernel_id)
        self.runtimes.bound.restarted(kernel_id)
        return await super()._async_restart_kernel(kernel_id, now=now)

    restart_kernel = _async_restart_kernel  # type: ignore[assignment]

    def interrupt_kernel(self, kernel_id: str) -> Any:
        """Interrupt; refused in mid-resume, because it was meant for the state before."""
        if self.runtimes is not None and self.runtimes.resuming.is_resuming(kernel_id):
            raise web.HTTPError(409, f"Kernel {kernel_id} is being resumed.")
        return super().interrupt_kernel(kernel_id)

    # -- what Runtimes asks -------------------------------------------------------------------

    def in_container(self, kernel_id: str) -> bool:
        """Whether it is a kernel that can be saved."""
        kernel = self._kernels.get(kernel_id)
        return kernel is not None and isinstance(kernel.provisioner, ContainerProvisioner)

    def last_activity(self, kernel_id: str) -> datetime | None:
        """When something was last run in it."""
        kernel = self._kernels.get(kernel_id)
        if kernel is None or kernel.execution_state == "dead":
            return None
        return kernel.last_activity  # type: ignore[no-any-return]

    def is_busy(self, kernel_id: str) -> bool:
        """Whether it is running something now."""
        kernel = self._kernels.get(kernel_id)
        return kernel is not None and kernel.execution_state == "busy"

    def in_use(self, kernel_id: str) -> bool:
        """Whether it runs something, or a page is there that keeps it from being culled."""
        connections = 0 if self.cull_connected else self._kernel_connections.get(kernel_id, 0)
        return self.is_busy(kernel_id) or connections > 0

    def language(self, kernel_id: str) -> str:
        """The language of its kernelspec, in small letters."""
        kernel: Any = self.get_kernel(kernel_id)
        return str(kernel.kernel_spec.language).lower()

    async def start_resumed(self, plan: Plan) -> str:
        """Start a new kernel from a plan's checkpoint; returns its id."""
        assert plan.checkpoint is not None
        name = plan.checkpoint.kernel_name
        if not await asyncio.to_thread(self._runs_in_container, name):
            raise ResumeFailed(
                "The checkpoint could not be resumed.",
                reason=f"There is no kernelspec {name!r} that runs kernels in containers.",
                hint="`jupyter checkpoints kernelspec list` shows those there are.",
            )
        directory = plan.path.rpartition("/")[0]
        return await self.start_kernel(kernel_name=name, path=directory, plan=plan)

    async def end(self, kernel_id: str) -> None:
        """Shut a kernel down that another has replaced."""
        if kernel_id in self:
            await self._async_shutdown_kernel(kernel_id)

    async def adopt(self, kernel_id: str, connection: ConnectionInfo) -> bool:
        """A kernel was put to another state: take over its key; whether it answers.

        Called while requests are held. Websockets stay open, and everything they sent or get
        from now on is signed with the key that the kernel has in that state.
        """
        kernel: Any = self.get_kernel(kernel_id)
        self._take_key(kernel_id, connection)
        # Until it says otherwise it may be doing anything.
        kernel.execution_state = "starting"
        return await self._answers(kernel_id)

    def _take_key(self, kernel_id: str, connection: ConnectionInfo) -> None:
        """From now on the kernel signs its messages with this key."""
        kernel: Any = self.get_kernel(kernel_id)
        key = connection.key.encode()
        if key == kernel.session.key:
            return
        kernel.session.key = key
        kernel.provisioner.connection_info = connection_dict(connection)
        kernel.cleanup_connection_file()
        kernel.write_connection_file()
        self.stop_watching_activity(kernel_id)
        self.start_watching_activity(kernel_id)
        for page in CheckpointWebsocketConnection.of_kernel(kernel_id):
            page.session.key = key

    async def renew_key(self, kernel_id: str) -> str:
        """Have it sign its messages with a new key; returns why not, or nothing.

        A kernel's connection belongs to its process: only IPython's lets its key be changed from
        within. Called while no page is connected, or while their requests are held.
        """
        language = self.language(kernel_id)
        if not (ask := key_code(language, None)):
            return f"kernels of {language} cannot change it"
        if problem := await self.execute(kernel_id, ask, _ANSWER_SECONDS):
            return problem
        key = secrets.token_hex(32).encode()
        problem = await self._execute(
            kernel_id, key_code(language, key), _ANSWER_SECONDS, reply_key=key
        )
        if problem and not await self._answers(kernel_id, key):
            return problem
        async with connect() as agent:
            model = await agent.change_kernel(kernel_id, KernelPatch(key=key.decode()))
        assert model.connection is not None
        self._take_key(kernel_id, model.connection)
        return ""

    async def _answers(self, kernel_id: str, key: bytes | None = None) -> bool:
        """Wait until a kernel answers, on shell and on iopub; one that runs a cell does not.

        If nothing else is known of what it does, it is taken for idle or for busy then.
        """
        kernel: Any = self.get_kernel(kernel_id)
        client = self._client(kernel_id)
        client.session.username = _OURS
        if key is not None:
            client.session.key = key
        answers = False
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                answers = await _is_heard(client, kernel)
        except TimeoutError:
            pass
        finally:
            client.stop_channels()
        if not answers:
            self.log.warning("Kernel %s does not answer yet", kernel_id)
        if kernel.execution_state == "starting":
            kernel.execution_state = "idle" if answers else "busy"
        return answers

    async def execute(self, kernel_id: str, code: str, timeout: float) -> str:
        """Run code that no history keeps; returns what went wrong, or nothing."""
        return await self._execute(kernel_id, code, timeout)

    async def _execute(
        self, kernel_id: str, code: str, timeout: float, *, reply_key: bytes | None = None
    ) -> str:
        """``reply_key``: what the reply is signed with, if the code changes that."""
        client = self._client(kernel_id)
        client.session.username = _OURS
        try:
            message = client.execute(code, silent=True, store_history=False, allow_stdin=False)
            if reply_key is not None:
                client.session.key = reply_key
            async with asyncio.timeout(timeout):
                while True:
                    reply = await client.get_shell_msg(timeout=timeout)
                    if reply["parent_header"].get("msg_id") == message:
                        break
        except (TimeoutError, Empty):
            return f"It took longer than {timeout:g} seconds."
        except ValueError as error:  # a signature that is wrong
            return str(error)
        finally:
            client.stop_channels()
        content = reply["content"]
        if content["status"] == "ok":
            return ""
        return f"{content.get('ename', content['status'])}: {content.get('evalue', '')}"

    def _client(self, kernel_id: str) -> AsyncKernelClient:
        kernel: Any = self.get_kernel(kernel_id)
        client: AsyncKernelClient = kernel.client(session=kernel.session.clone())
        # Without the heartbeat: that would be a thread to start and to wait for.
        client.start_channels(stdin=False, control=False, hb=False)
        return client


class CheckpointKernelManager(CheckpointKernels):
    """The kernel manager that the extension puts into place."""


async def _is_heard(client: AsyncKernelClient, kernel: Any) -> bool:
    """Ask until something comes on both channels; false if the kernel dies.

    Not ``wait_for_ready``: that goes on to listen until nothing has come for 0.2 s.
    """
    heard = [
        asyncio.ensure_future(client.get_shell_msg()),
        asyncio.ensure_future(client.get_iopub_msg()),
    ]
    patience = _ASK_AGAIN_SECONDS
    try:
        while True:
            # What a kernel publishes before iopub is connected is lost.
            client.kernel_info()
            done, missing = await asyncio.wait(
                heard, timeout=patience, return_when=asyncio.FIRST_EXCEPTION
            )
            for channel in done:
                channel.result()
            if not missing:
                return True
            if not await kernel.is_alive():
                return False
            patience = min(2 * patience, 1.0)
    finally:
        for channel in heard:
            channel.cancel()
        await asyncio.gather(*heard, return_exceptions=True)


def _cell_number(message: list[bytes]) -> int | None:
    """The number of the cell that a message of iopub says is run now."""
    if b'"execute_input"' not in message[1]:
        return None
    try:
        content = json.loads(message[4])
        number = content["execution_count"]
    except (ValueError, KeyError, TypeError):
        return None
    return number if isinstance(number, int) and number >= 0 else None


def _known(error: Exception) -> CheckpointsError:
    if isinstance(error, CheckpointsError):
        return error
    return ResumeFailed(
        "The checkpoint could not be resumed.", reason=f"{type(error).__name__}: {error}"
    )
