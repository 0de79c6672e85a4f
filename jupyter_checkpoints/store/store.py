"""The store's interface: what is kept of a checkpoint, and how it becomes one.

A checkpoint is a manifest (facts, small) and files (process images). It exists from the moment
its manifest has its final name; before that it is *staged*, and a crash leaves only a staging
directory, which the next start removes. The writable layer's snapshot is kept by the pool
(:mod:`jupyter_checkpoints.agent.rootfs`) under the checkpoint's id, and the store records its
digest, so that one manifest vouches for both.

Memory that was copied ahead of a save is a *pre-copy*: no checkpoint, without a manifest, and gone
with the process that has the store.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from msgspec import Struct

from ..models import (
    CheckpointModel,
    ConnectionInfo,
    Grantee,
    RepairReport,
    Verification,
    VerifyReport,
)
from .intake import Intake
from .pack import Array
from .source import PagesDescription

#: The version of :class:`Manifest` that is written, and the newest that can be read.
MANIFEST_VERSION = 1

#: Seconds for which what no checkpoint needs any more can still be read.
GRACE = 60.0

#: Called with (bytes done, bytes in all) while something long runs; may be called from a thread.
Progress = Callable[[int, int], None]


class FileRecord(Struct, frozen=True, kw_only=True):
    """One file of a checkpoint: path relative to the checkpoint, size, BLAKE3 in hex."""

    path: str
    size: int
    digest: str


class Manifest(Struct, frozen=True, kw_only=True):
    """All that is known of one checkpoint; JSON on disk, 0600 (it holds the messages' key).

    ``version`` is read before anything else is interpreted.
    """

    version: int
    checkpoint: CheckpointModel
    connection: ConnectionInfo
    env: dict[str, str]
    cwd: str
    hostname: str = ""
    """The container's host name, which its processes keep wherever they are resumed."""
    machine_id: str = ""
    """Content of its /etc/machine-id; empty where it has none of ours."""
    files: list[FileRecord]
    """The process images; empty in ``filesystem`` mode."""
    tree_digest: str
    """Digest of the writable layer's tree, see :mod:`jupyter_checkpoints.store.tree`."""
    facts: dict[str, Any] = {}
    """What the engine needs to resume it and nobody else interprets."""


class Notes(Struct, frozen=True, kw_only=True):
    """What may change of a checkpoint after its commit; kept beside the manifest, not in it.

    So the manifest stays what was saved, to the byte, and its digest goes on to vouch for it.
    """

    name: str | None = None
    """``None``: as in the manifest."""
    pinned: bool = False
    touched: str = ""
    shares: list[Grantee] = []
    verified: Verification | None = None


class Staging(ABC):
    """A checkpoint in the making. Used by one save; never by two threads at once."""

    @property
    @abstractmethod
    def id(self) -> str:
        """The id the checkpoint will have."""

    @property
    @abstractmethod
    def images(self) -> Path:
        """The directory CRIU writes its images into (0700, on the store's file system)."""

    @property
    @abstractmethod
    def memory(self) -> Intake:
        """Takes memory that CRIU does not write.

        A pages file that is not among the images, but named by the page maps there, is made of it
        by :meth:`seal`.
        """

    @abstractmethod
    def inherited(self, space: str) -> Array:
        """The addresses that ``memory`` can :meth:`~.intake.Intake.keep`: (n, 2), in pages."""

    @abstractmethod
    def seal(self, progress: Progress | None = None) -> list[FileRecord]:
        """Hash and fsync every file under :attr:`images`. Blocking: call it in a thread.

        Raises
        ------
        SaveFailed
            If something that is neither a regular file nor a directory lies there, or not all
            memory was taken.
        InsufficientResources
            If the disk is full.
        """

    @abstractmethod
    def precopy(self, progress: Progress | None = None) -> bool:
        """End it as a pre-copy, which later stagings can be begun with; whether there is one now.

        It has the memory that was taken, and the images of the checkpoint that this one was begun
        with. It stays, under this staging's id, until :meth:`Store.forget`, or until its space is
        needed, or the store is closed. Blocking.

        Raises
        ------
        SaveFailed, InsufficientResources
            If it cannot be written; the staging is still there for :meth:`abandon`.
        """

    @abstractmethod
    def commit(self, manifest: Manifest) -> None:
        """Make it a checkpoint: everything fsynced, then one rename. Blocking.

        Raises
        ------
        InsufficientResources
            If the disk is full. The staging directory is still there for :meth:`abandon`.
        """

    @abstractmethod
    def abandon(self) -> None:
        """Remove all traces of it. Blocking; never raises for what is already gone."""


class Store(ABC):
    """What the agent asks of a store. All methods block: call them in a thread."""

    has_precopies = False
    """Whether a staging can become a pre-copy here."""

    @abstractmethod
    def begin(self, checkpoint_id: str, needed: int, parent: str = "") -> Staging:
        """Start a checkpoint of about ``needed`` bytes.

        ``parent`` is the checkpoint that the same processes were saved as, or came from, or a
        pre-copy of them; a store may keep only what is different from it.

        Raises
        ------
        InsufficientResources
            If free space (less a reserve) is smaller than that; nothing was frozen yet.
        Conflict
            If the id is taken.
        """

    @abstractmethod
    def forget(self, precopy_id: str) -> None:
        """Give a pre-copy up. Nothing happens if there is none of that id (any more)."""

    @abstractmethod
    def list(self) -> list[Manifest]:
        """All checkpoints, newest first. A damaged manifest is left out (and logged)."""

    @abstractmethod
    def load(self, checkpoint_id: str) -> Manifest:
        """One manifest, with its checkpoint's notes in the place of what was saved.

        Raises
        ------
        NotFound
            If there is none.
        CheckpointDamaged
            If it cannot be read, or has a version from the future.
        """

    @abstractmethod
    def annotate(self, checkpoint_id: str, change: Callable[[Notes], Notes]) -> None:
        """Change a checkpoint's notes, atomically. ``NotFound`` if there is no such checkpoint.

        Raises
        ------
        InsufficientResources
            If the disk is full; the notes are as before.
        """

    @abstractmethod
    def clone(self, checkpoint_id: str, manifest: Manifest) -> None:
        """Commit ``manifest``, a further checkpoint with the very files of ``checkpoint_id``.

        The files are shared where the file system can; deleting either leaves the other whole.

        Raises
        ------
        NotFound, CheckpointDamaged
            If there is no such checkpoint, or not all of it.
        Conflict, InsufficientResources
            As :meth:`begin`.
        """

    @abstractmethod
    def held(self, checkpoint_id: str) -> dict[tuple[int, int], int]:
        """Bytes on the disk by file (device and inode); empty if there is no such checkpoint.

        Also of a pre-copy.
        """

    @abstractmethod
    def pages(self, checkpoint_id: str) -> PagesDescription:
        """Where the saved memory of a committed checkpoint can be read, also by other processes.

        Raises
        ------
        NotFound, CheckpointDamaged
            As :meth:`load`.
        """

    @abstractmethod
    def read_image(self, checkpoint_id: str, name: str) -> bytes:
        """The content of one of the smaller process images, verified.

        Raises
        ------
        NotFound, CheckpointDamaged
            If there is no such checkpoint, or it has no such image.
        """

    @abstractmethod
    def materialise(
        self,
        checkpoint_id: str,
        directory: Path,
        progress: Progress | None = None,
        *,
        pages: bool = True,
        share: bool = True,
    ) -> None:
        """Put the process images of a checkpoint into an empty directory, for CRIU or an archive.

        All of it is compared with its hashes on the way.

        Parameters
        ----------
        pages:
            Whether the pages files are wanted too.
        share:
            Whether files may be shared with the store, where they can be: nobody may write to
            them then, and behind the end of a pages file there may be more.

        Raises
        ------
        NotFound, CheckpointDamaged
            If there is no such checkpoint, or not all of it; what is in the directory then is
            the caller's to remove.
        InsufficientResources
            If the disk is full.
        """

    @abstractmethod
    def materialised(
        self,
        checkpoint_id: str,
        progress: Progress | None = None,
        *,
        pages: bool = True,
        share: bool = True,
    ) -> AbstractContextManager[Path]:
        """A directory ``images`` with process images, for as long as it is entered.

        What a crash leaves of it is removed by :meth:`collect`. Errors as :meth:`materialise`.
        """

    @abstractmethod
    def verify(
        self, manifest: Manifest, progress: Progress | None = None, *, read_data: bool = True
    ) -> VerifyReport:
        """Read every file again and compare size and digest; never raises for damage.

        Without ``read_data`` only look whether all is there that has to be: takes milliseconds.
        """

    @abstractmethod
    def delete(self, checkpoint_id: str) -> None:
        """Take the manifest's name away first, then the files. ``NotFound`` if there is none."""

    @abstractmethod
    def collect(self) -> Sequence[str]:
        """Remove what crashes left (staging, half-deleted); the ids of what was removed.

        Called by the agent's start, before it serves anybody.
        """

    @abstractmethod
    def tidy(self, grace: float = GRACE) -> None:
        """Give back what no checkpoint has needed for ``grace`` seconds. Called now and then."""

    @abstractmethod
    def compress(self, age: float, stopped: Callable[[], bool] = lambda: False) -> int:
        """Store what was written ``age`` seconds ago or earlier in less space; bytes gained.

        Called now and then, in a thread of its own, as it may take long; it ends soon after
        ``stopped`` is true. Checkpoints may be read, made and deleted meanwhile.
        """

    @abstractmethod
    def repair(self) -> RepairReport:
        """Make anew what can be made anew, and name what is lost. Reads no pages."""

    @abstractmethod
    def close(self) -> None:
        """Let another process have the store."""
