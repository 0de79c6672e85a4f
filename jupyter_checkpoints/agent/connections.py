"""The agent's HTTP server: nobody can keep others out by keeping it busy.

Every user has a number of connections at most; headers, and bodies that are not streamed, have to
arrive within seconds, and may not be large.
"""

from __future__ import annotations

import resource
import socket
import struct
from collections import Counter
from collections.abc import Awaitable
from typing import Any

import msgspec
from tornado.httpserver import HTTPServer
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.iostream import IOStream
from tornado.web import Application

from ..errors import QuotaExceeded
from .audit import Audit, Peer

#: The largest request body in bytes; requests are small, and archives are streamed.
MAX_BODY = 4 * 2**20
#: Seconds until a request's headers, and then its body, have to be there.
_IDLE_SECONDS = 60.0
_BODY_SECONDS = 20.0
_HEADER_BYTES = 32 * 1024


def peer_of(connection: socket.socket) -> Peer:
    """Who is at the other end of a Unix socket."""
    credentials = connection.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    return Peer(*struct.unpack("3i", credentials))


def raise_descriptor_limit() -> None:
    """Let this process have as many open files as it may; containers get a limit of their own."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class AgentServer(HTTPServer):
    """See the module. Made once, with the application and ``most`` connections for each user."""

    def initialize(  # type: ignore[override]
        self, application: Application, most: int, audit: Audit
    ) -> None:
        super().initialize(
            application,
            max_body_size=MAX_BODY,
            max_header_size=_HEADER_BYTES,
            idle_connection_timeout=_IDLE_SECONDS,
            body_timeout=_BODY_SECONDS,
        )
        self._most = most
        self._audit = audit
        self._open: Counter[int] = Counter()
        self._peers: dict[object, Peer] = {}

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        peer = peer_of(stream.socket)
        if peer.uid != 0 and self._open[peer.uid] >= self._most:
            error = QuotaExceeded(
                f"User {peer.uid} has {self._most} connections to the agent already.",
                hint="End some of the programs that use it.",
            )
            self._audit.note(peer, "connect", "refused", reason=error.message)
            _answer_and_close(stream, error)
            return
        self._open[peer.uid] += 1
        self._peers[stream] = peer
        super().handle_stream(stream, address)

    def on_close(self, server_conn: object) -> None:
        super().on_close(server_conn)
        peer = self._peers.pop(server_conn.stream, None)  # type: ignore[attr-defined]
        if peer is not None:
            self._open[peer.uid] -= 1

    def start_request(
        self, server_conn: object, request_conn: HTTPConnection
    ) -> HTTPMessageDelegate:
        request = super().start_request(server_conn, request_conn)
        peer = self._peers.get(server_conn.stream)  # type: ignore[attr-defined]
        return request if peer is None else _Watched(request, peer, self._audit)


class _Watched(HTTPMessageDelegate):
    """Passes a request on, and tells the audit log of one that tornado itself turns away."""

    def __init__(self, request: HTTPMessageDelegate, peer: Peer, audit: Audit) -> None:
        self._request, self._peer, self._audit = request, peer, audit
        self._what = ""

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        assert isinstance(start_line, RequestStartLine)
        self._what = f"{start_line.method} {start_line.path.partition('?')[0][:200]}"
        return self._request.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return self._request.data_received(chunk)

    def finish(self) -> None:
        self._what = ""
        self._request.finish()

    def on_connection_close(self) -> None:
        if self._what:
            reason = "its body was too large, did not come in time, or not at all"
            self._audit.note(self._peer, self._what, "refused", reason=reason)
        self._request.on_connection_close()


def _answer_and_close(stream: IOStream, error: QuotaExceeded) -> None:
    body = msgspec.json.encode(error.to_json())
    head = (
        f"HTTP/1.1 {error.http_status} Refused\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    stream.write(head.encode() + body).add_done_callback(lambda written: written.exception())
    stream.close()
