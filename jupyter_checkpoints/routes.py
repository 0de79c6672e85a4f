"""REST of the server extension, below ``/jupyter-checkpoints/``; ``openapi.yaml`` describes it.

Handlers only read requests and write answers: what is done is done by
:class:`~jupyter_checkpoints.runtimes.Runtimes` and by the agent. Every method is authenticated, and
authorized for the resource ``runtime_checkpoints``: ``read`` to look, ``write`` to save and delete,
``execute`` for what makes code run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import msgspec
from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from jupyter_server.extension.handler import ExtensionHandlerMixin
from msgspec import Meta, Struct, field
from tornado import web
from tornado.iostream import StreamClosedError

from . import __version__
from .client import AgentClient, connect
from .errors import (
    CheckpointsError,
    HostNotReady,
    InsufficientResources,
    InvalidRequest,
    NotFound,
)
from .history import ListedCheckpoint, listed, with_remixes
from .models import CheckpointModel, CheckpointPatch, Id, Mode, Name, is_id
from .operations import Operation, known
from .runtimes import Runtimes
from .sharing import WARNING, name_of, shares_of

T = TypeVar("T")

PREFIX = "/jupyter-checkpoints"
OPENAPI = Path(__file__).parent / "openapi.yaml"

NotebookPath = Annotated[str, Meta(min_length=1, max_length=4096)]


class SaveBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST checkpoints``: what to save, either of the two."""

    kernel_id: Id | None = None
    notebook: NotebookPath | None = None
    name: Name = ""
    mode: Mode | None = None


class ChangeBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``PATCH checkpoints/{id}``."""

    name: Name | None = None
    pinned: bool | None = None


class ResumeBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST checkpoints/{id}/resume``: in place in a kernel, or in a new one of a notebook."""

    kernel_id: Id | None = None
    notebook: NotebookPath | None = None


class RemixBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST remix``; without ``source`` of a checkpoint that somebody shares."""

    source: NotebookPath | None = None
    target: NotebookPath
    checkpoint: Id | None = None


class PruneBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST prune``."""

    dry_run: bool = False


class FreshBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST fresh``."""

    notebook: NotebookPath


class DangerBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST danger``: why, for the log."""

    reason: Annotated[str, Meta(max_length=1000)] = ""


class Origin(Struct, frozen=True, kw_only=True):
    """Where a remix comes from."""

    checkpoint: str
    """The checkpoint whose state the remix began with."""
    runtime: str
    """That one's runtime."""
    created: str
    """When the remix was made."""


class RuntimeModel(Struct, kw_only=True):
    """One runtime of the user's."""

    runtime: str
    notebook: str = ""
    """Its path on this server; empty if it is none of this server's."""
    deleted: str = ""
    """When its notebook was deleted, if it was."""
    kernels: list[str] = field(default_factory=list)
    paused: list[str] = field(default_factory=list)
    """Those of the kernels that somebody has paused (``docker pause``)."""
    checkpoints: int = 0
    newest: ListedCheckpoint | None = None
    bytes: int = 0
    """What deleting all of its checkpoints one by one would free at least."""
    origin: Origin | None = None
    """If it is a remix, what of: as long as both have the checkpoint that it began with."""


class Handler(ExtensionHandlerMixin, APIHandler):
    """Bodies, answers and errors; the base of every handler."""

    auth_resource = "runtime_checkpoints"

    @property
    def runtimes(self) -> Runtimes:
        """The service; raises where the extension is switched off."""
        extension: Any = self.extensionapp
        if extension.runtimes is None:
            raise HostNotReady(
                "Runtime checkpoints are off in this server.", reason=extension.why_not
            )
        service: Runtimes = extension.runtimes
        return service

    def body(self, kind: type[T]) -> T:
        """The request's JSON, checked."""
        try:
            return msgspec.json.decode(self.request.body or b"{}", type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequest("The request cannot be read.", reason=str(error)) from error

    def answer(self, value: Any, status: int = 200) -> None:
        """Finish with JSON."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(msgspec.json.encode(value))

    def accepted(self, operation: Operation) -> None:
        """Finish with 202 and where to ask for the rest."""
        self.set_header("Location", self._url("operations", operation.id))
        self.answer(operation.model(), 202)

    def _url(self, *parts: str) -> str:
        return "/".join([self.base_url.rstrip("/") + PREFIX, *parts])

    async def listed(
        self, agent: AgentClient, checkpoints: list[CheckpointModel]
    ) -> list[ListedCheckpoint]:
        """Checkpoints as all answers have them."""
        usage, entries = await asyncio.gather(
            agent.usage(), asyncio.to_thread(self.runtimes.registry.all)
        )
        path_of = self.runtimes.notebooks.path_of
        return listed(checkpoints, usage, {e.runtime: path_of(e.place) for e in entries})

    def untracked(self) -> None:
        """This request is no sign of somebody being there: pages poll."""
        self._track_activity = False

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Our errors as they are, all others as Jupyter Server's API has them."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if error is None or isinstance(error, web.HTTPError):
            super().write_error(status_code, **kwargs)
            return
        body = known(error)
        self.set_status(body.http_status)
        self.set_header("Content-Type", "application/json")
        self.finish(msgspec.json.encode(body.to_json()))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Errors of users and of the agent are answers, and no news for the log."""
        if isinstance(value, CheckpointsError):
            self.log.info("%s %s: %s", self.request.method, self.request.path, value)
        else:
            super().log_exception(typ, value, tb)


def _checked(identifier: str) -> str:
    """An id from a path. Nothing that is not one is passed on."""
    if not is_id(identifier):
        raise InvalidRequest(f"{identifier[:80]!r} cannot be an id.")
    return identifier


class StatusHandler(Handler):
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Whether all is there that is needed; never an error."""
        self.untracked()
        extension: Any = self.extensionapp
        status: dict[str, Any] = {
            "version": __version__,
            "available": False,
            "message": extension.why_not,
            "reason": "",
            "hint": "",
            "agent": None,
            "operations": [],
        }
        if extension.runtimes is not None:
            status["operations"] = [o.model() for o in extension.runtimes.operations.running()]
            try:
                async with connect() as agent:
                    found = await agent.status()
            except CheckpointsError as error:
                status |= {"message": error.message, "reason": error.reason, "hint": error.hint}
            else:
                status["agent"] = found
                blocking = [p for p in found.problems if p.severity == "block"]
                status["available"] = not blocking
                if blocking:
                    status |= {"message": blocking[0].message, "hint": blocking[0].hint}
        self.answer(status)


class RuntimesHandler(Handler):
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """All runtimes that have a checkpoint, a kernel or a notebook."""
        self.untracked()
        self.answer(list((await self.collected()).values()))

    async def collected(self) -> dict[str, RuntimeModel]:
        """What agent and registry know, by runtime."""
        runtimes = self.runtimes
        async with connect() as agent:
            checkpoints, kernels, usage = await asyncio.gather(
                agent.checkpoints(), agent.kernels(), agent.usage()
            )
        found: dict[str, RuntimeModel] = {}
        for entry in await asyncio.to_thread(runtimes.registry.all):
            found[entry.runtime] = RuntimeModel(
                runtime=entry.runtime,
                notebook=runtimes.notebooks.path_of(entry.place),
                deleted=entry.deleted,
            )
        runtime_of = {checkpoint.id: checkpoint.runtime for checkpoint in checkpoints}
        paths = {model.runtime: model.notebook for model in found.values()}
        for checkpoint in listed(checkpoints, usage, paths):  # newest first
            if checkpoint.runtime:
                model = found.setdefault(
                    checkpoint.runtime, RuntimeModel(runtime=checkpoint.runtime)
                )
                model.newest = model.newest or checkpoint
                model.checkpoints += 1
                model.bytes += usage.checkpoints.get(checkpoint.id, 0)
                if runtime_of.get(checkpoint.parent, checkpoint.runtime) != checkpoint.runtime:
                    model.origin = Origin(
                        checkpoint=checkpoint.parent,
                        runtime=runtime_of[checkpoint.parent],
                        created=checkpoint.created,
                    )
        for kernel in kernels:
            if kernel.runtime and kernel.state != "exited":
                model = found.setdefault(kernel.runtime, RuntimeModel(runtime=kernel.runtime))
                model.kernels.append(kernel.id)
                if kernel.paused:
                    model.paused.append(kernel.id)
        return found


class RuntimeHandler(RuntimesHandler):
    @web.authenticated
    @authorized
    async def get(self, runtime: str) -> None:
        """One runtime."""
        self.untracked()
        found = (await self.collected()).get(_checked(runtime))
        if found is None:
            raise NotFound(f"There is no runtime {runtime}.")
        self.answer(found)


class FreshHandler(Handler):
    @web.authenticated
    @authorized(action="execute")
    async def post(self, runtime: str) -> None:
        """The runtime's next kernel starts without a checkpoint, once."""
        self.runtimes.starting.fresh_next(_checked(runtime))
        self.set_status(204)
        self.finish()


class NotebookFreshHandler(Handler):
    @web.authenticated
    @authorized(action="execute")
    async def post(self) -> None:
        """The notebook's next kernel starts without a checkpoint, once."""
        runtime = await self.runtimes.notebooks.runtime_of(self.body(FreshBody).notebook)
        if runtime:  # one that has checkpoints switched off starts fresh anyway
            self.runtimes.starting.fresh_next(runtime)
        self.set_status(204)
        self.finish()


class CheckpointsHandler(Handler):
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """Checkpoints, newest first; of one notebook, runtime or kernel if that is named."""
        self.untracked()
        runtime = self.get_query_argument("runtime", "")
        kernel = self.get_query_argument("kernel", "")
        notebook = self.get_query_argument("notebook", "")
        for identifier in (runtime, kernel):
            if identifier:
                _checked(identifier)
        if notebook:
            settings = await self.runtimes.notebooks.settings(notebook)
            its_own = (
                await self.runtimes.notebooks.runtime_of(notebook, settings) or settings.runtime
            )
            if not its_own or runtime not in ("", its_own):
                self.answer([])
                return
            runtime = its_own
        remixes = self.get_query_argument("remixes", "0")
        if remixes not in ("0", "1"):
            raise InvalidRequest("`remixes` is 0 or 1.")
        registered = await asyncio.to_thread(self.runtimes.registry.all)
        shared = self.get_query_argument("shared", "0")
        if shared not in ("0", "1") or (shared == "1" and (notebook or kernel or runtime)):
            raise InvalidRequest("`shared` is 0, or 1 with nothing else.")
        async with connect() as agent:
            if shared == "1":
                self.answer(await self._of_others(agent))
                return
            if remixes == "1" and runtime:
                sources = {e.runtime: e.source for e in registered if e.source}
                found = with_remixes(await agent.checkpoints(kernel=kernel), runtime, sources)
            else:
                found = await agent.checkpoints(kernel=kernel, runtime=runtime)
            self.answer(await self.listed(agent, found))

    async def _of_others(self, agent: AgentClient) -> list[ListedCheckpoint]:
        """What other users share with this one."""
        found = await self.listed(agent, await agent.checkpoints(shared=True))
        owners = await asyncio.to_thread(lambda: [name_of(c.uid) for c in found])
        return [
            msgspec.structs.replace(c, owner=owner) for c, owner in zip(found, owners, strict=True)
        ]

    @web.authenticated
    @authorized
    async def post(self) -> None:
        """Save a kernel."""
        body = self.body(SaveBody)
        if (body.kernel_id is None) == (body.notebook is None):
            raise InvalidRequest("Name either a kernel_id or a notebook.")
        kernel_id = body.kernel_id or ""
        if body.notebook is not None:
            extension: Any = self.extensionapp
            session = await extension.sessions.of_notebook(body.notebook)
            if session is None:
                raise NotFound(f"{body.notebook} has no kernel that could be saved.")
            kernel_id = session["kernel"]["id"]
        await self.runtimes.bound.require_saveable(kernel_id)
        self.accepted(
            self.runtimes.saving.save(kernel_id, trigger="manual", name=body.name, mode=body.mode)
        )


class CheckpointHandler(Handler):
    @web.authenticated
    @authorized
    async def get(self, checkpoint_id: str) -> None:
        """One checkpoint."""
        self.untracked()
        async with connect() as agent:
            model = await agent.checkpoint(_checked(checkpoint_id))
            self.answer((await self.listed(agent, [model]))[0])

    @web.authenticated
    @authorized
    async def patch(self, checkpoint_id: str) -> None:
        """Name or pin a checkpoint."""
        body = self.body(ChangeBody)
        patch = CheckpointPatch(name=body.name, pinned=body.pinned)
        async with connect() as agent:
            model = await agent.change_checkpoint(_checked(checkpoint_id), patch)
            self.runtimes.keeping.changed(model)
            self.answer((await self.listed(agent, [model]))[0])

    @web.authenticated
    @authorized
    async def delete(self, checkpoint_id: str) -> None:
        """Delete a checkpoint, for ever."""
        async with connect() as agent:
            model = await agent.checkpoint(_checked(checkpoint_id))
            await agent.delete_checkpoint(checkpoint_id)
        self.runtimes.keeping.deleted(checkpoint_id, model.runtime, "a user deleted it")
        self.set_status(204)
        self.finish()


class PreflightHandler(Handler):
    @web.authenticated
    @authorized
    async def get(self, checkpoint_id: str) -> None:
        """Whether it can be resumed here."""
        self.untracked()
        async with connect() as agent:
            self.answer(await agent.preflight(_checked(checkpoint_id)))


class VerifyHandler(Handler):
    @web.authenticated
    @authorized
    async def post(self, checkpoint_id: str) -> None:
        """Read every byte again."""
        async with connect() as agent:
            checkpoint = await agent.checkpoint(_checked(checkpoint_id))
        self.accepted(self.runtimes.keeping.verify(checkpoint))


class _AboutShares(Handler):
    async def shares(self, model: CheckpointModel) -> None:
        """Finish with whom a checkpoint is shared with, and what is to be known before that."""
        shares = await asyncio.to_thread(shares_of, model)
        self.answer({"shares": shares, "warning": WARNING})


class SharesHandler(_AboutShares):
    @web.authenticated
    @authorized
    async def get(self, checkpoint_id: str) -> None:
        """Who else may copy a checkpoint."""
        self.untracked()
        async with connect() as agent:
            model = await agent.checkpoint(_checked(checkpoint_id))
        await self.shares(model)


class ShareHandler(_AboutShares):
    @web.authenticated
    @authorized
    async def put(self, checkpoint_id: str, user: str) -> None:
        """Let a user copy a checkpoint."""
        async with connect() as agent:
            await self.shares(await agent.share(_checked(checkpoint_id), user))

    @web.authenticated
    @authorized
    async def delete(self, checkpoint_id: str, user: str) -> None:
        """Let a user copy it no longer."""
        async with connect() as agent:
            await self.shares(await agent.unshare(_checked(checkpoint_id), user))


class PresaveHandler(Handler):
    @web.authenticated
    @authorized
    async def get(self, kernel_id: str) -> None:
        """Whether the kernel can be saved now, as far as can be seen."""
        self.untracked()
        await self.runtimes.bound.require_saveable(_checked(kernel_id))
        async with connect() as agent:
            self.answer(await agent.presave(kernel_id))


class ResumeHandler(Handler):
    @web.authenticated
    @authorized(action="execute")
    async def post(self, checkpoint_id: str) -> None:
        """Resume: in place, or in a new kernel."""
        body = self.body(ResumeBody)
        if body.kernel_id is not None and body.notebook is not None:
            raise InvalidRequest("Name a kernel_id or a notebook, not both.")
        async with connect() as agent:
            checkpoint = await agent.checkpoint(_checked(checkpoint_id))
        if body.kernel_id is not None:
            self.accepted(self.runtimes.resuming.in_place(checkpoint, body.kernel_id))
        else:
            operation = await self.runtimes.resuming.in_new_kernel(checkpoint, body.notebook or "")
            self.accepted(operation)


class ArchiveHandler(Handler):
    @web.authenticated
    @authorized
    async def get(self, checkpoint_id: str) -> None:
        """A checkpoint as one file; all that was in the kernel's memory is in it."""
        start = _first_byte(self.request.headers.get("Range", ""))
        tag = self.request.headers.get("If-Range", "")
        async with (
            connect() as agent,
            aclosing(agent.export(_checked(checkpoint_id), start, tag)) as parts,
        ):
            whole = await anext(parts)
            if whole.start:
                self.set_status(206)
                last = whole.size - 1
                self.set_header("Content-Range", f"bytes {whole.start}-{last}/{whole.size}")
            self.set_header("Accept-Ranges", "bytes")
            self.set_header("Etag", whole.tag)
            self.set_header("Content-Length", str(whole.size - whole.start))
            self.set_attachment_header(f"{checkpoint_id}.tar")
            self.set_header("Content-Type", "application/x-tar")
            try:
                async for part in parts:
                    self.write(part.data)
                    await self.flush()
            except StreamClosedError:
                self.log.debug("The client of %s has left", self.request.path)
                return
        self.finish(set_content_type="application/x-tar")


@web.stream_request_body
class ArchivesHandler(Handler):
    """Passes an archive on to the agent as it comes."""

    #: Chunks between the client and the agent; tornado's have 64 KiB.
    waiting = 16

    async def prepare(self) -> None:  # type: ignore[override]  # as its bases do
        """Who may not do this is told before the body comes."""
        await super().prepare()
        self._task: asyncio.Task[CheckpointModel] | None = None
        await cast("Awaitable[None]", self._admit())
        length = self.request.headers.get("Content-Length", "")
        if not length.isdigit():
            raise InvalidRequest("How long the archive is has to be known: no Content-Length.")
        if int(length) > self.runtimes.max_archive:
            raise InsufficientResources(
                "The archive is larger than this server takes.",
                reason=f"It has {length} bytes, and may have {self.runtimes.max_archive}.",
            )
        runtime = await self._runtime()
        cast("Any", self.request.connection).set_max_body_size(int(length))
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue(self.waiting)
        self._task = asyncio.create_task(self._import(int(length), runtime))

    @web.authenticated
    @authorized(action="execute")
    async def _admit(self) -> None:
        """Nothing but the two checks."""

    async def _runtime(self) -> str:
        notebook = self.get_query_argument("notebook", "")
        if not notebook:
            return ""
        runtime = await self.runtimes.notebooks.runtime_of(notebook)
        if not runtime:
            raise NotFound(
                f"There is no notebook {notebook} with runtime checkpoints switched on.",
            )
        return runtime

    async def _import(self, size: int, runtime: str) -> CheckpointModel:
        async def content() -> AsyncIterator[bytes]:
            while (chunk := await self._chunks.get()) is not None:
                yield chunk

        async with connect() as agent:
            return await agent.import_archive(content(), size, runtime=runtime)

    async def data_received(self, chunk: bytes) -> None:
        """A piece of the body; thrown away when the agent wants no more."""
        await self._put(chunk)

    async def _put(self, chunk: bytes | None) -> None:
        if self._task is None or self._task.done():
            return
        put = asyncio.create_task(self._chunks.put(chunk))
        await asyncio.wait([put, self._task], return_when=asyncio.FIRST_COMPLETED)
        put.cancel()

    @web.authenticated
    @authorized(action="execute")
    async def post(self) -> None:
        """Make a checkpoint of the archive; for a notebook if one is named."""
        await self._put(None)
        assert self._task is not None
        model = await self._task
        self.set_header("Location", self._url("checkpoints", model.id))
        async with connect() as agent:
            [made] = await self.listed(agent, [model])
        self.answer(made, 201)

    def on_connection_close(self) -> None:
        """The client has left in the middle."""
        if self._task is not None:
            self._task.cancel()


def _first_byte(wanted: str) -> int:
    """The start of ``bytes=N-``, or 0 where no such range is asked for."""
    number = wanted.removeprefix("bytes=").removesuffix("-")
    return int(number) if number.isdigit() and len(number) < 19 else 0


class RemixHandler(Handler):
    @web.authenticated
    @authorized(action="execute")
    async def post(self) -> None:
        """Copy a notebook together with its runtime."""
        body = self.body(RemixBody)
        notebooks, checkpoint = self.runtimes.notebooks, body.checkpoint or ""
        if body.source is not None:
            copy = await notebooks.remix(body.source, body.target, checkpoint)
        elif checkpoint:
            copy = await notebooks.adopt(checkpoint, body.target)
        else:
            raise InvalidRequest("Name a source, or a checkpoint that is shared with you.")
        self.set_header("Location", self._url("checkpoints", copy.id))
        async with connect() as agent:
            [made] = await self.listed(agent, [copy])
        self.answer({"notebook": body.target, "runtime": copy.runtime, "checkpoint": made}, 201)


class OperationHandler(Handler):
    @web.authenticated
    @authorized
    async def get(self, operation_id: str) -> None:
        """How far long work is, or how it ended."""
        self.untracked()
        self.answer(self.runtimes.operations.get(_checked(operation_id)).model())

    @web.authenticated
    @authorized
    async def delete(self, operation_id: str) -> None:
        """Cancel it: the kernel goes on as it was, and nothing is kept."""
        operation = self.runtimes.operations.get(_checked(operation_id))
        await operation.cancel()
        self.accepted(operation)


class UsageHandler(Handler):
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """What checkpoints hold on the disk, and how much they may."""
        self.untracked()
        runtimes = self.runtimes
        async with connect() as agent:
            usage = await agent.usage()
        self.answer(
            {
                "total": usage.total,
                "checkpoints": usage.checkpoints,
                "precopies": usage.precopies,
                "user_quota": runtimes.user_quota,
                "runtime_quota": runtimes.runtime_quota,
            }
        )


class PruneHandler(Handler):
    @web.authenticated
    @authorized
    async def post(self) -> None:
        """Delete what retention does not keep."""
        body = self.body(PruneBody)
        self.answer(await self.runtimes.keeping.prune(dry_run=body.dry_run))


class DangerHandler(Handler):
    @web.authenticated
    @authorized
    async def post(self) -> None:
        """This host may go away soon: save all kernels that ask for autosave."""
        body = self.body(DangerBody)
        self.log.warning("Danger: %s; saving all kernels", body.reason or "no reason given")
        self.answer({"failed": await self.runtimes.saving.save_all("danger")})


class OpenApiHandler(Handler):
    @web.authenticated
    @authorized
    async def get(self) -> None:
        """The description of all this."""
        self.untracked()
        text = await asyncio.to_thread(OPENAPI.read_text)
        self.finish(text, set_content_type="application/yaml")


_ID = r"([^/]+)"
_USER = r"(\*|[^/]+)"

HANDLERS = [
    (f"{PREFIX}/status", StatusHandler),
    (f"{PREFIX}/runtimes", RuntimesHandler),
    (f"{PREFIX}/runtimes/{_ID}", RuntimeHandler),
    (f"{PREFIX}/runtimes/{_ID}/fresh", FreshHandler),
    (f"{PREFIX}/fresh", NotebookFreshHandler),
    (f"{PREFIX}/checkpoints", CheckpointsHandler),
    (f"{PREFIX}/checkpoints/{_ID}", CheckpointHandler),
    (f"{PREFIX}/checkpoints/{_ID}/preflight", PreflightHandler),
    (f"{PREFIX}/checkpoints/{_ID}/verify", VerifyHandler),
    (f"{PREFIX}/checkpoints/{_ID}/shares", SharesHandler),
    (f"{PREFIX}/checkpoints/{_ID}/shares/{_USER}", ShareHandler),
    (f"{PREFIX}/checkpoints/{_ID}/resume", ResumeHandler),
    (f"{PREFIX}/checkpoints/{_ID}/archive", ArchiveHandler),
    (f"{PREFIX}/kernels/{_ID}/preflight", PresaveHandler),
    (f"{PREFIX}/archives", ArchivesHandler),
    (f"{PREFIX}/remix", RemixHandler),
    (f"{PREFIX}/operations/{_ID}", OperationHandler),
    (f"{PREFIX}/usage", UsageHandler),
    (f"{PREFIX}/prune", PruneHandler),
    (f"{PREFIX}/danger", DangerHandler),
    (f"{PREFIX}/openapi.yaml", OpenApiHandler),
]
