"""Child processes of the agent: bounded in time, marked, and never left behind.

Every child carries ``JUPYTER_CHECKPOINTS_OPERATION`` in its environment, inherited by whatever it
starts (runc starts CRIU, CRIU starts action scripts and the first process of a restored tree).
Ending an operation means ending all that carry its mark, also after a crash of the agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..errors import HostNotReady, OperationTimeout

log = logging.getLogger(__name__)

MARK = "JUPYTER_CHECKPOINTS_OPERATION"
_MARK_ROOM = 120

#: Seconds between two looks for a dead child, and looks in a row that have to find one: a parent
#: that is merely kept from the processor waits for its child in time.
_LOOK_SECONDS = 0.5
_LOOKS = 10


def start_isolated(
    program: str, control: socket.socket, *arguments: str
) -> subprocess.Popen[bytes]:
    """Run a file of ours with nothing but the standard library; ``control`` is its input.

    It is no part of an operation, and outlives what its parent is told to end. Blocking.
    """
    return subprocess.Popen(
        [sys.executable, "-I", "-S", program, *arguments],
        stdin=control.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={},
        cwd="/",
        start_new_session=True,
    )


class CommandFailed(Exception):
    """A child ended with a status other than 0; ``output`` is what it printed."""

    def __init__(self, argv: Sequence[str], status: int, output: str) -> None:
        super().__init__(f"{argv[0]} ended with status {status}: {output.strip()[-2000:]}")
        self.argv = list(argv)
        self.status = status
        self.output = output


def room_for_mark() -> dict[str, str]:
    """The environment of a child that will :func:`mark_self` when it knows its operation."""
    return {MARK: " " * _MARK_ROOM}


def mark_self(operation: str) -> None:
    """Give this process, and whatever it forks, a mark: over what :func:`room_for_mark` has left.

    Raises
    ------
    ValueError
        If there is no room.
    """
    fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
    start, end = int(fields[47]), int(fields[48])
    environ = ctypes.string_at(start, end - start)
    room = f"{MARK}=".encode()
    at = environ.find(room + b" " * _MARK_ROOM)
    mark = operation.encode()
    if at < 0 or len(mark) > _MARK_ROOM:
        raise ValueError("no room for a mark")
    ctypes.memmove(start + at + len(room), mark.ljust(_MARK_ROOM), _MARK_ROOM)


def marked(operation: str) -> list[int]:
    """The processes of the operations whose mark starts with ``operation``."""
    wanted = f"{MARK}={operation}".encode()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            environ = Path("/proc", name, "environ").read_bytes()
        except OSError:
            continue
        if any(item.startswith(wanted) for item in environ.split(b"\0")):
            found.append(int(name))
    return found


def end_marked(operation: str) -> int:
    """Kill every process of the operations whose mark starts with ``operation``; how many."""
    ended = 0
    # A process that forks while we look is found in the next round.
    while pids := marked(operation):
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        ended += len(pids)
        if ended > 10_000:
            break
    return ended


def eldest(operation: str) -> int:
    """The process of an operation that started first; 0 if there is none."""
    ages = ((start_time(pid), pid) for pid in marked(operation))
    return min(((age, pid) for age, pid in ages if age is not None), default=(0, 0))[1]


def start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of ``pid``; None if it is gone or a zombie.

    With the pid it names one process for good: pids are used again, start times are not.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = stat.rsplit(")", 1)[1].split()
    return None if fields[0] in "ZX" else int(fields[19])


def runc_below(pid: int) -> int:
    """The only child of ``pid``, or ``pid`` itself if it has none."""
    children = _children(pid)
    return children[0] if len(children) == 1 else pid


async def end_if_bereft(parent: Callable[[], int], operation: str) -> None:
    """End an operation that waits for something dead; runs until it is cancelled.

    runc learns of CRIU's end when the last end of their socket is closed. In a user namespace a
    further process of CRIU's (usernsd) holds one, and is not ended with the first: a resume whose
    CRIU was killed would wait until its time is up. And at a save CRIU itself can wait for ever for
    a process that was killed while it held it, see :func:`_waits_in_vain`. ``parent`` says whose
    child CRIU is.
    """
    found = 0
    while found < _LOOKS:
        await asyncio.sleep(_LOOK_SECONDS)
        found = found + 1 if await asyncio.to_thread(lambda: _bereft(parent())) else 0
    log.warning("What it works on has died; ending what is left of %s", operation)
    await asyncio.to_thread(lambda: _end_children(parent()))
    await asyncio.to_thread(end_marked, operation)


def _bereft(parent: int) -> bool:
    return any(start_time(child) is None or _waits_in_vain(child) for child in _children(parent))


def _end_children(pid: int) -> None:
    # By their parent: CRIU's title has taken the place of its mark.
    for child in _children(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def _waits_in_vain(criu: int) -> bool:
    """Whether a process that CRIU holds for a dump is dead.

    It then waits for the process, and the process waits for CRIU to learn of the end of each of
    its threads. An end that CRIU does learn of leaves nothing behind.
    """
    return any(
        start_time(pid) is None and _status(pid, "TracerPid") == criu
        for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
    )


def dump_of(pid: int) -> int:
    """The CRIU that holds a process, and all of its container, for a dump; 0 if there is none."""
    criu = _status(pid, "TracerPid")
    try:
        return criu if criu and Path(f"/proc/{criu}/comm").read_text() == "criu\n" else 0
    except OSError:
        return 0


def end_dump_of(pid: int) -> None:
    """Kill the CRIU that holds a process, which is to end, too: what is dead it may not let go."""
    if criu := dump_of(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(criu, signal.SIGKILL)


async def dump_is_over(pid: int, timeout: float) -> None:
    """Wait until no CRIU holds a process: if nobody waits for it, it still lets go by itself.

    Killed, it would leave processes behind in the midst of what it has them do. So it is killed
    only if what it waits for has died, or if it holds them for more than ``timeout`` seconds.
    """
    vain = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            while (criu := await asyncio.to_thread(dump_of, pid)) and vain < _LOOKS:
                await asyncio.sleep(0.01 if vain == 0 else _LOOK_SECONDS)
                vain = vain + 1 if await asyncio.to_thread(_waits_in_vain, criu) else 0
    await asyncio.to_thread(end_dump_of, pid)


def _status(pid: int, key: str) -> int:
    """A number in what Linux tells of a process; 0 if it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return 0
    lines = text.splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0)


def _children(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in path.read_text().split()]
        except OSError:
            continue  # this thread has ended
    return found


async def run(
    *argv: str | os.PathLike[str],
    env: Mapping[str, str],
    timeout: float,
    operation: str = "",
    stdin: str | None = None,
    cwd: Path | None = None,
    runs_criu: bool = False,
    inherited: Sequence[int] = (),
) -> str:
    """Run one command to its end and return what it printed (stdout and stderr together).

    ``runs_criu``: it is a shell that runs CRIU, see :func:`end_if_bereft`.
    ``inherited``: descriptors that it gets under the same numbers; they are closed here, whatever
    happens.

    Raises
    ------
    CommandFailed
        If it ends with a status other than 0.
    OperationTimeout
        If it takes longer than ``timeout`` seconds; it and all it started are then gone.
    HostNotReady
        If the program is not there.
    """
    command = [os.fspath(a) for a in argv]
    mark = operation or uuid.uuid4().hex
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**env, MARK: mark},
            cwd=cwd,
            start_new_session=True,
            pass_fds=inherited,
        )
    except FileNotFoundError as error:
        raise HostNotReady(
            f"{command[0]} is not installed on this host.",
            reason=str(error),
            hint="Run `sudo jupyter checkpoints setup`.",
        ) from error
    finally:
        for fd in inherited:
            os.close(fd)
    watch = asyncio.ensure_future(end_if_bereft(lambda: process.pid, mark)) if runs_criu else None
    try:
        async with asyncio.timeout(timeout):
            output, _ = await process.communicate(None if stdin is None else stdin.encode())
    except BaseException as error:
        # Time is up, or the agent is stopping: nothing of this operation may go on.
        await asyncio.to_thread(end_marked, mark)
        await process.wait()
        if isinstance(error, TimeoutError):
            raise OperationTimeout(
                f"{Path(command[0]).name} did not end within {timeout:.0f} seconds.",
                reason="It was ended, with everything it had started.",
                hint="Look at the agent's log; try again when the host is less busy.",
            ) from None
        raise
    finally:
        if watch is not None:
            watch.cancel()
    text = output.decode(errors="replace")
    if process.returncode:
        raise CommandFailed(command, process.returncode, text)
    return text
