"""Trees of Debian packages, made by mmdebstrap from the host's own mirror.

Both the private CRIU and the images of kernels come from here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import HostNotReady, InsufficientResources, OperationTimeout
from .tools import SETUP_HINT, child_environment

#: Called with one line that tells a person what is going on.
Tell = Callable[[str], None]

DEFAULT_MIRROR = "http://deb.debian.org/debian"
DEFAULT_SECURITY = "http://security.debian.org/debian-security"

#: Suites that are their own updates.
_ROLLING = {"sid", "unstable", "experimental"}
_ALLOW_EXPIRED = (
    'Acquire::Check-Valid-Until "false"',
    'Acquire::Check-Date "false"',
)
#: The lines of mmdebstrap that tell a person something.
_TOLD = ("I: running apt", "I: downloading", "I: extracting", "I: installing")
#: What apt says of a Release file past its Valid-Until.
_EXPIRED = ("is expired", "is not valid anymore", "Release file expired")


def bootstrap(
    target: Path,
    *,
    suite: str,
    include: Sequence[str],
    variant: str,
    mirrors: Sequence[str] = (),
    options: Sequence[str] = (),
    tell: Tell,
    timeout: float,
) -> None:
    """Make a tree of packages at ``target``, which must not exist.

    A mirror whose Release file is past its validity is used all the same, after saying so:
    its signature is checked in any case, only newer packages may be missing.

    Parameters
    ----------
    variant, options:
        mmdebstrap's ``--variant`` and more of its options.
    mirrors:
        URLs or lines of sources.list; default: the host's own Debian mirror.
    timeout:
        Seconds for all of it.

    Raises
    ------
    HostNotReady
        If mmdebstrap is missing or fails; the reason is its own last words.
    InsufficientResources
        If the disk is full.
    OperationTimeout
        If it takes longer than ``timeout``.
    """
    program = shutil.which("mmdebstrap", path=child_environment()["PATH"])
    if program is None:
        raise HostNotReady(
            "mmdebstrap is not installed",
            reason="it makes trees of Debian packages",
            hint=SETUP_HINT,
        )
    command = [
        program,
        f"--variant={variant}",
        f"--include={','.join(include)}",
        *(f"--aptopt={line}" for line in _proxy_settings()),
        *options,
    ]
    positional = [suite, str(target), *(mirrors or sources(suite))]
    try:
        _run([*command, *positional], tell, timeout)
    except _ReleaseExpired as expired:
        tell(
            f"the Debian mirror is out of date ({expired}); going on with it all the same: "
            "signatures are still checked, only newer packages may be missing"
        )
        shutil.rmtree(target, ignore_errors=True)
        _run(
            [*command, *(f"--aptopt={line}" for line in _ALLOW_EXPIRED), *positional], tell, timeout
        )


def sources(suite: str) -> list[str]:
    """Lines of sources.list for a Debian suite, with updates and security fixes where it has them.

    The mirrors are those that the host's apt uses, so that a site's local mirror is honoured.
    """
    mirror, security = _host_mirrors()
    lines = [f"deb {mirror} {suite} main"]
    if suite not in _ROLLING:
        lines.append(f"deb {mirror} {suite}-updates main")
        lines.append(f"deb {security} {suite}-security main")
    return lines


class _ReleaseExpired(Exception):
    """apt refused a Release file for its age only."""


def _run(command: Sequence[str], tell: Tell, timeout: float) -> None:
    environment = child_environment() | _proxy_variables()
    last: deque[str] = deque(maxlen=15)
    with subprocess.Popen(
        ["timeout", "--kill-after=10", str(timeout), *command],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as child:
        assert child.stderr is not None
        for line in child.stderr:
            line = line.strip()
            last.append(line)
            if line.startswith(_TOLD):
                tell(line.removeprefix("I: ").rstrip("."))
    if child.returncode == 0:
        return
    output = "\n".join(last)
    if child.returncode in (124, 137):
        raise OperationTimeout(
            "Installing Debian packages took too long",
            reason=f"ended after {timeout:.0f} s; last output:\n{output}",
            hint="Check the connection to the Debian mirror.",
        )
    if expired := next((line for line in last if any(word in line for word in _EXPIRED)), None):
        raise _ReleaseExpired(expired.removeprefix("E: ").partition(". ")[0])
    if "No space left on device" in output:
        raise InsufficientResources(
            "The disk is full",
            reason="while installing Debian packages",
            hint="Free some space, then run this again.",
        )
    raise HostNotReady(
        "mmdebstrap failed",
        reason=f"status {child.returncode}; last output:\n{output}",
        hint="Check the names of suite and packages, and the connection to the Debian mirror.",
    )


def _host_mirrors() -> tuple[str, str]:
    mirror, security = "", ""
    for row in _ask(
        "apt-get",
        "indextargets",
        "--format",
        "$(REPO_URI)|$(ORIGIN)|$(SUITE)",
        "Created-By: Packages",
    ):
        uri, _, rest = row.partition("|")
        origin, _, suite = rest.partition("|")
        if origin != "Debian" or not uri.startswith(("http://", "https://")):
            continue
        if suite.endswith("-security"):
            security = security or uri.rstrip("/")
        else:
            mirror = mirror or uri.rstrip("/")
    return mirror or DEFAULT_MIRROR, security or DEFAULT_SECURITY


def _proxy_settings() -> list[str]:
    """The host's apt settings of how to reach a mirror (mmdebstrap starts from none)."""
    rows = _ask("apt-config", "dump", "--no-empty", "--format", '%f "%v";%n')
    return [
        row
        for row in rows
        if row.lower().startswith(("acquire::http", "acquire::https", "acquire::retries"))
    ]


def _proxy_variables() -> dict[str, str]:
    names = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
    return {name: value for name, value in os.environ.items() if name.lower() in names}


def _ask(*command: str) -> list[str]:
    """The lines that an apt tool prints; none where there is no apt."""
    try:
        done = subprocess.run(
            command,
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []
