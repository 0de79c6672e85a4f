"""Jupyter Server's own ``/api/sessions``, taught to start a notebook's kernel once, and afresh.

``POST /api/sessions?fresh=1`` starts the kernel without its notebook's checkpoint, which stays.
Two requests for one path at the same moment get one session and one kernel: the server's own
handler would start two, and both would go on from the same state. JupyterLab asks under a path of
its own and gives the session the notebook's path only then. Its sessions get a kernel each: it ends
one that it no longer wants together with its kernel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, cast

from jupyter_server.services.sessions.handlers import SessionRootHandler
from tornado import web

from .kernelmanager import starting_fresh


class SessionsHandler(SessionRootHandler):
    """Comes before the server's own handler, and leaves all but the two things to it."""

    async def post(self) -> None:
        """Start a session; ``?fresh`` skips the notebook's checkpoint."""
        runtimes = getattr(self.kernel_manager, "runtimes", None)
        lock = asyncio.Lock() if runtimes is None else runtimes.bound.starting(self._path())
        async with lock:
            token = starting_fresh.set(self._fresh())
            try:
                await cast("Awaitable[None]", super().post())
            finally:
                starting_fresh.reset(token)

    def _fresh(self) -> bool:
        value = self.get_query_argument("fresh", None)
        return value is not None and value.lower() not in ("0", "false")

    def _path(self) -> str:
        """The path that the session is for; what cannot be read is for the base to refuse."""
        try:
            body: Any = self.get_json_body()
        except web.HTTPError:
            return ""
        return str(body.get("path", "")) if isinstance(body, dict) else ""


SESSION_HANDLERS = [("/api/sessions", SessionsHandler)]
