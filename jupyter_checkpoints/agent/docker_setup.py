"""Register the OCI runtime ``jupyter-checkpoints`` with Docker Engine, and take it back.

Docker reads its configuration again at SIGHUP: it is never restarted, and no container notices.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from .. import layout
from ..errors import HostNotReady
from .debian import Tell
from .tools import Tools, find_tools

RUNTIME = "jupyter-checkpoints"
DAEMON_JSON = Path("/etc/docker/daemon.json")
PID_FILE = Path("/run/docker.pid")
_SOURCES = Path(__file__).with_name("docker_runtime")


def install_runtime(tools: Tools, directory: Path, requests: Path) -> tuple[Path, bool]:
    """Copy the runtime to ``directory``, for root alone to change; its program, and whether that
    was new. Blocking.

    Parameters
    ----------
    requests:
        Where agents leave their requests; the runtime looks nowhere else.
    """
    program, create = directory / "runtime", directory / "create"
    words = {
        "@REQUESTS@": requests,
        "@PYTHON@": _python(),
        "@CREATE@": create,
        "@RUNC@": tools.runc,
        "@PATH@": tools.env["PATH"],
    }
    text = (_SOURCES / "runtime.sh").read_text()
    for word, value in words.items():
        if "'" in str(value):
            raise HostNotReady(f"{value} cannot be part of the runtime: it has a quote in it.")
        text = text.replace(word, str(value))
    package = create / "agent"
    parts = {
        create / "__main__.py": _SOURCES / "__main__.py",
        package / "mounting.py": _SOURCES.with_name("mounting.py"),
        package / "docker_runtime" / "create.py": _SOURCES / "create.py",
    }
    # The program last: it is what Docker knows.
    wanted = {path: (source.read_text(), 0o644) for path, source in parts.items()}
    wanted[program] = text, 0o755
    if all(p.is_file() and p.read_text() == content for p, (content, _) in wanted.items()):
        return program, False
    (package / "docker_runtime").mkdir(parents=True, exist_ok=True)
    for made in (directory, create, package, package / "docker_runtime"):
        made.chmod(0o755)
    for path, (content, mode) in wanted.items():
        # By rename: Docker may be running the former one.
        temporary = path.with_suffix(".new")
        temporary.write_text(content)
        temporary.chmod(mode)
        os.replace(temporary, path)
    return program, True


def register(
    tell: Tell,
    daemon_json: Path = DAEMON_JSON,
    pid_file: Path = PID_FILE,
    directory: Path = layout.DOCKER_RUNTIME,
) -> tuple[bool, str]:
    """Make Docker know the runtime; whether anything was changed, and what to say. Blocking.

    Called by ``setup --engine docker``, as root.

    Raises
    ------
    HostNotReady
        If there is no Docker Engine, or its configuration is not what it should be.
    """
    if shutil.which("dockerd", path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin") is None:
        raise HostNotReady(
            "There is no Docker Engine on this host",
            reason="no `dockerd` in the system's directories",
            hint="Install docker.io or docker-ce first; or do without: `setup` alone suffices.",
        )
    program, changed = install_runtime(find_tools(), directory, layout.REQUESTS)
    configuration = _configuration(daemon_json)
    runtimes = configuration.setdefault("runtimes", {})
    if not isinstance(runtimes, dict):
        raise HostNotReady(f"`runtimes` in {daemon_json} is not an object.")
    if runtimes.get(RUNTIME) != {"path": str(program)}:
        runtimes[RUNTIME] = {"path": str(program)}
        _write(daemon_json, configuration)
        changed = True
    if changed:
        tell("telling Docker to read its configuration again")
    return changed, f"runtime {RUNTIME} in {daemon_json}; {_reload(pid_file)}"


def unregister(
    tell: Tell,
    daemon_json: Path = DAEMON_JSON,
    pid_file: Path = PID_FILE,
    directory: Path = layout.DOCKER_RUNTIME,
) -> tuple[bool, str]:
    """Take back what :func:`register` did. Blocking."""
    configuration = _configuration(daemon_json)
    runtimes = configuration.get("runtimes")
    changed = isinstance(runtimes, dict) and RUNTIME in runtimes
    said = "it was not registered"
    if isinstance(runtimes, dict) and changed:
        # An empty object stays: without `runtimes` a running Docker would keep those it has.
        del runtimes[RUNTIME]
        _write(daemon_json, configuration)
        tell("telling Docker to read its configuration again")
        said = f"removed from {daemon_json}; {_reload(pid_file)}"
    if directory.exists():
        shutil.rmtree(directory)
        changed = True
    return changed, said


def _configuration(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text() or "{}")
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise HostNotReady(
            f"{path} is not JSON; nothing was changed.",
            reason=str(error),
            hint="Correct it: Docker would not start with it either.",
        ) from error
    if not isinstance(found, dict):
        raise HostNotReady(f"{path} is not a JSON object; nothing was changed.")
    return found


def _write(path: Path, configuration: dict[str, Any]) -> None:
    """Replace the file whole; what was there before stays beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = 0o644
    if path.exists():
        mode = path.stat().st_mode & 0o777
        shutil.copy2(path, path.with_name(f"{path.name}.before-jupyter-checkpoints"))
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(configuration, indent=2) + "\n")
    temporary.chmod(mode)
    os.replace(temporary, path)


def _reload(pid_file: Path) -> str:
    try:
        pid = int(pid_file.read_text())
        if Path(f"/proc/{pid}/comm").read_text().strip() != "dockerd":
            raise ValueError
        os.kill(pid, signal.SIGHUP)
    except (OSError, ValueError):
        return "Docker does not run now, and will read it when it starts"
    return "Docker has read it"


def _python() -> Path:
    """A Python that ordinary users cannot change: the system's, or else the one that runs this."""
    system = Path("/usr/bin/python3")
    return system if system.exists() else Path(sys.executable).resolve()
