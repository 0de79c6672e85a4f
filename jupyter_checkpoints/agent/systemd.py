"""The agent as a service of systemd, started by the first connection to its socket."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .. import layout
from ..errors import HostNotReady
from .tools import child_environment

UNITS = Path("/etc/systemd/system")
SOCKET, SERVICE = "jupyter-checkpoints.socket", "jupyter-checkpoints.service"
_SECONDS = 60


def is_running() -> bool:
    """Whether systemd runs this host (as ``sd_booted``)."""
    return Path("/run/systemd/system").is_dir()


def unit_files(python: str = sys.executable) -> dict[str, str]:
    """Names and texts of the units, for the agent of one Python environment."""
    return {
        SOCKET: f"""\
[Unit]
Description=Runtime checkpoints for Jupyter: the agent's socket

[Socket]
ListenStream={layout.RUN_DIR}/agent.sock
# The agent sets these anew from its own configuration (allowed_groups, socket_mode).
SocketMode=0660
SocketGroup={layout.GROUP}
DirectoryMode=0711

[Install]
WantedBy=sockets.target
""",
        SERVICE: f"""\
[Unit]
Description=Runtime checkpoints for Jupyter: the agent
Requires={SOCKET}
After={SOCKET} network.target local-fs.target

[Service]
ExecStart={_quoted(python)} -m jupyter_checkpoints.agent
# Settings of a site's own, http_proxy for instance.
EnvironmentFile=-/etc/default/jupyter-checkpoints
UMask=0077
# Kernels and what holds their pipes outlive the agent; the next one takes them over.
KillMode=process
Restart=on-failure
RestartSec=1
TasksMax=infinity
LimitCORE=0
# Nothing that gives the agent a mount namespace (Protect*=, Private*=): a later agent would not
# see the mounts of this one. Nothing that is made of seccomp or no_new_privs either
# (SystemCall*=, Restrict*=): kernels would inherit it, and a checkpoint would hold it.

[Install]
WantedBy=multi-user.target
Also={SOCKET}
""",
    }


def install(directory: Path = UNITS, python: str = sys.executable) -> bool:
    """Write the units and enable the socket; whether anything had to be changed.

    Called by ``setup``, as root, where :func:`is_running`.

    Raises
    ------
    HostNotReady
        If systemd refuses them.
    """
    changed = False
    for name, text in unit_files(python).items():
        path = directory / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            path.chmod(0o644)
            changed = True
    if changed:
        _systemctl("daemon-reload")
    if changed or not _is_enabled():
        _systemctl("enable", SOCKET)
        _systemctl("start", SOCKET)
        return True
    return False


def _is_enabled() -> bool:
    done = _run("is-enabled", "--quiet", SOCKET)
    return done.returncode == 0 and _run("is-active", "--quiet", SOCKET).returncode == 0


def _systemctl(*arguments: str) -> None:
    done = _run(*arguments)
    if done.returncode != 0:
        raise HostNotReady(
            f"systemctl {' '.join(arguments)} failed",
            reason=done.stderr.strip() or f"status {done.returncode}",
            hint=f"Look at `systemctl status {SOCKET}`.",
        )


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["systemctl", *arguments],
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostNotReady("systemctl does not answer", reason=str(error)) from error


def _quoted(argument: str) -> str:
    """An argument as systemd reads it in ``ExecStart``."""
    escaped = argument.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'.replace("%", "%%").replace("$", "$$")
