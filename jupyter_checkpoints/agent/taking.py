"""Taking the memory of a container into a checkpoint in the making, in a dump's frozen window."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..store.store import Staging
from . import criu, ranges
from .memory import PAGE, PORTION, Copy, ProcessMemory


class Taking:
    """The memory of one container on its way into one checkpoint. Used by one save.

    All methods block, and are called one after the other: call them in a thread.
    """

    def __init__(self, staging: Staging) -> None:
        self._staging = staging
        self._copy = Copy(staging.memory)
        self._left_out: list[criu.LeftOut] = []

    def frozen(self, pids: Iterable[int]) -> None:
        """Read what a dump has left out, while its processes stand still.

        Parameters
        ----------
        pids:
            The processes of the container, in the host's numbers.

        Raises
        ------
        OSError
            If a process cannot be read, or what was read cannot be written.
        ValueError
            If the images cannot be understood.
        """
        found = _by_container_pid(pids)
        self._left_out = list(criu.left_out(self._staging.images))
        for process in self._left_out:
            with ProcessMemory(found[process.pid]) as memory:
                self._copy.take(process.space, memory, process.lazy, all_of_it=True)

    def finish(self) -> None:
        """Let the checkpoint have all memory, and the images look as if CRIU had written it.

        Called when the dump has succeeded.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        self._copy.settle()
        for process in self._left_out:
            path = self._staging.images / process.file
            with path.open("rb") as file:
                for portion in ranges.portions(process.written, PORTION):
                    content = np.fromfile(file, np.uint8, ranges.size(portion))
                    rows = content.reshape(-1, PAGE)
                    self._staging.memory.write(process.space, portion // PAGE, rows)
            path.unlink()
            criu.mark_present(process.image)

    def close(self) -> None:
        """Let go of everything, also when the save has failed."""
        self._copy.close()


def _by_container_pid(pids: Iterable[int]) -> dict[int, int]:
    """The host's numbers of processes by those that they have in their container."""
    found = {}
    for pid in pids:
        try:
            status = Path(f"/proc/{pid}/status").read_text(errors="replace")
        except OSError:
            continue  # it has ended, or is about to be reaped
        for line in status.splitlines():
            if line.startswith("NSpid:"):
                found[int(line.split()[-1])] = pid
    return found
