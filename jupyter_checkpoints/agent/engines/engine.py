"""What the agent asks of whatever runs containers. Plain data in and out.

An engine runs at most one container per kernel id. It knows nothing of users, stores, manifests
or HTTP. All methods are coroutines that never block the loop; they raise
:class:`~jupyter_checkpoints.errors.CheckpointsError` only.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import Struct

from ...models import Finding, Limits, Mode
from ...store.store import Staging
from ..background import Background
from ..identity import Identity, OpenMount

#: Called on the event loop when a container has ended: (kernel id, exit code, the reason where it
#: was ended because it could not go on).
OnExit = Callable[[str, int, str], None]


class RunsAs(Struct, frozen=True, kw_only=True):
    """With whose rights the processes of a container run; part of a checkpoint's facts.

    Root's kernels are root of the host. An ordinary user's are root of a user namespace, and he
    himself outside; or, where the host cannot do that, he inside too.
    """

    uid: int = 0
    user_namespace: bool = False

    def can_become(self, other: RunsAs) -> bool:
        """Whether saved processes can go on with the other's rights: these are part of them."""
        return self == other or (self.user_namespace and other.user_namespace)


class ContainerSpec(Struct, frozen=True, kw_only=True):
    """A container to make. ``connection_file`` is that file's content.

    ``mounts`` are open for as long as the call lasts that gets this, and no longer.
    """

    kernel_id: str
    identity: Identity
    """Whom the kernel runs as: it may do outside what this user may, and nothing else."""
    image_digest: str
    argv: list[str]
    env: dict[str, str]
    cwd: str
    hostname: str
    machine_id: str
    """Content of /etc/machine-id; empty: leave the image's."""
    mounts: list[OpenMount]
    limits: Limits
    connection_file: str
    iopub_port: int
    ports: list[int]
    """All ports of the Jupyter channels, iopub's among them."""


class Source(Struct, frozen=True, kw_only=True):
    """The checkpoint to make a container from."""

    checkpoint_id: str
    mode: Mode
    images: Path
    """CRIU's; with ``pages`` those files need only hold what may not come later."""
    keep_connections: bool
    """The kernel stopped at this state, here, and nothing has happened since: TCP is restored."""
    hostname: str = ""
    """The host name that the processes had when they were saved."""
    facts: dict[str, Any] = {}
    pages: str = ""
    """Where its memory can be read by and by, for
    :func:`~jupyter_checkpoints.store.pages.open_pages`; empty if all of it is to be there first."""


class Container(Struct, frozen=True, kw_only=True):
    """A running container."""

    pid: int
    address: str


class Saved(Struct, frozen=True, kw_only=True):
    """What a save took: processes into the staging, files into the pool."""

    pause_seconds: float
    cpu_seconds: float | None
    """Processor time of the container until then, where that is known."""
    facts: dict[str, Any]


class Adopted(Struct, frozen=True, kw_only=True):
    """A kernel that an earlier agent left: its container runs on, or has ended."""

    container: Container | None
    exit_code: int | None
    reason: str = ""
    """As in :data:`OnExit`."""


class NotLazily(Exception):
    """A container cannot be resumed while its memory arrives; it is as before the attempt."""


class Engine(ABC):
    """Runs, saves and resumes containers."""

    name: str

    def __init__(self, on_exit: OnExit) -> None:
        self.on_exit = on_exit

    @abstractmethod
    async def open(self, known: dict[str, bool], checkpoints: set[str]) -> dict[str, Adopted]:
        """Take over what runs, clean up what an earlier agent left half done.

        Called once at the agent's start, before anybody is served.

        Parameters
        ----------
        known:
            The kernels that the agent has records of, and whether each is stopped: a container
            of a stopped one has been saved and is ended. What belongs to others is removed.
        checkpoints:
            The committed checkpoints; snapshots of others are removed.
        """

    @abstractmethod
    def runs_as(self, identity: Identity) -> RunsAs:
        """What kernels of this user are here; raises ``NotAllowed`` if he can have none."""

    @abstractmethod
    def findings(self) -> list[Finding]:
        """What this host cannot do for kernels, for whoever asks for the agent's status."""

    @abstractmethod
    async def close(self) -> None:
        """Stop watching. Containers run on; what no container needs is let go."""

    @abstractmethod
    async def start(self, spec: ContainerSpec) -> Container:
        """Start a container, in place of the kernel's earlier one (same address) if it had one.

        Raises
        ------
        StartFailed
            With the reason; nothing of the attempt is left.
        """

    @abstractmethod
    async def resume(
        self, spec: ContainerSpec, source: Source, commit: Callable[[], None]
    ) -> Container:
        """Make a container from a checkpoint, in place of the kernel's earlier one if it had one.

        The earlier container is ended only when the new one runs: if the resume fails, it goes
        on as before. ``commit`` is called between the two; what it raises undoes the resume.

        Raises
        ------
        ResumeFailed, OperationTimeout
            With the reason; nothing of the attempt is left.
        NotLazily
            If all would be well with all its memory at once.
        """

    @abstractmethod
    async def save(
        self, kernel_id: str, staging: Staging, mode: Mode, *, parent: str, hold: bool
    ) -> Saved:
        """Save a running container; memory and files are taken in one frozen window.

        What is saved goes to ``staging``, which was begun with the checkpoint or pre-copy
        ``parent``; the files become a snapshot of its id.

        With ``hold`` it stays frozen and cut off from its clients afterwards, until
        :meth:`stop` (the checkpoint is committed) or :meth:`release` (it could not be).

        Raises
        ------
        SaveFailed, InsufficientResources, OperationTimeout
            The container goes on running and no snapshot is left.
        """

    @abstractmethod
    async def precopy(
        self,
        kernel_id: str,
        staging: Staging,
        *,
        parent: str,
        background: Background,
        check: Callable[[], None],
    ) -> None:
        """Copy the memory of a running container to ``staging``, ahead of a later save.

        It goes on running meanwhile. ``staging`` was begun with the checkpoint or pre-copy
        ``parent``, and becomes a pre-copy. ``check`` is called again and again, in a thread; what
        it raises ends it.

        Raises
        ------
        Conflict
            If it cannot be done now.
        HostNotReady
            If it would not make the next save shorter here.
        SaveFailed, InsufficientResources
            If it cannot be written.
        """

    @abstractmethod
    async def stop(self, kernel_id: str) -> None:
        """End a held container, which may have ended by itself. The kernel keeps its address."""

    @abstractmethod
    async def release(self, kernel_id: str) -> None:
        """Let a held container run on; nothing happens if it has ended."""

    @abstractmethod
    async def discard(self, checkpoint_id: str) -> None:
        """Remove what :meth:`save` put into the pool for a checkpoint."""

    @abstractmethod
    async def copy_snapshot(self, source: str, target: str) -> None:
        """A further snapshot with the content of ``source``'s, for the checkpoint ``target``."""

    @abstractmethod
    async def make_snapshot(self, checkpoint_id: str, fill: Callable[[Path], None]) -> None:
        """A snapshot for an imported checkpoint.

        ``fill`` is called in a thread with an empty directory and makes ``upper`` in it; if it
        raises, nothing is left.
        """

    @abstractmethod
    async def snapshot_durable(self, checkpoint_id: str) -> None:
        """Make a checkpoint's snapshot survive a power failure; called before the commit."""

    @abstractmethod
    async def snapshot_tree(self, checkpoint_id: str) -> Path:
        """The files of a checkpoint's writable layer, as a directory to read."""

    @abstractmethod
    async def show_connection(self, kernel_id: str, connection_file: str) -> None:
        """Change the content of the connection file that the container sees."""

    @abstractmethod
    async def signal(self, kernel_id: str, signum: int) -> None:
        """Send a signal to the kernel's process group; SIGKILL ends the whole container.

        Nothing happens if the container has ended.
        """

    @abstractmethod
    def is_paused(self, kernel_id: str) -> bool:
        """Whether somebody else than the agent has the kernel stand still (``docker pause``).

        It can be saved then, and stays paused; it is ended like any other.
        """

    @abstractmethod
    async def remove(self, kernel_id: str) -> None:
        """End the container and remove all of it: files, network, state. Idempotent."""

    @abstractmethod
    def address(self, kernel_id: str) -> str:
        """The kernel's address, its own through all its containers; empty before the first."""

    @abstractmethod
    def log_file(self, kernel_id: str) -> Path:
        """Where the container's output is written; older parts are beside it (``.1``, ``.2``)."""

    @abstractmethod
    async def lazily(self, spec: ContainerSpec) -> bool:
        """Whether this container can be resumed while its memory arrives."""

    @abstractmethod
    async def filled(self, kernel_id: str) -> None:
        """Wait until all memory of a resumed container is there, or it has ended.

        :meth:`save` does so by itself: a dump would take only what is there.
        """

    @abstractmethod
    async def unread(self, checkpoint_id: str, timeout: float) -> bool:
        """Wait until no kernel's memory arrives from a checkpoint any more; whether that is so."""

    @abstractmethod
    async def cpu_seconds(self, kernel_id: str) -> float | None:
        """Processor time that the container has used; ``None`` if that is not known."""

    @abstractmethod
    async def processes(self, kernel_id: str) -> list[int]:
        """The container's processes, as the host numbers them."""

    @abstractmethod
    async def memory(self, kernel_id: str) -> int:
        """Bytes of memory that the container uses now."""
