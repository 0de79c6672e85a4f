"""The agent's client: one method per route, plain models in and out.

Used by the provisioner, by the command line and by the server extension; it imports nothing of
Jupyter Server. ::

    async with connect() as agent:
        for kernel in await agent.kernels():
            checkpoint = await agent.save(kernel.id, SaveRequest(name="before lunch"))

All methods raise :class:`~jupyter_checkpoints.errors.CheckpointsError`: what the agent answered,
:class:`AgentUnavailable` and :class:`NotAllowed` if it cannot be reached, and
:class:`OperationTimeout` if it does not answer a short request.
"""

from __future__ import annotations

import socket as socketlib
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec
from msgspec import Struct

from . import autostart
from .errors import (
    AgentUnavailable,
    CheckpointsError,
    InvalidRequest,
    NotAllowed,
    OperationTimeout,
)
from .layout import USER_HEADER, default_socket
from .message_types import make_types_ready
from .models import (
    CheckpointModel,
    CheckpointPatch,
    CopyRequest,
    Event,
    ImageModel,
    KernelModel,
    KernelPatch,
    PreflightReport,
    RepairReport,
    ResumeRequest,
    SaveRequest,
    SignalRequest,
    StartRequest,
    Status,
    Usage,
    VerifyReport,
)

#: Called with each ``progress`` event of a long operation, on the caller's event loop.
ProgressCallback = Callable[[Event], None]

T = TypeVar("T")

#: Seconds. Short requests include ending a kernel and removing all of its container.
_SHORT = httpx.Timeout(60, connect=5)
#: Long operations are bounded by the agent, not here.
_STREAM = httpx.Timeout(None, connect=5)
#: The agent sends at least an empty line every 15 s to whoever is attached.
_ATTACHED = httpx.Timeout(45, connect=5)


def connect(
    socket: Path | None = None, *, autostart: bool = True, user: str | int | None = None
) -> AgentClient:
    """A client of the agent at ``socket``, default :func:`~.layout.default_socket`.

    Nothing is opened before the first request. ``autostart``: if no agent answers, and the socket
    is the host's own, and the caller is root, start one. ``user``: whom all requests are for, by
    name or number; only root may name another.
    """
    return AgentClient(socket, autostart=autostart, user=user)


class ArchivePart(Struct, frozen=True, kw_only=True):
    """What :meth:`AgentClient.export` gives: first ``size``, ``start``, ``tag``, then ``data``."""

    size: int = 0
    start: int = 0
    tag: str = ""
    data: bytes = b""


class AgentClient:
    """An HTTP client on the agent's Unix socket.

    Bound to the event loop it is first used on. Making one costs 0.2 ms, so callers that are
    called on changing loops make one per call.
    """

    def __init__(
        self,
        socket: Path | None = None,
        *,
        autostart: bool = True,
        user: str | int | None = None,
    ) -> None:
        self.socket = socket or default_socket()
        self._autostart = autostart
        self._streaming: set[socketlib.socket] = set()
        self._http = httpx.AsyncClient(
            # verify=False: no TLS on a Unix socket, and loading certificates takes 14 ms.
            transport=httpx.AsyncHTTPTransport(
                uds=str(self.socket), verify=False, limits=httpx.Limits(max_connections=None)
            ),
            base_url="http://agent",
            headers={} if user is None else {USER_HEADER: str(user)},
            trust_env=False,
            timeout=_SHORT,
        )

    async def __aenter__(self) -> AgentClient:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    def hang_up(self) -> None:
        """End all streams that are being read, as if the agent had closed them.

        For whoever follows something and wants no more of it. To cancel a task that waits for
        data would do, but anyio then complains if data comes at that very moment.
        """
        for connection in self._streaming:
            connection.shutdown(socketlib.SHUT_RDWR)

    # -- host -------------------------------------------------------------------------------

    async def status(self) -> Status:
        """Who answers, and what it can do."""
        return await self._call("GET", "/v1/status", Status)

    # -- kernels ----------------------------------------------------------------------------

    async def kernels(self) -> list[KernelModel]:
        """The caller's kernels (root: everybody's)."""
        return await self._call("GET", "/v1/kernels", list[KernelModel])

    async def kernel(self, kernel_id: str) -> KernelModel:
        """One kernel, with its memory in use."""
        return await self._call("GET", f"/v1/kernels/{_quoted(kernel_id)}", KernelModel)

    async def start_kernel(
        self,
        request: StartRequest,
        progress: ProgressCallback | None = None,
        *,
        operation: str = "",
    ) -> KernelModel:
        """Start a kernel, or resume a checkpoint in a new one; the answer has its connection.

        Raises
        ------
        StartFailed, ResumeFailed, PreflightBlocked, CheckpointDamaged
            Nothing is left of the new kernel.
        Conflict
            If a kernel of that id is running.
        """
        return await self._long("/v1/kernels", request, KernelModel, progress, operation)

    async def delete_kernel(self, kernel_id: str) -> None:
        """Kill a kernel if it runs, and remove everything of it but its checkpoints."""
        await self._call("DELETE", f"/v1/kernels/{_quoted(kernel_id)}", None)

    async def change_kernel(self, kernel_id: str, patch: KernelPatch) -> KernelModel:
        """Give a kernel to another runtime."""
        return await self._call("PATCH", f"/v1/kernels/{_quoted(kernel_id)}", KernelModel, patch)

    async def presave(self, kernel_id: str) -> PreflightReport:
        """Whether a kernel can be saved now, and what stands in the way. Costs little."""
        return await self._call("GET", f"/v1/kernels/{_quoted(kernel_id)}/presave", PreflightReport)

    async def signal(self, kernel_id: str, signum: int) -> None:
        """Send a signal to the kernel's process group; SIGKILL kills the container."""
        await self._call(
            "POST", f"/v1/kernels/{_quoted(kernel_id)}/signal", None, SignalRequest(signum=signum)
        )

    async def attach(self, kernel_id: str) -> AsyncGenerator[KernelModel, None]:
        """The kernel now, and again at each change of its state, until it is deleted.

        While somebody iterates, the agent does not take the kernel for an orphan.
        """
        path = f"/v1/kernels/{_quoted(kernel_id)}/attach"
        async with aclosing(self._lines("GET", path, timeout=_ATTACHED)) as lines:
            async for line in lines:
                yield _decode(line, KernelModel)

    async def log_tail(self, kernel_id: str, lines: int = 100) -> str:
        """The last lines of what the kernel's processes wrote to stdout and stderr."""
        response = await self._send(
            self._http.build_request(
                "GET", f"/v1/kernels/{_quoted(kernel_id)}/logs", params={"tail": lines}
            )
        )
        return response.text

    async def follow_log(self, kernel_id: str, lines: int = 100) -> AsyncGenerator[str, None]:
        """The last ``lines`` of the log and then what comes, in pieces, until the kernel ends."""
        request = self._http.build_request(
            "GET",
            f"/v1/kernels/{_quoted(kernel_id)}/logs",
            params={"tail": lines, "follow": 1},
            timeout=_STREAM,
        )
        response = await self._send(request, stream=True)
        try:
            with self._translated():
                async for text in response.aiter_text():
                    yield text
        finally:
            await response.aclose()

    # -- checkpoints ------------------------------------------------------------------------

    async def save(
        self,
        kernel_id: str,
        request: SaveRequest | None = None,
        progress: ProgressCallback | None = None,
        *,
        operation: str = "",
    ) -> CheckpointModel:
        """Save a kernel. It goes on, unless ``request.stop``.

        Raises
        ------
        SaveFailed, InsufficientResources, OperationTimeout
            The kernel goes on running and nothing is kept.
        Conflict
            If the kernel is busy with another save or resume, or is not running.
        """
        path = f"/v1/kernels/{_quoted(kernel_id)}/checkpoints"
        return await self._long(
            path, request or SaveRequest(), CheckpointModel, progress, operation
        )

    async def precopy(
        self,
        kernel_id: str,
        progress: ProgressCallback | None = None,
        *,
        operation: str = "",
    ) -> KernelModel:
        """Copy a kernel's memory ahead of its next save, which has to write less then.

        The kernel goes on, and there is no checkpoint. It is given up when the kernel ends, or its
        space is needed, or no save comes for long.

        Raises
        ------
        Conflict
            If it is not running, is being saved or changed, or another one is copied.
        InvalidRequest, HostNotReady
            If files only are saved of it, or this host cannot do it.
        Cancelled
            If something else was to be done with the kernel meanwhile.
        QuotaExceeded, InsufficientResources
            If there is not room for that and for the save.
        """
        path = f"/v1/kernels/{_quoted(kernel_id)}/precopy"
        return await self._long(path, None, KernelModel, progress, operation)

    async def forget_precopy(self, kernel_id: str) -> None:
        """Give up what :meth:`precopy` has copied, if there is anything."""
        await self._call("DELETE", f"/v1/kernels/{_quoted(kernel_id)}/precopy", None)

    async def resume(
        self,
        kernel_id: str,
        checkpoint: str,
        progress: ProgressCallback | None = None,
        *,
        operation: str = "",
    ) -> KernelModel:
        """Put a kernel back to one of its checkpoints: same id, same address, same ports."""
        path = f"/v1/kernels/{_quoted(kernel_id)}/resume"
        request = ResumeRequest(checkpoint=checkpoint)
        return await self._long(path, request, KernelModel, progress, operation)

    async def cancel(self, operation: str) -> None:
        """End a save, a resume or a verification that was given this id, as if it had never begun.

        It then raises ``Cancelled`` where it was asked for.

        Raises
        ------
        NotFound
            If the agent knows none of that id (yet).
        Conflict
            If it has ended, or has gone too far.
        """
        await self._call("DELETE", f"/v1/operations/{_quoted(operation)}", None)

    async def checkpoints(
        self, *, kernel: str = "", runtime: str = "", shared: bool = False
    ) -> list[CheckpointModel]:
        """Checkpoints, newest first; of one kernel or one runtime if given.

        ``shared``: not the caller's own, but those that others have shared with him.
        """
        params = {"kernel": kernel, "runtime": runtime, "shared": "1" if shared else ""}
        return await self._call(
            "GET",
            "/v1/checkpoints",
            list[CheckpointModel],
            params={name: value for name, value in params.items() if value},
        )

    async def checkpoint(self, checkpoint_id: str) -> CheckpointModel:
        """One checkpoint."""
        path = f"/v1/checkpoints/{_quoted(checkpoint_id)}"
        return await self._call("GET", path, CheckpointModel)

    async def change_checkpoint(
        self, checkpoint_id: str, patch: CheckpointPatch
    ) -> CheckpointModel:
        """Name, pin or touch a checkpoint."""
        path = f"/v1/checkpoints/{_quoted(checkpoint_id)}"
        return await self._call("PATCH", path, CheckpointModel, patch)

    async def share(self, checkpoint_id: str, user: str | int) -> CheckpointModel:
        """Let another user (a name, a number, ``*`` for everybody) make copies of a checkpoint.

        What the kernel's memory holds, secrets included, is then theirs to read.
        """
        path = f"/v1/checkpoints/{_quoted(checkpoint_id)}/shares/{_quoted(str(user))}"
        return await self._call("PUT", path, CheckpointModel)

    async def unshare(self, checkpoint_id: str, user: str | int) -> CheckpointModel:
        """Take a share back; copies that were made stay."""
        path = f"/v1/checkpoints/{_quoted(checkpoint_id)}/shares/{_quoted(str(user))}"
        return await self._call("DELETE", path, CheckpointModel)

    async def copy_checkpoint(self, checkpoint_id: str, request: CopyRequest) -> CheckpointModel:
        """A checkpoint of another runtime that shares this one's data; independent of it."""
        path = f"/v1/checkpoints/{_quoted(checkpoint_id)}/copy"
        return await self._call("POST", path, CheckpointModel, request)

    async def export(
        self, checkpoint_id: str, start: int = 0, tag: str = ""
    ) -> AsyncGenerator[ArchivePart, None]:
        """A checkpoint as an archive: first what it is, then its bytes from ``start`` on.

        ``tag`` is what an earlier, broken download was told; another content begins anew.
        """
        headers = {"Range": f"bytes={start}-"} if start else {}
        if start and tag:
            headers["If-Range"] = tag
        request = self._http.build_request(
            "GET",
            f"/v1/checkpoints/{_quoted(checkpoint_id)}/archive",
            headers=headers,
            timeout=_STREAM,
        )
        response = await self._send(request, stream=True)
        try:
            whole = response.headers.get("Content-Range", "").rpartition("/")[2]
            yield ArchivePart(
                size=int(whole or response.headers["Content-Length"]),
                start=start if response.status_code == 206 else 0,
                tag=response.headers["Etag"],
            )
            with self._translated():
                async for chunk in response.aiter_bytes(1 << 20):
                    yield ArchivePart(data=chunk)
        finally:
            await response.aclose()

    async def import_archive(
        self,
        content: AsyncIterable[bytes],
        size: int,
        *,
        runtime: str = "",
        trusted: bool = False,
    ) -> CheckpointModel:
        """Make a checkpoint of an archive of ``size`` bytes; it goes to ``runtime``.

        Raises
        ------
        NotAllowed
            If the archive is from another store, and it is not ``trusted`` by root.
        InvalidRequest, CheckpointDamaged
            If it is not what it says.
        """
        request = self._http.build_request(
            "POST",
            "/v1/archives",
            params={"runtime": runtime, "trusted": "1" if trusted else "0"},
            content=content,
            headers={"Content-Length": str(size), "Content-Type": "application/x-tar"},
            timeout=_STREAM,
        )
        return _decode((await self._send(request)).content, CheckpointModel)

    async def usage(self) -> Usage:
        """What the caller's checkpoints hold on the disk."""
        return await self._call("GET", "/v1/usage", Usage)

    async def delete_checkpoint(self, checkpoint_id: str) -> None:
        """Delete a checkpoint. ``Conflict`` if it is in use."""
        await self._call("DELETE", f"/v1/checkpoints/{_quoted(checkpoint_id)}", None)

    async def preflight(self, checkpoint_id: str) -> PreflightReport:
        """Whether this host can resume the checkpoint, and what stands in the way."""
        path = f"/v1/checkpoints/{_quoted(checkpoint_id)}/preflight"
        return await self._call("GET", path, PreflightReport)

    async def verify(
        self,
        checkpoint_id: str,
        progress: ProgressCallback | None = None,
        *,
        operation: str = "",
        quick: bool = False,
    ) -> VerifyReport:
        """Read every byte of a checkpoint again and compare; damage is in the report.

        ``quick``: only look whether all of its process images are there.
        """
        path = f"/v1/checkpoints/{_quoted(checkpoint_id)}/verify"
        if quick:
            return await self._long(f"{path}?quick=1", None, VerifyReport, progress)
        return await self._long(path, None, VerifyReport, progress, operation)

    async def repair(self) -> RepairReport:
        """Make the store's indexes anew where they are damaged, and name what is lost; for root."""
        return await self._call("POST", "/v1/repair", RepairReport)

    # -- images -----------------------------------------------------------------------------

    async def images(self) -> list[ImageModel]:
        """The images kernels can be started from."""
        return await self._call("GET", "/v1/images", list[ImageModel])

    async def build_image(
        self, name: str, spec: Mapping[str, Any], progress: ProgressCallback | None = None
    ) -> ImageModel:
        """Build an image from a declarative specification; takes minutes."""
        body = {"name": name, "spec": dict(spec)}
        return await self._long("/v1/images", body, ImageModel, progress)

    async def import_image(
        self, name: str, archive: Path, progress: ProgressCallback | None = None
    ) -> ImageModel:
        """Import an OCI or docker-save archive, an absolute path on the agent's host."""
        body = {"name": name, "archive": str(archive)}
        return await self._long("/v1/images", body, ImageModel, progress)

    async def remove_image(self, name: str) -> None:
        """Remove an image by name or digest. ``Conflict`` if a kernel or checkpoint needs it."""
        await self._call("DELETE", f"/v1/images/{_quoted(name)}", None)

    # -- transport --------------------------------------------------------------------------

    async def _call(
        self,
        method: str,
        path: str,
        answer: type[T] | None,
        body: Any = None,
        *,
        params: Mapping[str, str] | None = None,
    ) -> T:
        """A short request; decodes the answer (``None``: there is none)."""
        request = self._http.build_request(
            method,
            path,
            params=params,
            content=None if body is None else msgspec.json.encode(body),
            headers=None if body is None else {"Content-Type": "application/json"},
        )
        response = await self._send(request)
        return None if answer is None else _decode(response.content, answer)  # type: ignore[return-value]

    async def _long(
        self,
        path: str,
        body: Any,
        answer: type[T],
        progress: ProgressCallback | None,
        operation: str = "",
    ) -> T:
        """A request whose answer is a stream of events, see :class:`~.models.Event`.

        ``operation``: an id that :meth:`cancel` can be called with meanwhile.
        """
        if operation:
            path += f"?operation={_quoted(operation)}"
        async with aclosing(self._lines("POST", path, body, timeout=_STREAM)) as lines:
            async for line in lines:
                event = _decode(line, Event)
                if event.event == "error":
                    raise CheckpointsError.from_json(event.error or {})
                if event.event == "result":
                    return _convert(event.result, answer)
                if progress is not None:
                    progress(event)
        raise self._lost("its answer ended early")

    async def _lines(
        self, method: str, path: str, body: Any = None, *, timeout: httpx.Timeout
    ) -> AsyncGenerator[str, None]:
        """The lines of a streamed answer, without the empty ones (heartbeats)."""
        request = self._http.build_request(
            method,
            path,
            content=None if body is None else msgspec.json.encode(body),
            headers=None if body is None else {"Content-Type": "application/json"},
            timeout=timeout,
        )
        response = await self._send(request, stream=True)
        connection = response.extensions["network_stream"].get_extra_info("socket")
        self._streaming.add(connection)
        try:
            with self._translated():
                async for line in response.aiter_lines():
                    if line.strip():
                        yield line
        finally:
            self._streaming.discard(connection)
            await response.aclose()

    async def _send(self, request: httpx.Request, *, stream: bool = False) -> httpx.Response:
        """Send, start an agent if that is wanted and none answers, raise what it answers."""
        with self._translated():
            try:
                response = await self._http.send(request, stream=stream)
            except httpx.ConnectError as error:
                if not (self._autostart and autostart.wanted(self.socket, _os_error(error))):
                    raise
                await autostart.start_agent(self._answers)
                response = await self._http.send(request, stream=stream)
            if response.is_error:
                await response.aread()
                await response.aclose()
                raise _answered(response)
        return response

    async def _answers(self) -> bool:
        """Whether an agent is there, be it one that refuses us."""
        try:
            await self._http.get("/v1/status")
        except httpx.TransportError:
            return False
        return True

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn the transport's errors into ours."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            cause = _os_error(error)
            if isinstance(cause, PermissionError):
                raise NotAllowed(
                    f"This user may not use the agent on {self.socket}.",
                    reason="its socket is not open to this user",
                    hint=autostart.ADMINISTRATOR_HINT,
                ) from error
            raise AgentUnavailable(
                f"No agent answers on {self.socket}.",
                reason=(cause.strerror or str(cause)) if cause else "it takes no connection",
                hint=autostart.how_to_start(self.socket),
            ) from error
        except httpx.TimeoutException as error:
            raise OperationTimeout(
                f"The agent on {self.socket} does not answer.",
                hint="Its log, or `jupyter checkpoints doctor`, may tell why.",
            ) from error
        except httpx.TransportError as error:
            raise self._lost(str(error) or type(error).__name__) from error

    def _lost(self, reason: str) -> AgentUnavailable:
        return AgentUnavailable(
            f"The agent on {self.socket} went away while it worked.",
            reason=reason,
            hint="Try again. What it had not finished, its next start cleans up.",
        )


def _quoted(identifier: str) -> str:
    if identifier in ("", ".", ".."):  # these would make it another path
        raise InvalidRequest(f"{identifier!r} cannot be an id.")
    return quote(identifier, safe="")


def _decode(data: bytes | str, answer: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=answer)
    except msgspec.MsgspecError as error:
        raise _not_understood(error) from error


def _convert(data: Any, answer: type[T]) -> T:
    try:
        return msgspec.convert(data, type=answer)
    except msgspec.MsgspecError as error:
        raise _not_understood(error) from error


def _not_understood(error: msgspec.MsgspecError) -> CheckpointsError:
    return CheckpointsError(
        "The agent's answer cannot be understood.",
        reason=str(error),
        hint="Agent and client may be of different versions: restart the agent.",
    )


def _answered(response: httpx.Response) -> CheckpointsError:
    try:
        body = msgspec.json.decode(response.content, type=dict[str, Any])
    except msgspec.MsgspecError:
        body = {"message": f"The agent answered HTTP {response.status_code}."}
    return CheckpointsError.from_json(body)


def _os_error(error: BaseException) -> OSError | None:
    """The system's own error below httpx's, which keeps it as cause of a cause."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    return cause


# Whoever uses this module may do it in threads.
make_types_ready()
