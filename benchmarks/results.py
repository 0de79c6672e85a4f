"""What the benchmark measures, as plain data. Times are seconds, sizes bytes."""

from __future__ import annotations

from msgspec import Struct, field


class ResumeResult(Struct, frozen=True, kw_only=True):
    """Resuming a checkpoint in a new kernel; medians, all of the same resumes."""

    engine_first_cell_s: float
    """From when the agent tells its engine to restore, to the reply to the first cell."""
    first_cell_s: float
    """The same from the client's call of the agent, so with preflight and all that is verified."""
    all_touched_s: float
    """From that call to the reply to a second cell, which reads all of the memory."""


class SizeResult(Struct, frozen=True, kw_only=True):
    """Saving and resuming a kernel that holds ``gib`` GiB of random numbers.

    Medians of the repeats; of the floors the fastest, as that is what a floor is.
    """

    gib: float
    pause_s: float
    """How long the kernel stood still, as the agent says."""
    pause_seen_s: float
    """The longest gap that a thread of the kernel saw between two looks at the clock."""
    save_s: float
    """From the request to the committed checkpoint, as a client sees it."""
    cold_start_s: float
    """A fresh kernel of the same image, from the client's call to the reply to its first cell."""
    lazy: ResumeResult
    """As the agent resumes by default."""
    eager: ResumeResult
    """With all memory there before the kernel goes on (``lazy_resume=off``)."""
    bytes_held: int
    floor_write_s: float
    """Writing as many bytes as the process images have into one file, and ``fsync``."""
    floor_read_s: float
    """Reading that file into fresh memory."""
    repeats: int

    @property
    def save_over_floor(self) -> float:
        return self.save_s / self.floor_write_s

    @property
    def touched_over_eager(self) -> float:
        return self.lazy.all_touched_s / self.eager.all_touched_s


class ChangeResult(Struct, frozen=True, kw_only=True):
    """Further saves of a kernel, each after a share of its pages was written, here and there."""

    gib: float
    changed: float
    pause_s: float
    save_s: float
    bytes_added: int
    """What the store holds more than before."""
    repeats: int


class PrecopyResult(Struct, frozen=True, kw_only=True):
    """First saves of a kernel that was copied ahead of them, and has done nothing since."""

    gib: float
    precopy_s: float
    """From the request to copy ahead to its end; the kernel goes on meanwhile."""
    pause_s: float
    save_s: float
    bytes_added: int
    """What the store holds more than after the pre-copy."""
    repeats: int


class TenResult(Struct, frozen=True, kw_only=True):
    """Ten checkpoints of one kernel, of whose pages 1 % were written before each but the first.

    Bytes that the store's files have on the disk, and not their lengths. The files of the container
    are not among them: their snapshots share what is the same.
    """

    gib: float
    bytes_one: int
    bytes_ten: int


class RemixesResult(Struct, frozen=True, kw_only=True):
    """Ten kernels that were resumed from one checkpoint, all of their memory there.

    Their processes' proportional set sizes (``smaps_rollup``), so what they share counts once.
    """

    gib: float
    bytes_one: int
    """Of one, while it was the only one."""
    bytes_ten: int


class LoopResult(Struct, frozen=True, kw_only=True):
    """How long one event loop stood still, and kept a request waiting; see :mod:`.loops`."""

    loop: str
    """``agent``, ``server``, or ``nobody's``: one that had nothing to do, asked meanwhile."""
    during: str
    """``idle``, ``save`` or ``resume``."""
    held_s: float | None
    """The longest that one callback held it; ``None`` for nobody's."""
    worst_s: float
    p99_s: float
    requests: int


class ServerResult(Struct, frozen=True, kw_only=True):
    """A Jupyter Server with further kernels, one of which is saved and resumed by REST."""

    gib: float
    others: int
    """Kernels that run besides, and are listed."""
    first_cell_s: float
    """From the REST call that resumes to the reply to the first cell; the median."""
    loops: list[LoopResult]
    repeats: int


class StartResult(Struct, frozen=True, kw_only=True):
    """Starting a kernel, to its answer to ``kernel_info``; medians of alternating starts."""

    container_s: float
    plain_s: float
    extra_s: float
    repeats: int


class RivalResult(Struct, frozen=True, kw_only=True):
    """Another tool with the same amount of data; without numbers where it cannot run here."""

    tool: str
    version: str = ""
    unavailable: str = ""
    gib: float | None = None
    pause_s: float | None = None
    save_s: float | None = None
    resume_s: float | None = None
    """To the first cell, or, for tools that know no cells, to the first sign of life."""
    bytes_held: int | None = None


class Missing(Struct, frozen=True, kw_only=True):
    """What was to be measured and was not."""

    what: str
    why: str


class Host(Struct, frozen=True, kw_only=True):
    """Where this was measured."""

    machine: str
    processor: str
    processors: int
    memory: int
    kernel: str
    engine: str
    pool: str
    criu: str
    runc: str
    version: str


class Report(Struct, kw_only=True):
    """Everything; filled as it is measured. With ``--json`` printed as one line."""

    host: Host
    cold: bool
    """Whether checkpoints were dropped from the page cache before they were resumed."""
    start: StartResult | None = None
    sizes: list[SizeResult] = field(default_factory=list)
    changes: list[ChangeResult] = field(default_factory=list)
    precopies: list[PrecopyResult] = field(default_factory=list)
    tens: list[TenResult] = field(default_factory=list)
    remixes: list[RemixesResult] = field(default_factory=list)
    servers: list[ServerResult] = field(default_factory=list)
    rivals: list[RivalResult] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
