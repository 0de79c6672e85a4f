"""The agent's HTTP interface: thin handlers over :class:`~.kernels.KernelService`.

Served on a Unix socket only. Who asks is what the kernel says of the socket's other end
(SO_PEERCRED), never what a request says. Long operations answer with a stream of
:class:`~jupyter_checkpoints.models.Event` lines; they go on to their end when the client leaves.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import msgspec
from msgspec import Struct
from tornado.iostream import StreamClosedError
from tornado.web import Application, HTTPError, RequestHandler, stream_request_body

from .. import __version__
from ..errors import CheckpointsError, InvalidRequest, NotAllowed, NotFound
from ..layout import USER_HEADER
from ..models import (
    CheckpointPatch,
    CopyRequest,
    Event,
    Finding,
    ImageModel,
    KernelPatch,
    ResumeRequest,
    SaveRequest,
    SignalRequest,
    StartRequest,
    Status,
    is_id,
)
from .admission import Admission
from .archive import Export
from .audit import Audit, Outcome, Peer
from .checkpoints import Storing
from .connections import peer_of
from .image_spec import ImageSpec
from .kernels import KernelService
from .operation import Operation
from .quotas import Turns
from .records import Caller

log = logging.getLogger(__name__)

T = TypeVar("T")
NDJSON = "application/x-ndjson"

_ID = r"([^/]+)"


class ImageRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /v1/images``: build an image from ``spec``, or import the file ``archive``."""

    name: str
    spec: ImageSpec | None = None
    archive: str = ""


def _nothing() -> None:
    """What is left to do at the end of a turn that is over."""


class Handler(RequestHandler):
    """Admission, errors, JSON; the base of every handler."""

    service: KernelService
    admission: Admission
    audit: Audit
    turns: Turns
    peer: Peer
    caller: Caller
    subject = ""
    """What the request is about, where its path does not say so; for the audit log."""
    path_args: list[str] = []
    """As tornado sets it, unless a path is no text."""
    _audited = False
    _closed = False

    def initialize(
        self, service: KernelService, admission: Admission, audit: Audit, turns: Turns
    ) -> None:
        self.service = service
        self.admission = admission
        self.audit = audit
        self.turns = turns
        self._end_turn: Callable[[], None] = _nothing
        connection = cast("Any", self.request.connection)
        self.peer = peer_of(connection.stream.socket)
        self.caller = Caller(self.peer.uid)

    async def prepare(self) -> None:
        self._end_turn = await self.turns.short_turn(self.peer.uid)
        if self._closed:
            self._let_others()
        named = self.request.headers.get(USER_HEADER)
        self.caller = await self.admission.caller(self.peer, named)

    def on_finish(self) -> None:
        self._let_others()
        self._note("done" if self.get_status() < 400 else "failed")

    def on_connection_close(self) -> None:
        self._closed = True
        self._let_others()

    def _let_others(self) -> None:
        """This request is done, or has become one that only waits, or one with another limit."""
        self._end_turn()
        self._end_turn = _nothing

    def _note(self, outcome: Outcome, error: BaseException | None = None) -> None:
        """Tell the audit log, once, what became of this request, if it is worth it."""
        owners = frozenset(self.caller.owners)
        acting_for = self.caller.uid if self.caller.uid != self.peer.uid else None
        if isinstance(error, CheckpointsError) and error.http_status in _REFUSALS:
            outcome = "refused"
        elif not owners and acting_for is None:
            return
        if self._audited:
            return
        self._audited = True
        self.audit.note(
            self.peer,
            f"{self.request.method} {self.request.path[:300]}",
            outcome,
            subject=self.subject or next(iter(self.path_args), ""),
            reason="" if error is None else str(error),
            acting_for=acting_for,
            owners=owners,
        )

    def body(self, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(self.request.body or b"{}", type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequest("The request cannot be read.", reason=str(error)) from error

    def answer(self, value: Any, status: int = 200) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(msgspec.json.encode(value))

    async def stream(self, work: Callable[[Operation], Awaitable[Any]]) -> None:
        """Run a long operation and send its events; see :class:`Event`."""
        self._let_others()
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        operation = Operation(events.put_nowait)
        operation_id = self.get_query_argument("operation", "")
        if operation_id:
            _checked(operation_id)

        async def run() -> Any:
            with self.service.operations.known(self.caller, operation_id, operation):
                async with self.turns.turn(self.caller.uid):
                    return await work(operation)

        task = asyncio.ensure_future(run())
        task.add_done_callback(lambda _: events.put_nowait(None))
        _RUNNING.add(task)
        task.add_done_callback(_RUNNING.discard)
        sent = False
        while (event := await events.get()) is not None:
            sent = True
            await self._line(event)
        error = task.exception()
        self._note("done" if error is None else "failed", error)
        if error is None:
            await self._line(Event(event="result", result=task.result()))
        elif not sent:
            raise error
        else:
            if isinstance(error, CheckpointsError):
                log.info("%s %s: %s", self.request.method, self.request.path, error)
            else:
                log.error("%s failed", self.request.path, exc_info=error)
            await self._line(Event(event="error", error=_known(error).to_json()))

    async def _line(self, event: Event | None) -> None:
        self.set_header("Content-Type", NDJSON)
        line = b"" if event is None else msgspec.json.encode(event)
        try:
            self.write(line + b"\n")
            await self.flush()
        except StreamClosedError:
            log.debug("The client of %s has left", self.request.path)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, HTTPError):
            message = error.log_message or self._reason
            known: CheckpointsError = (
                NotFound(f"There is no {self.request.path}.")
                if status_code == 404
                else InvalidRequest(message or "The request cannot be served.")
            )
            self.set_status(status_code)
        else:
            known = _known(error)
            self.set_status(known.http_status)
        self._note("failed", known)
        self.set_header("Content-Type", "application/json")
        self.finish(msgspec.json.encode(known.to_json()))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if isinstance(value, CheckpointsError | HTTPError):
            # What is worth a line at all times is in the audit log, which cannot be flooded.
            log.debug("%s %s: %s", self.request.method, self.request.path, value)
        else:
            log.error("%s failed", self.request.path, exc_info=(typ, value, tb))


#: What is answered so is a request that was turned away, and none that went wrong.
_REFUSALS = (400, 403, 404)

#: Operations that have begun; kept here so that they outlive their client.
_RUNNING: set[asyncio.Future[Any]] = set()


def _known(error: BaseException | None) -> CheckpointsError:
    if isinstance(error, CheckpointsError):
        return error
    return CheckpointsError(
        "The agent failed.",
        reason=f"{type(error).__name__}: {error}",
        hint="This is a defect; the agent's log has the details.",
    )


def _checked(identifier: str) -> str:
    """An id from a path. Nothing that is not one is ever looked for on disk."""
    if not is_id(identifier):
        raise InvalidRequest(f"{identifier[:80]!r} cannot be an id.")
    return identifier


class StatusHandler(Handler):
    async def get(self) -> None:
        facts = self.service.facts
        checkpoints = await self.service.checkpoints.all(self.caller)
        problems: list[Finding] = self.service.engine.findings()
        if not any(i.name for i in await self.service.list_images()):
            problems.append(
                Finding(
                    code="no-image",
                    severity="block",
                    message="There is no image to start kernels from.",
                    hint="Run `sudo jupyter checkpoints setup`.",
                )
            )
        self.answer(
            Status(
                version=__version__,
                pid=os.getpid(),
                uid=self.caller.uid,
                engine=facts.engine,
                pool=facts.pool,
                criu_version=facts.criu_version,
                runc_version=facts.runc_version,
                kernels=len(self.service.kernels(self.caller)),
                checkpoints=len(checkpoints),
                problems=problems,
            )
        )


class KernelsHandler(Handler):
    async def get(self) -> None:
        self.answer(self.service.kernels(self.caller))

    async def post(self) -> None:
        request = self.body(StartRequest)
        self.subject = request.checkpoint or request.kernel_id
        await self.stream(lambda operation: self.service.start(self.caller, request, operation))


class KernelHandler(Handler):
    async def get(self, kernel_id: str) -> None:
        self.answer(await self.service.show(self.caller, _checked(kernel_id)))

    async def delete(self, kernel_id: str) -> None:
        await self.service.delete(self.caller, _checked(kernel_id))
        self.set_status(204)

    async def patch(self, kernel_id: str) -> None:
        patch = self.body(KernelPatch)
        self.answer(await self.service.change(self.caller, _checked(kernel_id), patch))


class PresaveHandler(Handler):
    async def get(self, kernel_id: str) -> None:
        self.answer(await self.service.presave(self.caller, _checked(kernel_id)))


class SignalHandler(Handler):
    async def post(self, kernel_id: str) -> None:
        request = self.body(SignalRequest)
        await self.service.signal(self.caller, _checked(kernel_id), request.signum)
        self.set_status(204)


class AttachHandler(Handler):
    """Follows one kernel's state; being here is what keeps it from being an orphan."""

    _task: asyncio.Future[None] | None = None

    async def get(self, kernel_id: str) -> None:
        self._let_others()
        self._task = asyncio.ensure_future(self._follow(_checked(kernel_id)))
        try:
            await self._task
        except asyncio.CancelledError:
            log.debug("The client that was attached to %s has left", kernel_id)

    async def _follow(self, kernel_id: str) -> None:
        self.set_header("Content-Type", NDJSON)
        async for model in self.service.attach(self.caller, kernel_id):
            line = b"" if model is None else msgspec.json.encode(model)
            try:
                self.write(line + b"\n")
                await self.flush()
            except StreamClosedError:
                return

    def on_connection_close(self) -> None:
        super().on_connection_close()
        if self._task is not None:
            self._task.cancel()


class LogsHandler(Handler):
    """The kernel's output, the end of it or all of it, and what comes if asked to follow."""

    #: Seconds between two looks at a log that is followed.
    interval = 0.2

    async def get(self, kernel_id: str) -> None:
        path = self.service.log_file(self.caller, _checked(kernel_id))
        tail = self.get_query_argument("tail", "")
        if tail and not tail.isdigit():
            raise InvalidRequest("`tail` must be a number of lines.")
        follow = self.get_query_argument("follow", "0") not in ("0", "false", "")
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        text, position = await asyncio.to_thread(_log_text, path, int(tail) if tail else None)
        try:
            self.write(text)
            await self.flush()
            self._let_others()
            while follow:
                await asyncio.sleep(self.interval)
                try:
                    self.service.log_file(self.caller, kernel_id)
                except NotFound:
                    return
                text, position = await asyncio.to_thread(_log_since, path, position)
                if text:
                    self.write(text)
                    await self.flush()
        except StreamClosedError:
            return


def _log_parts(path: Path) -> Iterator[Path]:
    older = sorted(path.parent.glob(path.name + ".[0-9]"), reverse=True)
    yield from (p for p in (*older, path) if p.exists())


def _log_text(path: Path, lines: int | None) -> tuple[bytes, tuple[int, int]]:
    data = b"".join(p.read_bytes() for p in _log_parts(path))
    if lines is not None:
        data = b"".join(data.splitlines(keepends=True)[-lines:]) if lines else b""
    return data, _position(path)


def _log_since(path: Path, position: tuple[int, int]) -> tuple[bytes, tuple[int, int]]:
    inode, offset = position
    now = _position(path)
    if now == position or now[0] == 0:
        return b"", position
    data = b""
    if now[0] != inode:
        # It was rotated: the rest of what was the log lies in the part before.
        previous = path.with_name(path.name + ".1")
        if previous.exists():
            data, offset = previous.read_bytes()[offset:], 0
    with path.open("rb") as file:
        file.seek(offset)
        data += file.read()
        return data, (now[0], file.tell())


def _position(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_ino, status.st_size


class KernelCheckpointsHandler(Handler):
    async def post(self, kernel_id: str) -> None:
        request = self.body(SaveRequest)
        _checked(kernel_id)
        await self.stream(
            lambda operation: self.service.save(self.caller, kernel_id, request, operation)
        )


class PrecopyHandler(Handler):
    """What is copied ahead of a kernel's next save."""

    async def post(self, kernel_id: str) -> None:
        _checked(kernel_id)
        await self.stream(lambda operation: self.service.precopy(self.caller, kernel_id, operation))

    async def delete(self, kernel_id: str) -> None:
        await self.service.forget_precopy(self.caller, _checked(kernel_id))
        self.set_status(204)


class ResumeHandler(Handler):
    async def post(self, kernel_id: str) -> None:
        request = self.body(ResumeRequest)
        _checked(kernel_id)
        await self.stream(
            lambda operation: self.service.resume(
                self.caller, kernel_id, request.checkpoint, operation
            )
        )


class CheckpointsHandler(Handler):
    async def get(self) -> None:
        self.answer(
            await self.service.checkpoints.all(
                self.caller,
                kernel=self.get_query_argument("kernel", ""),
                runtime=self.get_query_argument("runtime", ""),
                shared=self.get_query_argument("shared", "0") == "1",
            )
        )


class CheckpointHandler(Handler):
    async def get(self, checkpoint_id: str) -> None:
        self.answer(await self.service.checkpoints.show(self.caller, _checked(checkpoint_id)))

    async def delete(self, checkpoint_id: str) -> None:
        await self.service.checkpoints.delete(self.caller, _checked(checkpoint_id))
        self.set_status(204)

    async def patch(self, checkpoint_id: str) -> None:
        patch = self.body(CheckpointPatch)
        self.answer(
            await self.service.checkpoints.change(self.caller, _checked(checkpoint_id), patch)
        )


class CopyHandler(Handler):
    async def post(self, checkpoint_id: str) -> None:
        request = self.body(CopyRequest)
        _checked(checkpoint_id)
        self._let_others()
        async with self.turns.turn(self.caller.uid):
            model = await self.service.checkpoints.copy(self.caller, checkpoint_id, request)
        self.answer(model, status=201)


class ShareHandler(Handler):
    async def put(self, checkpoint_id: str, grantee: str) -> None:
        await self._change(checkpoint_id, grantee, True)

    async def delete(self, checkpoint_id: str, grantee: str) -> None:
        await self._change(checkpoint_id, grantee, False)

    async def _change(self, checkpoint_id: str, grantee: str, granted: bool) -> None:
        _checked(checkpoint_id)
        self.answer(
            await self.service.checkpoints.share(
                self.caller, checkpoint_id, grantee, granted=granted
            )
        )


class ArchiveHandler(Handler):
    """A checkpoint as one tar; from the middle too, so that a download can be resumed."""

    async def get(self, checkpoint_id: str) -> None:
        _checked(checkpoint_id)
        with self.service.checkpoints.reading(checkpoint_id):
            tag, export = await self.service.checkpoints.export(self.caller, checkpoint_id)
            self._let_others()
            async with self.turns.turn(self.caller.uid):
                await asyncio.to_thread(export.__enter__)
                try:
                    await self._send(tag, export)
                except StreamClosedError:
                    log.debug("The client of %s has left", self.request.path)
                finally:
                    await asyncio.to_thread(export.__exit__)

    async def _send(self, tag: str, export: Export) -> None:
        start = 0
        wanted = self.request.headers.get("Range", "")
        condition = self.request.headers.get("If-Range", f'"{tag}"')
        if wanted and condition == f'"{tag}"':
            start = _first_byte(wanted, export.size)
            self.set_status(206)
            self.set_header("Content-Range", f"bytes {start}-{export.size - 1}/{export.size}")
        self.set_header("Content-Type", "application/x-tar")
        self.set_header("Content-Length", str(export.size - start))
        self.set_header("Accept-Ranges", "bytes")
        self.set_header("Etag", f'"{tag}"')
        chunks = export.chunks(start)
        try:
            while chunk := await asyncio.to_thread(next, chunks, b""):
                self.write(chunk)
                await self.flush()
        finally:
            await asyncio.to_thread(chunks.close)


def _first_byte(wanted: str, size: int) -> int:
    """The start of ``bytes=N-``, the only kind of range that resuming a download needs."""
    unit, _, rest = wanted.partition("=")
    number = rest.removesuffix("-")
    if unit != "bytes" or not number.isdigit() or not rest.endswith("-") or int(number) >= size:
        raise InvalidRequest(f"The range {wanted[:80]!r} cannot be sent.")
    return int(number)


#: Seconds for an archive to arrive, and bytes in a second that it has to come with.
_ARCHIVE_SECONDS = 60.0
_ARCHIVE_RATE = 2**20


@stream_request_body
class ArchivesHandler(Handler):
    """Takes an archive in; it is on the disk, whole, before anything looks at it."""

    _file: IO[bytes] | None = None
    _storing: Storing | None = None

    async def prepare(self) -> None:
        await super().prepare()
        self._let_others()
        length = self.request.headers.get("Content-Length", "")
        if not length.isdigit():
            raise InvalidRequest("How long the archive is has to be known: no Content-Length.")
        self._storing = await self.service.checkpoints.reserve(self.caller.uid, int(length))
        connection = cast("Any", self.request.connection)
        connection.set_max_body_size(int(length))
        connection.set_body_timeout(_ARCHIVE_SECONDS + int(length) / _ARCHIVE_RATE)
        self._file = await asyncio.to_thread(self.service.checkpoints.incoming, int(length))

    async def data_received(self, chunk: bytes) -> None:
        assert self._file is not None
        await asyncio.to_thread(self._file.write, chunk)

    async def post(self) -> None:
        file = self._file
        assert file is not None and self._storing is not None
        await asyncio.to_thread(file.flush)
        self._storing.release()
        runtime = self.get_query_argument("runtime", "")
        if runtime:
            _checked(runtime)
        trusted = self.get_query_argument("trusted", "0") == "1"
        async with self.turns.turn(self.caller.uid):
            model = await self.service.checkpoints.import_archive(
                self.caller, file, runtime=runtime, trusted=trusted
            )
        self.answer(model, status=201)

    def on_finish(self) -> None:
        super().on_finish()
        self._let_go()

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self._let_go()

    def _let_go(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._storing is not None:
            self._storing.release()


class OperationHandler(Handler):
    async def delete(self, operation_id: str) -> None:
        self.service.operations.cancel(self.caller, _checked(operation_id))
        self.set_status(204)


class UsageHandler(Handler):
    async def get(self) -> None:
        self.answer(await self.service.checkpoints.usage(self.caller))


class PreflightHandler(Handler):
    async def get(self, checkpoint_id: str) -> None:
        _checked(checkpoint_id)
        self._let_others()
        async with self.turns.turn(self.caller.uid):
            report = await self.service.checkpoints.preflight(self.caller, checkpoint_id)
        self.answer(report)


class VerifyHandler(Handler):
    async def post(self, checkpoint_id: str) -> None:
        _checked(checkpoint_id)
        quick = self.get_query_argument("quick", "0") not in ("0", "false", "")
        await self.stream(
            lambda operation: self.service.checkpoints.verify(
                self.caller, checkpoint_id, operation, read_data=not quick
            )
        )


class RepairHandler(Handler):
    async def post(self) -> None:
        if self.caller.uid != 0:
            raise NotAllowed(
                "Only root may repair the store.",
                reason="It holds everybody's checkpoints.",
                hint="Ask an administrator to run `jupyter checkpoints repair`.",
            )
        self.answer(await self.service.checkpoints.repair())


class ImagesHandler(Handler):
    async def get(self) -> None:
        known = await self.service.list_images()
        self.answer([image for image in known if self._may_use(image)])

    def _may_use(self, image: ImageModel) -> bool:
        names = [image.name, image.digest]
        return self.service.quotas.allows_image(self.caller.uid, names)

    async def post(self) -> None:
        _require_root(self.caller)
        request = self.body(ImageRequest)
        if (request.spec is None) == (not request.archive):
            raise InvalidRequest("Give either a `spec` to build or an `archive` to import.")
        loop = asyncio.get_running_loop()
        images = self.service.images

        async def work(operation: Operation) -> ImageModel:
            def progress(stage: str, message: str) -> None:
                event = Event(event="progress", stage=stage, message=message)
                loop.call_soon_threadsafe(operation, event)

            if request.spec is not None:
                return await asyncio.to_thread(images.build, request.spec, request.name, progress)
            return await asyncio.to_thread(
                images.import_archive, Path(request.archive), request.name, progress
            )

        await self.stream(work)


def _require_root(caller: Caller) -> None:
    if caller.uid != 0:
        raise NotAllowed(
            "Only root may build, import and remove images.",
            reason="Everybody's kernels start from them, and they are built with root's rights.",
            hint="Ask an administrator to; then any kernelspec may name the image.",
        )


class ImageHandler(Handler):
    async def delete(self, ref: str) -> None:
        _require_root(self.caller)
        await self.service.remove_image(ref)
        self.set_status(204)


class UnknownHandler(Handler):
    async def prepare(self) -> None:
        await super().prepare()
        raise NotFound(f"There is no {self.request.path[:200]}.")


def application(
    service: KernelService, admission: Admission, audit: Audit, turns: Turns
) -> Application:
    """All routes. Called once by the agent."""
    arguments = {"service": service, "admission": admission, "audit": audit, "turns": turns}
    routes: list[tuple[str, type[Handler]]] = [
        (r"/v1/status", StatusHandler),
        (r"/v1/kernels", KernelsHandler),
        (rf"/v1/kernels/{_ID}", KernelHandler),
        (rf"/v1/kernels/{_ID}/presave", PresaveHandler),
        (rf"/v1/kernels/{_ID}/precopy", PrecopyHandler),
        (rf"/v1/kernels/{_ID}/signal", SignalHandler),
        (rf"/v1/kernels/{_ID}/attach", AttachHandler),
        (rf"/v1/kernels/{_ID}/logs", LogsHandler),
        (rf"/v1/kernels/{_ID}/checkpoints", KernelCheckpointsHandler),
        (rf"/v1/kernels/{_ID}/resume", ResumeHandler),
        (r"/v1/checkpoints", CheckpointsHandler),
        (rf"/v1/checkpoints/{_ID}", CheckpointHandler),
        (rf"/v1/checkpoints/{_ID}/copy", CopyHandler),
        (rf"/v1/checkpoints/{_ID}/shares/{_ID}", ShareHandler),
        (rf"/v1/checkpoints/{_ID}/preflight", PreflightHandler),
        (rf"/v1/checkpoints/{_ID}/verify", VerifyHandler),
        (r"/v1/repair", RepairHandler),
        (rf"/v1/checkpoints/{_ID}/archive", ArchiveHandler),
        (r"/v1/archives", ArchivesHandler),
        (rf"/v1/operations/{_ID}", OperationHandler),
        (r"/v1/usage", UsageHandler),
        (r"/v1/images", ImagesHandler),
        (r"/v1/images/(.+)", ImageHandler),
    ]
    return Application(
        [(path, handler, arguments) for path, handler in routes],
        default_handler_class=UnknownHandler,
        default_handler_args=arguments,
        log_function=_log_request,
    )


def _log_request(handler: RequestHandler) -> None:
    log.debug(
        "%d %s %s %.1f ms",
        handler.get_status(),
        handler.request.method,
        handler.request.path,
        handler.request.request_time() * 1000,
    )
