"""The programs that every container needs, found once: CRIU and runc."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from msgspec import Struct

from .. import layout
from ..errors import HostNotReady

#: Older versions fail on kernels from 6.16 on (vDSO, SO_PASSCRED).
MINIMUM_CRIU = (4, 2)
MINIMUM_RUNC = (1, 1)
SETUP_HINT = "Run `sudo jupyter checkpoints setup`, which installs what is missing."

_SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_VERSION_SECONDS = 20


class Tools(Struct, frozen=True, kw_only=True):
    """Where CRIU and runc are, and the environment that they are run in.

    ``env`` is the whole environment of a runc or CRIU child: nothing of the agent's own reaches
    it, and runc, which looks for ``criu`` on ``PATH``, finds the one named here.
    """

    criu: Path
    criu_version: str
    runc: Path
    runc_version: str
    env: dict[str, str]


def find_tools() -> Tools:
    """Find CRIU (the private prefix's, else the host's own) and runc.

    Called by the agent when it starts and by ``setup`` and ``doctor``. It runs both programs, for
    their versions, so it blocks for some 50 ms.

    Raises
    ------
    HostNotReady
        If one of them is missing, does not run or is too old.
    """
    criu = _locate("criu", layout.CRIU_PREFIX / "bin" / "criu")
    runc = _locate("runc")
    return Tools(
        criu=criu,
        criu_version=_require(criu, MINIMUM_CRIU),
        runc=runc,
        runc_version=_require(runc, MINIMUM_RUNC),
        # runc lives for milliseconds: collecting garbage would only make it slower.
        env={**child_environment(criu.parent), "GOGC": "off"},
    )


def child_environment(*first: Path) -> dict[str, str]:
    """The environment of a privileged child: ``first``, then the system's paths, and a locale."""
    return {
        "PATH": ":".join([*map(str, first), _SYSTEM_PATH]),
        "LANG": "C.UTF-8",
    }


def program_version(program: Path) -> str:
    """What ``PROGRAM --version`` says, as ``"4.2.1"``; used by ``setup`` to judge a candidate.

    Raises
    ------
    HostNotReady
        If the program does not run, or says no version.
    """
    try:
        done = subprocess.run(
            [program, "--version"],
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_VERSION_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostNotReady(f"{program} does not run", reason=str(error), hint=SETUP_HINT) from error
    found = re.search(r"\b(\d+(?:\.\d+)+)", done.stdout)
    if found is None:
        said = (done.stderr or done.stdout).strip() or f"it ended with status {done.returncode}"
        raise HostNotReady(f"{program} does not tell its version", reason=said, hint=SETUP_HINT)
    return found[1]


def version_tuple(version: str) -> tuple[int, ...]:
    """``"4.2.1"`` as ``(4, 2, 1)``, for comparing."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _locate(name: str, private: Path | None = None) -> Path:
    if private is not None and os.access(private, os.X_OK):
        return private
    # Not the agent's own PATH: a root process must not run what a user's directory offers.
    found = shutil.which(name, path=f"/usr/local/sbin:/usr/local/bin:{_SYSTEM_PATH}")
    if found is None:
        raise HostNotReady(
            f"{name} is not installed",
            reason=f"no `{name}` in the system's directories"
            + (f" nor at {private}" if private is not None else ""),
            hint=SETUP_HINT,
        )
    return Path(found)


def _require(program: Path, minimum: tuple[int, ...]) -> str:
    version = program_version(program)
    if version_tuple(version) < minimum:
        wanted = ".".join(map(str, minimum))
        raise HostNotReady(
            f"{program.name} {version} is too old",
            reason=f"{program} is older than {wanted}",
            hint=SETUP_HINT,
        )
    return version
