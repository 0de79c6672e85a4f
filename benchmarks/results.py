"""What the benchmark measures, as plain data. Times are seconds, sizes bytes."""

from __future__ import annotations

from msgspec import Struct


class SizeResult(Struct, frozen=True, kw_only=True):
    """Saving and resuming a kernel that holds ``gib`` GiB of random numbers.

    Medians of the repeats; of the floors the fastest, as that is what a floor is.
    """

    gib: float
    pause_over_floor: float
    save_over_floor: float
    resume_over_floor: float
    held_over_data: float | None
    """``bytes_held`` by the bytes of the array; ``None`` where there is no array."""
    pause_s: float
    """How long the kernel stood still, as the agent says."""
    pause_seen_s: float
    """The longest gap that a thread of the kernel saw between two looks at the clock."""
    save_s: float
    """From the request to the committed checkpoint, as a client sees it."""
    resume_first_cell_s: float
    """From the start of a new kernel from the checkpoint to the reply to its first cell."""
    resume_all_touched_s: float
    """From there as well, to the reply to a second cell that reads all of the memory."""
    bytes_held: int
    floor_write_s: float
    """Writing as many bytes as the process images have into one file, and ``fsync``."""
    floor_read_s: float
    """Reading that file into fresh memory."""
    repeats: int


class ChangeResult(Struct, frozen=True, kw_only=True):
    """A further save of a kernel, after a share of its pages was written, here and there."""

    gib: float
    changed: float
    pause_s: float
    save_s: float
    bytes_added: int
    """What the store holds more than before."""


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


class Host(Struct, frozen=True, kw_only=True):
    """Where this was measured."""

    machine: str
    processors: int
    kernel: str
    engine: str
    pool: str
    criu: str
    runc: str
    version: str


class Report(Struct, frozen=True, kw_only=True):
    """Everything; with ``--json`` printed as one line."""

    host: Host
    results: list[SizeResult]
    changes: list[ChangeResult]
    start: StartResult | None
    rivals: list[RivalResult]
    cold: bool
    """Whether checkpoints were dropped from the page cache before they were resumed."""
