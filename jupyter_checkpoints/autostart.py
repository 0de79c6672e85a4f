"""Start an agent when none answers, so that a newcomer who is root never has to know of it.

Only for the host's own socket: whoever names another one runs an agent of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import anyio.to_thread

from . import layout
from .errors import AgentUnavailable, Conflict

#: Seconds an agent has from its start to its first answer; it may have to clean up before.
START_TIMEOUT = 15.0
#: Seconds in which another agent may still answer after the one started here has failed.
_GRACE = 1.0
#: The log of an agent that no service manager looks after; kept to about twice this size.
_LOG_SIZE = 2**20

ADMINISTRATOR_HINT = (
    f"Ask an administrator to run `sudo usermod --append --groups {layout.GROUP} USER`, and log in "
    "again. Kernels without runtime checkpoints work as before."
)


def host_socket() -> Path:
    """The socket of the host's own agent, whatever the environment says."""
    return layout.RUN_DIR / "agent.sock"


def log_file() -> Path:
    return layout.DATA_DIR / "agent.log"


def wanted(socket: Path, error: OSError | None) -> bool:
    """Whether an agent should be started because ``socket`` could not be connected to."""
    return (
        socket == host_socket()
        and os.geteuid() == 0
        and isinstance(error, (ConnectionRefusedError, FileNotFoundError))
    )


def how_to_start(socket: Path) -> str:
    """What to do about an agent that does not answer: the hint of :class:`AgentUnavailable`."""
    if socket != host_socket():
        given = (
            f"${layout.SOCKET_ENV} names this socket"
            if os.environ.get(layout.SOCKET_ENV) == str(socket)
            else "This socket was given explicitly"
        )
        return f"{given}, so no agent is started here. Start one that listens there."
    return (
        "An administrator can start it with `systemctl start jupyter-checkpoints.socket`, "
        "or in the foreground with `sudo jupyter checkpoints agent`."
    )


async def start_agent(answers: Callable[[], Awaitable[bool]]) -> None:
    """Start the host's agent and return when ``answers()`` is true.

    Any number of clients may do so at once: the agent holds a lock, and one that finds it taken
    ends, while its client waits for the other one.

    Raises
    ------
    AgentUnavailable
        If none answers in :data:`START_TIMEOUT` seconds; the reason is the end of its log.
    """
    process = await anyio.to_thread.run_sync(_spawn)
    deadline = anyio.current_time() + START_TIMEOUT
    while not await answers():
        # One that found the lock taken leaves another one to wait for; any other end is a failure.
        if process.returncode not in (None, Conflict.exit_code):
            deadline = min(deadline, anyio.current_time() + _GRACE)
        if anyio.current_time() > deadline:
            raise AgentUnavailable(
                f"The agent was started, but does not answer on {host_socket()}.",
                reason=await anyio.to_thread.run_sync(_log_end),
                hint=f"Its log is {log_file()}. `jupyter checkpoints setup` prepares this host.",
            )
        await anyio.sleep(0.05)


def _spawn() -> subprocess.Popen[bytes]:
    log = log_file()
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > _LOG_SIZE:
        log.replace(log.with_suffix(".log.1"))
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        process = subprocess.Popen(
            # -P: an agent run by root never imports from the directory its client stood in.
            [sys.executable, "-P", "-m", "jupyter_checkpoints.agent"],
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            cwd="/",
            start_new_session=True,
            # The environment of a notebook server is not for a host-wide service.
            env={
                name: value
                for name, value in os.environ.items()
                if name in {"PATH", "HOME", "LANG", "LC_ALL", "TZ", "PYTHONPATH"}
            },
        )
    finally:
        os.close(descriptor)
    # It outlives us, or not: either way somebody must reap it.
    threading.Thread(target=process.wait, name="agent-reaper", daemon=True).start()
    return process


def _log_end() -> str:
    try:
        return "\n".join(log_file().read_text(errors="replace").splitlines()[-5:])
    except OSError as error:
        return str(error)
