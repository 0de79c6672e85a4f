"""The plain data that client and agent exchange, and that manifests hold.

Everything here is an immutable :class:`msgspec.Struct`: it is validated when it is decoded, and
unknown fields are refused, so that a typing error in a request is an error and not a silence.
Sizes are bytes, times are seconds, moments are ISO 8601 strings in UTC.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

Mode = Literal["process", "filesystem"]
Trigger = Literal[
    "manual", "cull", "idle", "shutdown", "danger", "cell", "restart", "remix", "import"
]
KernelState = Literal["starting", "running", "saving", "stopped", "resuming", "exited"]
#: What tells one container from another, and is renewed where both live on.
Renewal = Literal["host_name", "machine_id"]
Severity = Literal["block", "warn"]

#: Where the connection file is inside every container. Argument vectors name it.
CONNECTION_FILE = "/run/jupyter/connection.json"
#: Where Python finds our IPython extension inside every container.
PYTHON_PATH = "/run/jupyter/python"
#: The ports every kernel binds, inside a network namespace of its own (below the ephemeral range).
PORTS = {
    "shell_port": 20001,
    "iopub_port": 20002,
    "stdin_port": 20003,
    "control_port": 20004,
    "hb_port": 20005,
}

#: Kernel, checkpoint and runtime ids: never a path, never longer than a file name may be.
ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z"
_NO_ID_OR = r"^([A-Za-z0-9][A-Za-z0-9_-]{0,63})?\Z"
#: Names are for people's eyes: a line of text, without anything that moves a cursor.
_LINE = r"^[^\x00-\x1f\x7f]*\Z"
#: Image names, with an optional tag: ``python3``, ``jupyter/scipy:2026-11``.
IMAGE_PATTERN = r"^[a-z0-9][a-z0-9._/-]{0,127}(:[A-Za-z0-9._-]{1,64})?\Z"

Id = Annotated[str, Meta(pattern=ID_PATTERN)]
OptionalId = Annotated[str, Meta(pattern=_NO_ID_OR)]
ImageRef = Annotated[str, Meta(max_length=200)]
Name = Annotated[str, Meta(max_length=200, pattern=_LINE)]
#: A user by number, or everybody.
Grantee = int | Literal["*"]
Text = Annotated[str, Meta(max_length=65536)]

_ID = re.compile(ID_PATTERN)
_VOLUME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{1,127}")


def is_id(text: str) -> bool:
    """Whether ``text`` can be the id of a kernel, checkpoint or runtime."""
    return _ID.match(text) is not None


def is_volume(text: str) -> bool:
    """Whether ``text`` can be the name of a volume of Docker's; no absolute path is one."""
    return _VOLUME.fullmatch(text) is not None


class Mount(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A host directory, file or volume shown inside the container (bind mount, nosuid, nodev)."""

    source: Annotated[str, Meta(max_length=4096)]
    """An absolute path, or the name of a volume of Docker's."""
    target: Annotated[str, Meta(max_length=4096)]
    read_only: bool = False

    @property
    def volume(self) -> str:
        """The name of the volume; empty if it is a path of the host."""
        return self.source if is_volume(self.source) else ""


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of a container; ``None`` means the agent's default."""

    memory: Annotated[int, Meta(ge=16 * 2**20)] | None = None
    cpus: Annotated[float, Meta(gt=0)] | None = None
    pids: Annotated[int, Meta(ge=16)] | None = None


class ConnectionInfo(Struct, frozen=True, kw_only=True):
    """What a client needs to reach a kernel: the content of a Jupyter connection file."""

    ip: str
    shell_port: int
    iopub_port: int
    stdin_port: int
    control_port: int
    hb_port: int
    key: str
    transport: str = "tcp"
    signature_scheme: str = "hmac-sha256"
    kernel_name: str = ""


class ImageModel(Struct, frozen=True, kw_only=True):
    """One image: a read-only root file system, its digest and its recorded environment."""

    name: str
    digest: str
    created: str
    size: int
    env: dict[str, str] = {}
    cwd: str = "/"
    packages: dict[str, str] = {}
    """Python packages and their versions, where known; for the user's eyes."""
    source: str = ""
    """``build`` or ``import`` and what from."""


class StartRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /v1/kernels``: start a kernel's container, or resume a checkpoint in a new one.

    ``argv`` names :data:`CONNECTION_FILE`. ``key`` is the HMAC key of the Jupyter messages; a
    resumed kernel keeps the one it was saved with. With ``checkpoint`` the kernel is resumed from
    it: ``image``, ``argv`` and ``env`` are then the checkpoint's own and are left empty here.
    ``renew``: what of the checkpoint's the new kernel has anew.
    ``detached``: nobody stays attached to this kernel, so it is not ended when nobody is.
    """

    kernel_id: Id
    argv: Annotated[list[Text], Meta(max_length=256)] = field(default_factory=list)
    key: Annotated[str, Meta(max_length=256)] = ""
    image: ImageRef = ""
    env: dict[Annotated[str, Meta(max_length=256)], Text] = field(default_factory=dict)
    cwd: Annotated[str, Meta(max_length=4096)] = ""
    mounts: Annotated[list[Mount], Meta(max_length=64)] = field(default_factory=list)
    limits: Limits = Limits()
    mode: Mode = "process"
    kernel_name: Name = ""
    runtime: OptionalId = ""
    checkpoint: OptionalId = ""
    renew: Annotated[list[Renewal], Meta(max_length=2)] = field(default_factory=list)
    detached: bool = False


class ResumeRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /v1/kernels/{id}/resume``: put a kernel back, in place, to one of its checkpoints."""

    checkpoint: Id


class SaveRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /v1/kernels/{id}/checkpoints``. ``stop``: the kernel stops at the saved state."""

    name: Name = ""
    trigger: Trigger = "manual"
    mode: Mode | None = None
    stop: bool = False
    execution_count: Annotated[int, Meta(ge=0)] | None = None
    """The number of the last cell that the kernel has run, if the caller knows."""


class KernelPatch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``PATCH /v1/kernels/{id}``: what may change of a kernel; ``None`` leaves it.

    ``runtime``: whom its next checkpoints belong to. ``key``: with which it signs its messages
    from now on, as it has told its client.
    """

    runtime: Id | None = None
    key: Annotated[str, Meta(min_length=1, max_length=256)] | None = None


class CheckpointPatch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``PATCH /v1/checkpoints/{id}``: what may change of a checkpoint; ``None`` leaves it.

    ``touch``: the kernel has been found unchanged since, so that no second copy was made.
    """

    name: Name | None = None
    pinned: bool | None = None
    touch: bool = False


class CopyRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /v1/checkpoints/{id}/copy``: the first checkpoint of a remix; shares all data.

    ``mounts``: of the caller's own, for a checkpoint that somebody else has shared. Each takes the
    place of the one with the same target.
    """

    runtime: Id
    name: Name = ""
    mounts: Annotated[list[Mount], Meta(max_length=64)] = field(default_factory=list)


class SignalRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /v1/kernels/{id}/signal``: to the process group of the kernel, children included."""

    signum: Annotated[int, Meta(ge=1, le=64)]


class KernelModel(Struct, frozen=True, kw_only=True):
    """One kernel that the agent runs, or keeps stopped."""

    id: str
    state: KernelState
    image: str
    image_digest: str
    argv: list[str]
    mode: Mode
    created: str
    uid: int
    kernel_name: str = ""
    runtime: str = ""
    checkpoint: str = ""
    """The checkpoint it was last resumed from, or saved to and stopped at; empty if neither."""
    exit_code: int | None = None
    reason: str = ""
    """Why it was ended, if it was because it could not go on; empty if it ended by itself."""
    paused: bool = False
    """Somebody has its container stand still, with ``docker pause``: it does nothing until it is
    unpaused."""
    pid: int | None = None
    mounts: list[Mount] = []
    limits: Limits = Limits()
    detached: bool = False
    connection: ConnectionInfo | None = None
    memory: int | None = None
    """Bytes of memory in use now; only where one kernel is asked for."""
    cpu_seconds: float | None = None
    """Processor time that its container has used; only there."""


class HostFacts(Struct, frozen=True, kw_only=True):
    """What resuming depends on, recorded at the save and compared by preflight."""

    arch: str
    cpu_model: str
    cpu_flags: list[str]
    kernel_release: str
    criu_version: str
    runc_version: str
    engine: str
    pool: str
    boot_id: str


class Verification(Struct, frozen=True, kw_only=True):
    """When a checkpoint was last read again, whole, and what was found."""

    at: str
    ok: bool
    problems: list[str] = []


class CheckpointModel(Struct, frozen=True, kw_only=True):
    """One runtime checkpoint, as lists and ``show`` give it (no secrets in it)."""

    id: str
    kernel_id: str
    uid: int
    mode: Mode
    trigger: Trigger
    created: str
    image: str
    image_digest: str
    argv: list[str]
    host: HostFacts
    name: str = ""
    runtime: str = ""
    kernel_name: str = ""
    parent: str = ""
    """The checkpoint that the saved kernel had been resumed from, or saved to before."""
    stopped: bool = False
    """The kernel stopped at this very state, so that its connections can be resumed with it."""
    mounts: list[Mount] = []
    limits: Limits = Limits()
    memory_size: int = 0
    """Bytes of process images."""
    files_size: int = 0
    """Bytes of the container's own files (the writable layer), as held on disk."""
    pause_seconds: float = 0.0
    """How long the kernel stood still."""
    save_seconds: float = 0.0
    """From the request to the committed manifest."""
    pinned: bool = False
    """Never deleted by retention."""
    touched: str = ""
    """When its kernel was last found unchanged since; empty if never."""
    shares: list[Grantee] = []
    """Who else may make a copy of it; only its owner sees who."""
    cpu_seconds: float | None = None
    """Processor time that the kernel's container had used when its state was taken."""
    execution_count: int | None = None
    """The number of the last cell that the kernel had run; ``None`` if nobody knew."""
    verified: Verification | None = None
    """``None`` if it was not read again yet."""


def is_copy(checkpoint: CheckpointModel) -> bool:
    """Whether another kernel may live on from the very state that it holds."""
    return checkpoint.trigger in ("remix", "import")


def renewals(checkpoint: CheckpointModel) -> list[Renewal]:
    """What a container that begins with this checkpoint should have anew: nothing, or all."""
    return ["host_name", "machine_id"] if is_copy(checkpoint) else []


class Usage(Struct, frozen=True, kw_only=True):
    """``GET /v1/usage``: bytes on the disk. What copies share is counted once."""

    total: int
    checkpoints: dict[str, int]
    """What deleting just this one would free, by id."""
    held: dict[str, int] = {}
    """What each has on the disk, shared or not, by id."""
    precopies: int = 0
    """What was copied ahead of saves holds besides. It gives way to what needs its space."""


class Finding(Struct, frozen=True, kw_only=True):
    """One answer of preflight: a stable ``code``, one plain sentence, and what to do."""

    code: str
    severity: Severity
    message: str
    hint: str = ""


class PreflightReport(Struct, frozen=True, kw_only=True):
    """``GET /v1/checkpoints/{id}/preflight``; ``ok`` is false if any finding blocks."""

    ok: bool
    findings: list[Finding]


class VerifyReport(Struct, frozen=True, kw_only=True):
    """The outcome of reading every byte of a checkpoint again."""

    id: str
    ok: bool
    problems: list[str]
    bytes_read: int


class RepairReport(Struct, frozen=True, kw_only=True):
    """The outcome of ``POST /v1/repair``: what was made anew, and what cannot be."""

    repaired: list[str]
    """One sentence for each thing that was made anew."""
    lost: dict[str, list[str]]
    """What is missing of checkpoints, by id; it is not known of what is in the pages."""


class Status(Struct, frozen=True, kw_only=True):
    """``GET /v1/status``: who answers and what it can do."""

    version: str
    pid: int
    uid: int
    """The caller's uid, as the agent sees it."""
    engine: str
    pool: str
    criu_version: str
    runc_version: str
    kernels: int
    checkpoints: int
    problems: list[Finding]
    """What is missing on this host; empty when kernels can be started and saved."""


class Event(Struct, frozen=True, kw_only=True):
    """One line of a streamed answer (``application/x-ndjson``) to a long operation.

    ``progress`` lines come while it runs, then exactly one ``result`` (the model of what was made)
    or one ``error`` (see :meth:`jupyter_checkpoints.errors.CheckpointsError.to_json`).
    """

    event: Literal["progress", "result", "error"]
    stage: str = ""
    """One of ``preflight``, ``verify``, ``freeze``, ``dump``, ``pack``, ``commit``, ``restore``…"""
    done: int = 0
    total: int = 0
    """Bytes, where they are known; else 0."""
    message: str = ""
    result: Any = None
    error: dict[str, Any] | None = None
