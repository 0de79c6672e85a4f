"""The agent's side of a pager: one kept ready, told what to do, and watched to its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec

from .. import process
from .job import READY, SOCKET, Job, Outcome


class NoPager(Exception):
    """A pager did not come up."""


class Pager:
    """A pager that waits for its job. It ends by itself with the agent, until CRIU has come."""

    def __init__(self, run_dir: Path) -> None:
        """Start one, which blocks for a moment."""
        self._child = subprocess.Popen(
            # The last argument is for whoever looks at a list of processes.
            [sys.executable, "-I", "-m", __package__, str(run_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # It parts into two, which only a process with a single thread may.
            env={"OPENBLAS_NUM_THREADS": "1", **process.room_for_mark()},
            cwd="/",
            start_new_session=True,
        )

    @property
    def waits(self) -> bool:
        return self._child.poll() is None

    def serve(self, job: Job) -> None:
        """Tell it what to do; afterwards CRIU may come. Blocking.

        Raises
        ------
        NoPager
            If it is not able to.
        """
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            self._child.stdin.write(msgspec.json.encode(job) + b"\n")
            self._child.stdin.flush()
            answer = self._child.stdout.readline()
        except OSError:
            answer = b""
        if answer != READY:
            raise NoPager("the process that brings its memory did not come up")

    def leave(self) -> None:
        """CRIU has been there, or will not come: from now on it goes on by itself, or ends."""
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.close()
        self._child.stdout.close()

    def reap(self) -> None:
        """After its end. Blocking."""
        self._child.wait()


class Pagers:
    """Keeps one pager ready, as its start takes longer than a resume may. Of one engine."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._ready: Pager | None = None
        self._lock = asyncio.Lock()

    async def keep_ready(self) -> None:
        """Called at the start, and some time after each resume."""
        async with self._lock:
            if self._ready is None or not self._ready.waits:
                self._ready = await asyncio.to_thread(Pager, self._run_dir)

    async def serve(self, job: Job) -> Pager:
        """A pager that CRIU may come to now, for this job.

        Raises
        ------
        NoPager
        """
        ready, self._ready = self._ready, None
        if ready is None or not ready.waits:
            ready = await asyncio.to_thread(Pager, self._run_dir)
        try:
            await asyncio.to_thread(ready.serve, job)
        except BaseException:
            ready.leave()
            raise
        return ready

    def close(self) -> None:
        """The one that waits ends; those with a job go on. Blocking."""
        if self._ready is not None:
            self._ready.leave()
            self._ready.reap()


async def ended(bundle: Path) -> Outcome | None:
    """Wait until all memory of a container is there, or can never be; ``None``: they were killed.

    Also called by an agent that did not start the pager.
    """
    watching = await asyncio.to_thread(_watch, bundle)
    if watching is not None:
        with watching, contextlib.suppress(OSError):
            # Nobody ever accepts or says anything: this ends when the socket that listens does.
            await asyncio.get_running_loop().sock_recv(watching, 1)
    return await asyncio.to_thread(Outcome.read, bundle)


def lost(bundle: Path) -> bool:
    """Whether they were killed before all memory was there. Blocking."""
    watching = _watch(bundle)
    if watching is None:
        return Outcome.read(bundle) is None
    watching.close()
    return False


def _watch(bundle: Path) -> socket.socket | None:
    """Connect to a pager; None if it has ended."""
    directory = os.open(bundle, os.O_PATH | os.O_DIRECTORY)
    watching = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # A socket's path has 107 characters at most; the directory's alone may have more.
        watching.connect(f"/proc/self/fd/{directory}/{SOCKET}")
        watching.setblocking(False)
    except OSError:
        watching.close()
        return None
    finally:
        os.close(directory)
    return watching
