"""Programs of an unpacked tree of packages, bound to that tree's dynamic loader and libraries.

So a newer distribution's program runs on this host, and nothing of the host's own is loaded.
"""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ..errors import HostNotReady
from .tools import SETUP_HINT, child_environment

_SECONDS = 60
_HINT = "Point apt at a complete Debian mirror, or install a newer version of the program yourself."


def bind(tree: Path, programs: Sequence[Path]) -> None:
    """Make ``programs`` of ``tree`` use the tree's loader and libraries. Blocking.

    Called for a tree that :func:`.debian.bootstrap` has made, which must not move afterwards.

    Raises
    ------
    HostNotReady
        If patchelf is missing or fails, or if a library would come from outside the tree.
    """
    multiarch = f"{platform.machine()}-linux-gnu"
    directories = [
        path
        for path in (tree / "usr" / "lib" / multiarch, tree / "lib" / multiarch, tree / "usr/lib")
        if path.is_dir()
    ]
    loaders = [
        path for directory in directories for path in sorted(directory.glob("ld-linux*.so.*"))
    ]
    if not loaders:
        raise HostNotReady(
            "The Debian packages have an unknown layout",
            reason=f"no dynamic loader for {platform.machine()} among them",
            hint=_HINT,
        )
    for program in programs:
        # RPATH, not RUNPATH: only the former also holds for the libraries that libraries need.
        _patchelf(
            "--set-interpreter",
            loaders[0],
            "--force-rpath",
            "--set-rpath",
            ":".join(map(str, directories)),
            program,
        )
        _refuse_foreign_libraries(tree, loaders[0], program)


def _refuse_foreign_libraries(tree: Path, loader: Path, program: Path) -> None:
    """A library from outside would be of another C library's make, and fail when it is needed."""
    listed = subprocess.run(
        [loader, "--list", program],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    missing = re.findall(r"^\s*(\S+) => not found", listed.stdout, re.MULTILINE)
    foreign = [
        path
        for path in re.findall(r"=> (/\S+) \(", listed.stdout)
        if not Path(path).is_relative_to(tree)
    ]
    if listed.returncode != 0 or missing or foreign:
        raise HostNotReady(
            f"The libraries of {program.name} are not complete",
            reason=", ".join([*missing, *foreign]) or listed.stderr.strip(),
            hint=_HINT,
        )


def _patchelf(*arguments: object) -> None:
    try:
        done = subprocess.run(
            ["patchelf", *map(str, arguments)],
            env=child_environment(),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise HostNotReady(
            "patchelf is not installed", reason="it sets the path of libraries", hint=SETUP_HINT
        ) from error
    if done.returncode != 0:
        raise HostNotReady(
            f"patchelf failed on {arguments[-1]}",
            reason=done.stderr.strip(),
            hint="Update patchelf.",
        )
