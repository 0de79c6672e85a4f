"""The pages' connections to kernels, taught to wait while a kernel is being resumed.

A request that reached the kernel's old state, or a queue of sockets in between, would be lost or
run where nobody expects it. So what pages send meanwhile is kept here, in order, and goes on as
soon as the kernel answers from its new state. Shutdown and interrupt requests are dropped: they
were meant for the state before, and would end the one that comes.
"""

from __future__ import annotations

import json
from typing import Any

from jupyter_server.services.kernels.connection.base import (
    deserialize_binary_message,
    deserialize_msg_from_ws_v1,
)
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection
from tornado.ioloop import IOLoop
from traitlets import List

_V1 = "v1.kernel.websocket.jupyter.org"
_DROPPED = ("shutdown_request", "interrupt_request")
#: Messages that one page may have waiting.
_MOST_HELD = 10_000


class CheckpointWebsocketConnection(ZMQChannelsWebsocketConnection):
    """See the module."""

    _held: list[Any] = List()  # type: ignore[assignment]

    @classmethod
    def of_kernel(cls, kernel_id: str) -> list[ZMQChannelsWebsocketConnection]:
        """All open connections to a kernel."""
        return [c for c in cls._open_sockets if c.kernel_id == kernel_id]

    @property
    def _runtimes(self) -> Any:
        return getattr(self.multi_kernel_manager, "runtimes", None)

    def _waits(self) -> bool:
        runtimes = self._runtimes
        return runtimes is not None and runtimes.resuming.is_resuming(self.kernel_id)

    async def prepare(self) -> None:
        """Ask the kernel who it is; later, if it is being resumed, for it could not answer."""
        if self._waits():
            await self._runtimes.resuming.settled(self.kernel_id)
        await super().prepare()

    def handle_incoming_message(self, incoming_msg: Any) -> None:
        """Pass a page's message on, or keep it."""
        if not self._waits() and not self._held:
            super().handle_incoming_message(incoming_msg)
            return
        kind = self._kind(incoming_msg)
        if kind in _DROPPED:
            self.log.warning("Dropped a %s: kernel %s is being resumed", kind, self.kernel_id)
            return
        if len(self._held) >= _MOST_HELD:
            self.log.error(
                "Too many messages wait for kernel %s; dropped a %s", self.kernel_id, kind
            )
            return
        if not self._held:
            IOLoop.current().add_callback(self._release)
        self._held.append(incoming_msg)

    async def _release(self) -> None:
        await self._runtimes.resuming.settled(self.kernel_id)
        held, self._held = self._held, []
        for message in held:
            super().handle_incoming_message(message)

    def _kind(self, message: Any) -> str:
        """The type of a page's message; empty if it cannot be read."""
        try:
            if self.subprotocol == _V1:
                header = json.loads(deserialize_msg_from_ws_v1(message)[1][0])
            elif isinstance(message, bytes):
                header = deserialize_binary_message(message)["header"]
            else:
                header = json.loads(message)["header"]
            return str(header["msg_type"])
        except (ValueError, KeyError, IndexError, TypeError):
            return ""

    def _on_zmq_reply(self, stream: Any, msg_list: Any) -> None:
        """Put what the user is to know of the kernel's start into its banner."""
        runtimes = self._runtimes
        notice = runtimes.bound.notices.get(self.kernel_id, "") if runtimes is not None else ""
        if notice and getattr(stream, "channel", "") == "shell":
            msg_list = self._with_notice(msg_list, notice)
        super()._on_zmq_reply(stream, msg_list)

    def _with_notice(self, message: Any, notice: str) -> Any:
        if isinstance(message, dict):
            if message["header"]["msg_type"] == "kernel_info_reply":
                message["content"]["banner"] = notice + message["content"].get("banner", "")
            return message
        # Signature-less parts: header, parent header, metadata, content, buffers.
        if self.session.unpack(message[0])["msg_type"] != "kernel_info_reply":
            return message
        content = self.session.unpack(message[3])
        content["banner"] = notice + content.get("banner", "")
        return [*message[:3], self.session.pack(content), *message[4:]]
