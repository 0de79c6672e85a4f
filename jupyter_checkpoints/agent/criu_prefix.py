"""CRIU in a prefix of its own, for hosts whose distribution has none or too old a one.

Debian's newest package and every library below it are unpacked into one directory, and the
program is told to use that directory's dynamic loader and libraries. Nothing of the host's own
changes, and nothing of the host's own is loaded.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .. import layout
from ..errors import HostNotReady
from . import debian, own_libraries
from .tools import MINIMUM_CRIU, SETUP_HINT, child_environment, program_version, version_tuple

#: CRIU comes from here: stable releases carry versions that are too old.
SUITE = "sid"
_KEPT = ("usr", "lib", "lib64")
_INSTALL_SECONDS = 600
_CHECK_SECONDS = 60


def check(criu: Path) -> None:
    """Let CRIU try what it needs of this host's kernel (``criu check``, some 100 ms).

    Called by ``setup`` and ``doctor``; needs root.

    Raises
    ------
    HostNotReady
        If something that every save or resume needs is missing; the reason names it.
    """
    try:
        done = subprocess.run(
            [criu, "check"],
            env=child_environment(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_CHECK_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostNotReady(f"{criu} does not run", reason=str(error), hint=SETUP_HINT) from error
    if done.returncode != 0:
        said = [line for line in done.stdout.splitlines() if "Error" in line] or ["it says nothing"]
        raise HostNotReady(
            "This kernel lacks what CRIU needs",
            reason=said[-1].strip(),
            hint="Use a kernel with CONFIG_CHECKPOINT_RESTORE and run as root on the host itself, "
            "not in a container.",
        )


def install(tell: debian.Tell, prefix: Path = layout.CRIU_PREFIX) -> str:
    """Install CRIU into ``prefix`` and return its version. Called by ``setup``, as root.

    ``prefix`` is a symbolic link to a directory beside it, switched over in one step and only to
    a CRIU that runs, is new enough and passes its own check; the former one is then removed.
    Takes about five seconds, and 30 MB.

    Raises
    ------
    HostNotReady
        If the packages cannot be had, or if what was installed does not work on this host.
    """
    prefix.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    with _lock(prefix):
        tree = Path(tempfile.mkdtemp(prefix=f"{prefix.name}-", dir=prefix.parent))
        try:
            tree.chmod(0o755)
            debian.bootstrap(
                tree,
                suite=SUITE,
                include=["criu"],
                variant="extract",
                tell=tell,
                timeout=_INSTALL_SECONDS,
            )
            criu = _lay_out(tree)
            version = program_version(criu)
            if version_tuple(version) < MINIMUM_CRIU:
                raise HostNotReady(
                    f"Debian {SUITE} has CRIU {version} only",
                    reason=f"{'.'.join(map(str, MINIMUM_CRIU))} or newer is needed",
                    hint="Point apt at a current Debian mirror, or install a newer CRIU yourself.",
                )
            check(criu)
            (tree / "VERSION").write_text(version + "\n")
            _switch(prefix, tree)
        except BaseException:
            shutil.rmtree(tree, ignore_errors=True)
            raise
    return version


def installed_version(prefix: Path = layout.CRIU_PREFIX) -> str:
    """The version that :func:`install` recorded; empty if there is none."""
    try:
        return (prefix / "VERSION").read_text().strip()
    except OSError:
        return ""


def _lay_out(tree: Path) -> Path:
    """Keep of a tree what CRIU needs, bound to it, and return ``bin/criu``."""
    program = tree / "usr" / "sbin" / "criu"
    own_libraries.bind(tree, [program])
    for entry in tree.iterdir():  # apt's state, empty /dev and /tmp: nobody needs them again
        if entry.name not in _KEPT:
            entry.unlink() if entry.is_symlink() else shutil.rmtree(entry)
    # A directory with nothing else in it: runc's PATH starts with it.
    link = tree / "bin" / "criu"
    link.parent.mkdir()
    link.symlink_to(os.path.relpath(program, link.parent))
    return link


def _switch(prefix: Path, tree: Path) -> None:
    link = tree.with_name(f".{tree.name}")
    link.symlink_to(tree.name)
    link.rename(prefix)
    # The former one, and what an interrupted installation left: the lock says nobody is at it.
    for directory in prefix.parent.glob(f"{prefix.name}-*"):
        if directory != tree:
            shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _lock(prefix: Path) -> Iterator[None]:
    with open(prefix.with_name(f".{prefix.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
