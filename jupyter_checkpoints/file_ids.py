"""Files that are still the same after a move that nobody told: jupyter_server_fileid's view.

Where that extension is installed, with its ``LocalFileIdManager``, a notebook is followed when it
is moved or renamed outside of Jupyter, also one that has not been saved with its runtime's id yet.
Without it, content and path have to do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)


class FileIds:
    """What is asked of the extension's manager; empty answers where there is none.

    It has to be asked on the event loop: its database belongs to that thread.

    Parameters
    ----------
    manager:
        Gives the manager, or ``None``. Extensions may be loaded after us, so it is asked late.
    """

    def __init__(self, manager: Callable[[], Any]) -> None:
        self._manager = manager

    def of(self, path: str) -> str:
        """The id of the file that contents call ``path``."""
        return self._ask("index", path)

    def path(self, file_id: str) -> str:
        """Where the file is now; empty if it is no more."""
        return self._ask("get_path", file_id)

    def _ask(self, question: str, about: str) -> str:
        manager = self._manager()
        if manager is None or not about:
            return ""
        try:
            return str(getattr(manager, question)(about) or "").strip("/")
        except Exception:  # it is somebody else's, and we can do without
            log.warning("jupyter_server_fileid cannot tell of %s", about, exc_info=True)
            return ""
