"""Paths are resolved with the rights of whoever names them, and only once. Needs root."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jupyter_checkpoints.agent.identity import (
    ROOT,
    Identity,
    PathOpener,
    group_ids,
    identity_named,
    identity_of,
)
from jupyter_checkpoints.errors import InvalidRequest, NotAllowed
from jupyter_checkpoints.models import Mount

from .agents import wait_until

pytestmark = pytest.mark.anyio

#: Numbers that no user of the host has.
USER = Identity(uid=2_012_345_678, gid=2_012_345_678)
GROUP = 2_012_345_679


@pytest.fixture
def opener() -> Iterator[PathOpener]:
    opener = PathOpener()
    yield opener
    opener.close()


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of the user's own, reachable; pytest's own directories are not, for users."""
    home = Path(tempfile.mkdtemp(prefix="jupyter-checkpoints-test-"))
    os.chown(home, USER.uid, USER.gid)
    yield home
    shutil.rmtree(home)


async def _open(opener: PathOpener, identity: Identity, path: Path | str) -> os.stat_result:
    mount = Mount(source=str(path), target="/data")
    async with opener.opened(identity, [mount]) as (opened,):
        return os.fstat(opened.fd)


async def test_what_the_user_may_read_is_opened(opener: PathOpener, home: Path) -> None:
    file = home / "file"
    file.write_text("x")
    os.chown(file, USER.uid, USER.gid)
    file.chmod(0o400)
    (home / "link").symlink_to(file)
    mounts = [Mount(source=str(p), target=f"/{n}") for n, p in enumerate([home, file])]
    mounts.append(Mount(source=str(home / "link"), target="/2", read_only=True))
    async with opener.opened(USER, mounts) as opened:
        found = [os.fstat(m.fd) for m in opened]
        assert [m.directory for m in opened] == [True, False, False]
        assert [m.read_only for m in opened] == [False, False, True]
        fds = [m.fd for m in opened]
        assert not any(os.get_inheritable(fd) for fd in fds)
    assert [f.st_ino for f in found] == [p.stat().st_ino for p in (home, file, file)]
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


async def test_what_the_user_may_not_read_is_refused(opener: PathOpener, home: Path) -> None:
    secret = home / "secret"
    secret.mkdir(mode=0o700)
    (home / "link").symlink_to(secret)
    for path in map(str, (secret, home / "link", "/root", "/proc/1/root")):
        with pytest.raises(NotAllowed) as refused:
            await _open(opener, USER, path)
        assert str(USER.uid) in refused.value.reason
        assert path in refused.value.message
    # Searchable is not readable: what is in it is not listed for who mounts it, either.
    secret.chmod(0o711)
    with pytest.raises(NotAllowed):
        await _open(opener, USER, secret)
    assert (await _open(opener, ROOT, secret)).st_ino == secret.stat().st_ino


async def test_links_past_permissions_are_followed_for_nobody(opener: PathOpener) -> None:
    for identity in (USER, ROOT):
        with pytest.raises(InvalidRequest):
            await _open(opener, identity, "/proc/self/cwd")
    with pytest.raises(InvalidRequest):
        await _open(opener, ROOT, f"/proc/{os.getpid()}/root")


async def test_only_directories_and_files(opener: PathOpener, home: Path) -> None:
    os.mkfifo(home / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(home / "socket"))
        for path in (home / "fifo", home / "socket"):
            os.chown(path, USER.uid, USER.gid)
        for identity in (USER, ROOT):
            for path in (home / "fifo", home / "socket", Path("/dev/null"), home / "nothing"):
                with pytest.raises(InvalidRequest):
                    await _open(opener, identity, path)


async def test_groups_count(opener: PathOpener, home: Path) -> None:
    shared = home / "shared"
    shared.mkdir(mode=0o750)
    os.chown(shared, 0, GROUP)
    member = Identity(uid=USER.uid, gid=USER.gid, groups=[GROUP])
    assert (await _open(opener, member, shared)).st_gid == GROUP
    with pytest.raises(NotAllowed):
        await _open(opener, USER, shared)


_SWAP = """
import ctypes, os, sys
user, a, b = int(sys.argv[1]), *sys.argv[2:]
os.setgroups([]); os.setresgid(user, user, user); os.setresuid(user, user, user)
libc = ctypes.CDLL(None, use_errno=True)
print(flush=True)
while True:
    if libc.renameat2(-100, os.fsencode(a), -100, os.fsencode(b), 2):
        raise OSError(ctypes.get_errno(), "renameat2")
"""


async def test_a_link_swapped_while_it_is_opened_gains_nothing(
    opener: PathOpener, home: Path
) -> None:
    """A directory and a link to root's directory change places all the time."""
    secret = Path(tempfile.mkdtemp(prefix="jupyter-checkpoints-test-"))
    own, link = home / "own", home / "link"
    own.mkdir()
    os.chown(own, USER.uid, USER.gid)
    link.symlink_to(secret)
    os.chown(link, USER.uid, USER.gid, follow_symlinks=False)
    own_inode = own.stat().st_ino
    with subprocess.Popen(  # noqa: ASYNC220  (it takes a millisecond)
        [sys.executable, "-c", _SWAP, str(USER.uid), own, link], stdout=subprocess.PIPE
    ) as swapping:
        assert swapping.stdout is not None
        swapping.stdout.readline()
        seen = {"own": 0, "refused": 0}
        try:
            for _ in range(400):
                try:
                    found = await _open(opener, USER, own)
                except NotAllowed:
                    seen["refused"] += 1
                else:
                    assert found.st_ino == own_inode
                    seen["own"] += 1
        finally:
            swapping.kill()
        os.rmdir(secret)
    assert all(seen.values()), f"there was no race: {seen}"


async def test_a_helper_that_was_killed_is_replaced(opener: PathOpener, home: Path) -> None:
    await _open(opener, USER, home)
    assert opener._helper is not None
    os.kill(opener._helper.pid, signal.SIGKILL)
    helper = opener._helper.pid
    wait_until(lambda: "State:\tZ" in Path(f"/proc/{helper}/status").read_text())
    assert (await _open(opener, USER, home)).st_uid == USER.uid


def test_sizes(opener: PathOpener, home: Path) -> None:
    (home / "open").write_bytes(b"12345")
    (home / "closed").mkdir(mode=0o700)
    (home / "closed" / "file").write_bytes(b"123")
    paths = [str(home / p) for p in ("open", "closed/file", "nothing")]
    assert opener.sizes(USER, paths) == [5, None, None]
    assert opener.sizes(ROOT, paths) == [5, 3, None]


def test_identities() -> None:
    assert identity_of(0) == ROOT and identity_named("root") == ROOT
    nobody = identity_named("nobody")
    assert nobody == identity_of(nobody.uid)
    assert nobody.gid in nobody.groups
    assert identity_of(USER.uid, USER.gid) == USER
    for name in ("no-such-user", str(USER.uid), "", "-1", "\0", "9" * 30, "..", "ö"):
        with pytest.raises(InvalidRequest):
            identity_named(name)
    assert group_ids(["root", "no-such-group", "4711"]) == {0, 4711}
