"""Whom tests' kernels belong to: root, and ordinary users that every host has."""

from __future__ import annotations

import os
import pwd
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = 0
#: nobody and games: of no more rights than anybody, and with nothing else to do.
USER, OTHER = (pwd.getpwnam(name).pw_uid for name in ("nobody", "games"))

CALLERS = [pytest.param(ROOT, id="root"), pytest.param(USER, id="user")]
#: For modules: their tests are run with kernels of root, and with kernels of an ordinary user.
for_all_callers = pytest.mark.for_all_callers
for_a_user = pytest.mark.for_a_user


@contextmanager
def directory_of(uid: int) -> Iterator[Path]:
    """A directory as a user's own are: nobody else gets in."""
    with tempfile.TemporaryDirectory(prefix="jupyter-checkpoints-notebooks-") as name:
        os.chown(name, uid, pwd.getpwuid(uid).pw_gid)
        yield Path(name)
