"""The processes that bring a resumed kernel's memory: find them, stop them while they do."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

from jupyter_checkpoints.agent import process
from jupyter_checkpoints.models import KernelModel

from .agents import Agent, wait_until


class Pagers:
    """The pair of one kernel, which is bringing its memory and stands still."""

    def __init__(self, agent: Agent, kernel_id: str) -> None:
        self._mark = f"pager:{agent.layout.instance}/{kernel_id}."
        self.stop()

    def pids(self) -> list[int]:
        return process.marked(self._mark)

    def worker(self) -> int:
        """The one that brings the memory; the other is its parent, or has ended."""
        [worker] = [pid for pid in self.pids() if _parent(pid) in self.pids()]
        return worker

    def keeper(self) -> int:
        return _parent(self.worker())

    def stop(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, signum: int) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):  # all memory was there
                os.kill(pid, signum)

    def kill(self, pid: int) -> None:
        """Kill one, and wait until the other has replaced it."""
        before = set(self.pids())
        os.kill(pid, signal.SIGKILL)
        self.go_on()
        wait_until(lambda: not (now := set(self.pids())) or (len(now) == 2 and now != before))


async def caught(
    agent: Agent, resume: Callable[[], Awaitable[KernelModel]]
) -> tuple[KernelModel, Pagers]:
    """Resume a kernel and stop its pagers before all memory is there."""
    for _ in range(20):
        model = await resume()
        pagers = Pagers(agent, model.id)
        if len(pagers.pids()) == 2 and _arriving(agent, model.id):
            return model, pagers
        pagers.go_on()
    raise AssertionError("never caught in time")


def _arriving(agent: Agent, kernel_id: str) -> bool:
    bundles = [p for p in agent.layout.kernel(kernel_id).iterdir() if p.name.isdigit()]
    newest = max(bundles, key=lambda path: int(path.name))
    return (newest / "pager.sock").exists() and not (newest / "pager.json").exists()


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
