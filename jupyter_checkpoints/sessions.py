"""The server's sessions: which notebook a kernel belongs to, and giving it another kernel."""

from __future__ import annotations

from typing import Any

from jupyter_server.services.sessions.sessionmanager import SessionManager
from tornado import web


class Sessions:
    """What the extension asks of the session manager."""

    def __init__(self, manager: SessionManager) -> None:
        self._manager = manager

    async def path_of_kernel(self, kernel_id: str) -> str:
        """The path of the kernel's notebook; empty if it has no session, or one of a console."""
        for session in await self._manager.list_sessions():
            if session["kernel"]["id"] == kernel_id and session["type"] == "notebook":
                return str(session["path"])
        return ""

    async def of_notebook(self, path: str) -> dict[str, Any] | None:
        """The notebook's session, if it has one."""
        try:
            session: dict[str, Any] = await self._manager.get_session(path=path)
        except web.HTTPError:
            return None
        return session

    async def change_kernel(self, path: str, kernel_id: str) -> str:
        """Give the notebook's session another kernel; returns the id of the one it had, or ''."""
        session = await self.of_notebook(path)
        if session is None:
            await self._manager.create_session(
                path=path,
                name=path.rpartition("/")[2],  # type: ignore[arg-type]
                type="notebook",
                kernel_id=kernel_id,
            )
            return ""
        await self._manager.update_session(session["id"], kernel_id=kernel_id)
        former: str = session["kernel"]["id"]
        return former if former != kernel_id else ""
