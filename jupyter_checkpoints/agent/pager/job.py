"""What the agent and a pager tell each other; plain data in files and lines of JSON."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from msgspec import Struct

#: The pager's answer to its job: CRIU may come.
READY = b"ready\n"
#: In the bundle: exists, and can be connected to, as long as memory is still arriving.
SOCKET = "pager.sock"
_OUTCOME = "pager.json"
#: Bytes of memory whose places are kept for the next resume.
_TOUCHED_BYTES = 64 * 2**20


class Job(Struct, frozen=True, kw_only=True):
    """One resume to serve."""

    operation: str
    """The mark by which it is found and ended, see :mod:`..process`."""
    bundle: str
    images: str
    """CRIU's images; of pages files only the pages that may not come later are needed."""
    pages: str
    """Where the pages are, see :func:`jupyter_checkpoints.store.pages.open_pages`."""
    touched: str
    """The file of :func:`load_touched`."""


class Outcome(Struct, frozen=True, kw_only=True):
    """How it ended: all memory is there, or why not. Then the container was killed."""

    error: str = ""

    def write(self, bundle: Path) -> None:
        _replace(bundle / _OUTCOME, msgspec.json.encode(self))

    @classmethod
    def read(cls, bundle: Path) -> Outcome | None:
        """None if it has not ended, or was killed."""
        try:
            return msgspec.json.decode((bundle / _OUTCOME).read_bytes(), type=cls)
        except (OSError, msgspec.MsgspecError):
            return None


def load_touched(path: Path) -> dict[int, list[tuple[int, int]]]:
    """What was touched first after earlier resumes of a checkpoint: ranges of memory by pid."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[int, list[tuple[int, int]]])
    except (OSError, msgspec.MsgspecError):
        return {}


def save_touched(
    path: Path, before: dict[int, list[tuple[int, int]]], now: list[tuple[int, int, int]]
) -> None:
    """Add what was waited for this time: (pid, start, end)."""
    known = {(pid, start, end) for pid, ranges in before.items() for start, end in ranges}
    size = sum(end - start for _, start, end in known)
    for pid, start, end in dict.fromkeys(now):
        if pid and (pid, start, end) not in known and size < _TOUCHED_BYTES:
            before.setdefault(pid, []).append((start, end))
            size += end - start
    path.parent.mkdir(mode=0o700, exist_ok=True)
    _replace(path, msgspec.json.encode(before))


def _replace(path: Path, content: bytes) -> None:
    # Two kernels may have been resumed from one checkpoint.
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    os.replace(temporary, path)
