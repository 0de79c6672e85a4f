"""What the disk and the memory of this machine need for the same bytes, with nothing else to do.

All functions block.
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

_PIECE = 16 * 2**20


def write_seconds(path: Path, size: int) -> float:
    """Write ``size`` random bytes into a new file and ``fsync`` it; the file is left there."""
    path.unlink(missing_ok=True)
    piece = os.urandom(_PIECE)
    began = time.perf_counter()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        for offset in range(0, size, _PIECE):
            os.write(fd, memoryview(piece)[: min(_PIECE, size - offset)])
        os.fsync(fd)
    finally:
        os.close(fd)
    return time.perf_counter() - began


def read_seconds(path: Path) -> float:
    """Read a file into memory that nobody has touched before."""
    size = path.stat().st_size
    began = time.perf_counter()
    with path.open("rb", buffering=0) as file, mmap.mmap(-1, max(1, size)) as memory:
        view = memoryview(memory)
        done = 0
        while done < size:
            done += file.readinto(view[done : done + _PIECE])
        elapsed = time.perf_counter() - began
        view.release()
    return elapsed


def forget(path: Path) -> None:
    """Drop a file, or all files below a directory, from the page cache."""
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        fd = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
