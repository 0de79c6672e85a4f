"""Taking the memory of a container into a checkpoint, or a pre-copy, that is being made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from ..store.store import Staging
from . import criu, ranges
from .memory import PAGE, PORTION, Copy, ProcessMemory, anonymous, populated
from .ranges import Array
from .watching import Watch

#: Bytes of a process that are worth to be read while it runs; less is read while it stands still.
_WORTH = 16 * 2**20
#: Bytes that a pre-copy writes before it waits for the disk: it fills no cache that others need,
#: and whoever breaks it off has not to wait long.
_AT_ONCE = 64 * 2**20


class Taking:
    """The memory of one container on its way into one checkpoint. Used by one save, or pre-copy.

    Most of it is read while the processes run, and what they write meanwhile once more while they
    stand still. Methods block, and are called one after the other: call them in a thread.

    Parameters
    ----------
    watch:
        What was watched of the container's processes.
    parent:
        The checkpoint or pre-copy that ``staging`` was begun with.
    began:
        Called by each further thread that works for it.
    """

    def __init__(
        self,
        staging: Staging,
        watch: Watch,
        parent: str,
        began: Callable[[], None] = lambda: None,
    ) -> None:
        self._staging = staging
        self._watch = watch
        self._inherits = bool(parent) and watch.checkpoint == parent
        # Whatever comes of this save: what is watched from now on is not since that checkpoint.
        watch.checkpoint = ""
        self._copy = Copy(staging.memory, began)
        self._between: Callable[[], None] = lambda: None
        self._left_out: list[criu.LeftOut] = []
        #: By process, in the host's numbers: what of it is in the staging, as it was when the
        #: watch was asked last.
        self._known: dict[int, Array] = {}
        #: Spaces of which the watch was asked.
        self._asked: set[str] = set()

    def ahead(self, pids: Iterable[int]) -> None:
        """Read what there is while the processes run. May be called again before the next dump.

        Parameters
        ----------
        pids:
            The processes of the container, in the host's numbers.

        Raises
        ------
        OSError
            If what was read cannot be written.
        """
        pids = list(pids)
        self._watch.keep_only(set(pids))
        for pid, space in _spaces(pids).items():
            try:
                self._ahead(pid, space)
            except ProcessLookupError:
                continue  # it has ended

    def precopy(self, pids: Iterable[int], check: Callable[[], None]) -> None:
        """Read what there is, for a later save, and nothing else. Called once.

        Parameters
        ----------
        pids:
            As for :meth:`ahead`.
        check:
            Called again and again; what it raises ends it.

        Raises
        ------
        OSError
            If what was read cannot be written.
        """
        memory = self._staging.memory
        synced = 0

        def between() -> None:
            nonlocal synced
            check()
            if (memory.pages - synced) * PAGE >= _AT_ONCE:
                synced = memory.pages
                memory.sync()

        pids = list(pids)
        self._between = between
        self.ahead(pids)
        for pid, space in _spaces(pids).items():
            if space in self._asked:
                continue
            # Its pages are as they were in the parent, or have been written since. Of one that is
            # watched since another moment that cannot be said.
            if self._inherits or not self._watch.watches(pid):
                memory.keep(space, self._staging.inherited(space))
        self._copy.settle()
        self._watch.checkpoint = self._staging.id

    def _ahead(self, pid: int, space: str) -> None:
        if anonymous(pid) < _WORTH:
            return
        unchanged = self._watch.unchanged(pid)
        if not self._watch.watches(pid):
            return
        self._asked.add(space)
        known = self._known.pop(pid, None)
        if known is None and self._inherits:
            known = self._staging.inherited(space) * PAGE
            known = ranges.intersection(known, unchanged)
            self._staging.memory.keep(space, known // PAGE)
        elif known is not None:
            known = ranges.intersection(known, unchanged)
        else:
            known = ranges.EMPTY
        with ProcessMemory(pid) as memory:
            wanted = ranges.difference(populated(pid), known)
            # Where it is not known what is as it was in the parent, it is looked at. Not in the
            # window: that takes as long as the disk does.
            taken = self._copy.take(
                *(space, memory, wanted),
                all_of_it=False,
                compare=not self._inherits,
                between=self._between,
            )
        self._known[pid] = ranges.union(known, taken)

    def frozen(self, pids: Iterable[int]) -> None:
        """Read the rest of what a dump has left out, while its processes stand still.

        Raises
        ------
        OSError
            If a process cannot be read, or what was read cannot be written.
        ValueError
            If the images cannot be understood.
        """
        found = {space: pid for pid, space in _spaces(pids).items()}
        self._left_out = list(criu.left_out(self._staging.images))
        for process in self._left_out:
            pid = found[process.space]
            known = self._known.get(pid, ranges.EMPTY)
            known = ranges.intersection(known, self._watch.unchanged_of_frozen(pid))
            with ProcessMemory(pid) as memory:
                wanted = ranges.difference(process.lazy, known)
                self._copy.take(process.space, memory, wanted, all_of_it=True)

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
        self._watch.checkpoint = self._staging.id

    def close(self) -> None:
        """Let go of everything, also when the save has failed."""
        self._copy.close()


def _spaces(pids: Iterable[int]) -> dict[int, str]:
    """What CRIU's images call the memory of processes."""
    found = {}
    for pid in pids:
        try:
            status = Path(f"/proc/{pid}/status").read_text(errors="replace")
        except OSError:
            continue  # it has ended
        for line in status.splitlines():
            if line.startswith("NSpid:"):
                # As its container numbers it.
                found[pid] = f"pagemap-{line.split()[-1]}"
    return found
