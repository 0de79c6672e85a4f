"""Opening the pages of a checkpoint, however they are kept: see :mod:`.source`."""

from __future__ import annotations

import msgspec

from .packed import PackedPages
from .plain import PlainPages
from .source import PagesDescription, PageSource

__all__ = ["PageSource", "PagesDescription", "open_pages"]


def open_pages(description: bytes | str) -> PageSource:
    """Open what another process described, as ``msgspec.json.encode(store.pages(id))``. Blocking.

    Raises
    ------
    CheckpointDamaged
        If what it names is missing or cannot be read.
    msgspec.MsgspecError
        If it is no description.
    """
    return msgspec.json.decode(description, type=PlainPages | PackedPages).open()
