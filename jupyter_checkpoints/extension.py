"""The Jupyter Server extension: puts the parts into place, and takes them down again.

Enabled by the installation of the package. It starts nothing slow, and without an agent the
server works as ever: then ``GET /jupyter-checkpoints/status`` says what is missing.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

from jupyter_events import EventLogger
from jupyter_events.schema_registry import SchemaRegistryException
from jupyter_server.extension.application import ExtensionApp
from jupyter_server.gateway.gateway_client import GatewayClient
from jupyter_server.serverapp import ServerApp
from tornado import web
from traitlets.config import Config

from . import __version__
from .kernelmanager import CheckpointKernelManager, CheckpointKernels
from .message_types import make_types_ready
from .routes import HANDLERS
from .runtimes import Runtimes
from .session_routes import SESSION_HANDLERS
from .sessions import Sessions
from .websocket import CheckpointWebsocketConnection

_EVENTS = Path(__file__).parent / "events"
_CONTENTS_EVENTS = "https://events.jupyter.org/jupyter_server/contents_service/v1"


def _stop_on_interrupts(serverapp: ServerApp) -> None:
    """Let an interrupt end the server as SIGTERM does: with its kernels saved.

    Without a terminal the server would just be gone. This is how JupyterHub ends it.
    """
    if (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
        and (handler := signal.getsignal(signal.SIGTERM)) == serverapp._signal_stop
    ):
        signal.signal(signal.SIGINT, handler)


class CheckpointsExtension(ExtensionApp):
    """Runtime checkpoints in Jupyter Server."""

    name = "jupyter_checkpoints"
    version = __version__
    classes = [Runtimes]
    handlers = [*HANDLERS, *SESSION_HANDLERS]

    #: ``None`` where the extension has nothing to work with, see :attr:`why_not`.
    runtimes: Runtimes | None = None
    sessions: Sessions
    why_not = ""

    def _link_jupyter_server_extension(self, serverapp: ServerApp) -> None:
        """Put our classes into place unless the user has chosen others. Called before their use."""
        if GatewayClient.instance(parent=serverapp).gateway_enabled:
            self.why_not = "Kernels are run by a gateway, which is to save them if anybody."
        else:
            ours = {
                "kernel_manager_class": CheckpointKernelManager,
                "kernel_websocket_connection_class": CheckpointWebsocketConnection,
            }
            chosen = serverapp.config.ServerApp
            serverapp.update_config(
                Config({"ServerApp": {k: v for k, v in ours.items() if k not in chosen}})
            )
        super()._link_jupyter_server_extension(serverapp)

    def initialize_settings(self) -> None:
        """Make the service. Called when the server's managers are there."""
        server = self.serverapp
        assert server is not None
        make_types_ready()
        self._register_events()
        kernels = server.kernel_manager
        if not self.why_not and not isinstance(kernels, CheckpointKernels):
            self.why_not = (
                f"The configured kernel manager, {type(kernels).__name__}, does not know how to "
                "save kernels. Derive it from jupyter_checkpoints.kernelmanager.CheckpointKernels."
            )
        if self.why_not:
            self.log.warning("Runtime checkpoints are off. %s", self.why_not)
            return
        assert isinstance(kernels, CheckpointKernels)
        self.sessions = Sessions(server.session_manager)
        self.runtimes = kernels.runtimes = Runtimes(
            parent=self,
            contents=server.contents_manager,
            emit=self._emit,
            kernels=kernels,
            sessions=self.sessions,
            file_id_manager=lambda: server.web_app.settings.get("file_id_manager"),
        )
        server.contents_manager.register_pre_save_hook(self.runtimes.notebooks.before_saved)
        self._events.add_listener(schema_id=_CONTENTS_EVENTS, listener=self._contents_changed)

    async def _start_jupyter_server_extension(self, serverapp: ServerApp) -> None:
        """Start the timers. Called when the server runs."""
        if self.runtimes is not None:
            self.runtimes.open()
            _stop_on_interrupts(serverapp)

    async def stop_extension(self) -> None:
        """The last moment before the server shuts all kernels down: save them."""
        if self.runtimes is not None:
            await self.runtimes.close()

    @property
    def _events(self) -> EventLogger:
        assert self.serverapp is not None and self.serverapp.event_logger is not None
        return self.serverapp.event_logger

    def _register_events(self) -> None:
        for path in sorted(_EVENTS.glob("*.yaml")):
            try:
                self._events.register_event_schema(path)
            except SchemaRegistryException:
                self.log.debug("%s is registered already", path.name)

    def _emit(self, schema: str, data: dict[str, Any]) -> None:
        """Tell whoever listens. Somebody's broken listener is none of our business."""
        try:
            self._events.emit(schema_id=schema, data=data)
        except Exception:
            self.log.exception("An event could not be told: %s %s", schema, data)

    async def _contents_changed(self, logger: Any, schema_id: str, data: dict[str, Any]) -> None:
        runtimes = self.runtimes
        if runtimes is None:
            return
        path, source = data["path"].strip("/"), data.get("source_path", "").strip("/")
        try:
            match data["action"]:
                case "copy":
                    await runtimes.notebooks.copied(source, path)
                case "rename":
                    await runtimes.notebooks.moved(source, path)
                case "delete":
                    await runtimes.notebooks.deleted(path)
        except (asyncio.CancelledError, web.HTTPError):
            raise
        except Exception:
            self.log.exception("%s of %s could not be followed", data["action"], path)
