"""Ordinary users of this host, made for a test session and removed after it. Needs root."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_REPOSITORY = Path(__file__).parents[1]
_SECONDS = 120


@dataclass(frozen=True)
class User:
    """One user, his home directory, and a Python that he can run."""

    name: str
    uid: int
    gid: int
    groups: list[int]
    home: Path
    python: str
    environment: dict[str, str] = field(repr=False)

    def popen(
        self, *argv: str, env: dict[str, str] | None = None, **options: object
    ) -> subprocess.Popen[bytes]:
        """Start a program as this user, with all his groups and without anything of root's."""
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
            argv,
            **{"cwd": self.home, "stdin": subprocess.DEVNULL, **options},
            env={**self.environment, **(env or {})},
            user=self.uid,
            group=self.gid,
            extra_groups=self.groups,
        )

    def run(
        self, code: str, *arguments: str, text: str = "", env: dict[str, str] | None = None
    ) -> str:
        """Run Python code as this user, with ``text`` as its input; what it printed.

        It has to end without an error.
        """
        with self.popen(
            *(self.python, "-c", code, *arguments),
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                said, complaints = process.communicate(text.encode(), timeout=_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert process.returncode == 0, complaints.decode()
        return said.decode().strip()

    def processes(self) -> list[int]:
        """The processes that run as this user."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and entry.stat().st_uid == self.uid:
                    found.append(int(entry.name))
        return found


@dataclass(frozen=True)
class Users:
    """Two users, and the group that both are in."""

    alice: User
    bob: User
    group: str


@contextmanager
def reachable_python() -> Iterator[tuple[str, dict[str, str]]]:
    """An interpreter with this environment's packages that every user can run, wherever it lies."""
    root = Path(tempfile.mkdtemp(prefix="jupyter-checkpoints-python-"))
    root.chmod(0o755)
    packages = next(p for p in sys.path if p.endswith("site-packages"))
    inside = Path(packages).relative_to(sys.prefix)
    shown = {"python": sys.base_prefix, "venv": sys.prefix, "repository": str(_REPOSITORY)}
    try:
        for name, source in shown.items():
            (root / name).mkdir(mode=0o755)
            subprocess.run(["mount", "--bind", source, root / name], check=True)
        yield (
            f"{root}/python/bin/python3",
            {
                "PYTHONPATH": f"{root}/repository:{root}/venv/{inside}",
                "JUPYTER_CONFIG_PATH": f"{root}/venv/etc/jupyter",
                "JUPYTER_PATH": f"{root}/venv/share/jupyter",
                "PYTHONDONTWRITEBYTECODE": "1",
                # An interpreter that is linked dynamically looks where it was built for.
                "LD_LIBRARY_PATH": f"{root}/python/lib",
            },
        )
    finally:
        for name in shown:
            subprocess.run(["umount", "--lazy", root / name], check=False)
        for name in shown:
            (root / name).rmdir()
        root.rmdir()


@contextmanager
def made_group(name: str) -> Iterator[str]:
    subprocess.run(["groupadd", "--system", name], check=True)
    try:
        yield name
    finally:
        subprocess.run(["groupdel", name], check=True)


@contextmanager
def made_user(name: str, group: str, python: str, environment: dict[str, str]) -> Iterator[User]:
    """A user in ``group``, with a home directory; his processes and he are gone afterwards."""
    home = Path(tempfile.mkdtemp(prefix="jupyter-checkpoints-home-"))
    command = ["useradd", "--no-create-home", "--home-dir", str(home), "--user-group"]
    subprocess.run([*command, "--groups", group, "--shell", "/bin/sh", name], check=True)
    try:
        entry = pwd.getpwnam(name)
        os.chown(home, entry.pw_uid, entry.pw_gid)
        user = User(
            name=name,
            uid=entry.pw_uid,
            gid=entry.pw_gid,
            groups=[grp.getgrnam(group).gr_gid],
            home=home,
            python=python,
            environment={
                "HOME": str(home),
                "USER": name,
                "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
                "LANG": "C.UTF-8",
                **environment,
            },
        )
        yield user
        for pid in user.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    finally:
        subprocess.run(["userdel", "--force", name], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(home)


@contextmanager
def two_users() -> Iterator[Users]:
    """Make them, and what they need."""
    mark = secrets.token_hex(3)
    with (
        reachable_python() as (python, environment),
        made_group(f"jrc{mark}") as group,
        made_user(f"jrc{mark}a", group, python, environment) as first,
        made_user(f"jrc{mark}b", group, python, environment) as second,
    ):
        yield Users(first, second, group)
