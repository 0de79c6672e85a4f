"""Reading the saved memory of a checkpoint, piece by piece and from any process.

A :class:`PagesDescription` is plain data: the agent gets one from the store
(:meth:`~.store.Store.pages`), hands it on as JSON, and whoever serves a kernel's memory opens it by
itself. What the description names must not be deleted meanwhile; that is the agent's part.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

from msgspec import Struct

from ..errors import CheckpointDamaged


class PageSource(ABC):
    """The pages files (``pages-N.img``) of one checkpoint. Safe to use from many threads."""

    @abstractmethod
    def files(self) -> dict[str, int]:
        """The size in bytes of each pages file, by its name in the images' directory."""

    @abstractmethod
    def read_into(self, name: str, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` (writable bytes) with the content of file ``name`` from ``offset`` on.

        Nothing is handed out before it was compared with its hash: after an error what is in the
        buffer means nothing. Reads whole pages fastest.

        Raises
        ------
        CheckpointDamaged
            If the content is missing or is not what was saved.
        ValueError
            If that is beyond the file's end, or there is no such file.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of what is open; nobody may be reading."""

    def read(self, name: str, offset: int, size: int) -> memoryview:
        """As :meth:`read_into`, with a buffer of its own."""
        buffer = memoryview(bytearray(size))
        self.read_into(name, offset, buffer)
        return buffer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class PagesDescription(Struct, frozen=True, kw_only=True):
    """Where the pages of one checkpoint are and what they must be; JSON between processes."""

    def open(self) -> PageSource:
        """Ready to read. Blocking.

        Raises
        ------
        CheckpointDamaged
            If what it names is missing or cannot be read.
        """
        raise NotImplementedError


def damaged(checkpoint_id: str, reason: str) -> CheckpointDamaged:
    """The error that names a checkpoint of which something is missing or changed."""
    return CheckpointDamaged(
        f"Checkpoint {checkpoint_id} is damaged.",
        reason=reason,
        hint="It cannot be resumed. Use another checkpoint of this kernel, and delete this one.",
    )
