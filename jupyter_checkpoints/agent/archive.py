"""Checkpoints as archives: one tar, to keep or to carry to another host.

::

    checkpoint.json     the manifest as it is in the store, and a code that proves who wrote it
    images/…            the process images
    upper/…             the container's own files, with attributes, deleted names and holes

Written by GNU tar in one stream, the same bytes each time, so that a download can be resumed.
Restoring a process image is running code as root with what CRIU makes of it, so an archive is
taken only if the code (a MAC with this store's key) is right, or if root says so. What it holds
is compared with the manifest, file by file, before there is a checkpoint.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import subprocess
import sys
import tarfile
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import msgspec
from blake3 import blake3
from msgspec import Raw, Struct

from ..errors import CheckpointsError, InvalidRequest, NotAllowed
from ..store.content import file_records
from ..store.store import MANIFEST_VERSION, Manifest, Store
from . import unpack_archive
from .tools import child_environment

VERSION = 1
_HEADER = "checkpoint.json"
#: Bounds of one archive; far above what real ones have.
MAX_ENTRIES = 5_000_000
_MAX_HEADER = 64 * 2**20
_CHUNK = 1 << 20
_REFUSED = "The archive cannot be imported; nothing was kept."


class Socket(Struct, frozen=True):
    """A Unix socket among the files, which no tar can hold. Path below ``upper``."""

    path: str
    mode: int
    uid: int
    gid: int


class Header(Struct, frozen=True, kw_only=True):
    """``checkpoint.json``; ``mac`` is over the bytes of ``signed`` as they stand."""

    version: int
    mac: str
    signed: Raw


class Signed(Struct, frozen=True, kw_only=True):
    """What an archive says of itself."""

    manifest: Manifest
    sockets: list[Socket] = []


def store_key(file: Path) -> bytes:
    """The secret of this store, made when it is first needed. Blocking."""
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return file.read_bytes()
    with open(fd, "wb") as out:
        out.write(key := secrets.token_bytes(32))
        out.flush()
        os.fsync(fd)
    return key


class Export:
    """One checkpoint as a stream of bytes. Used as a context manager; all of it blocks.

    Parameters
    ----------
    store:
        Has the process images; they are put together for as long as this is entered.
    tree:
        The directory that ``upper`` is in.
    """

    def __init__(self, manifest: Manifest, store: Store, tree: Path, key: bytes) -> None:
        self._manifest = manifest
        self._store, self._tree, self._key = store, tree, key

    def __enter__(self) -> Export:
        with ExitStack() as stack:
            self._prepare(stack)
            self._stack = stack.pop_all()
        return self

    def _prepare(self, stack: ExitStack) -> None:
        self._header = stack.enter_context(TemporaryDirectory(prefix="jupyter-checkpoints-export-"))
        self._images = stack.enter_context(
            self._store.materialised(self._manifest.checkpoint.id, share=False)
        )
        # What a store says of its files may be meant for that store alone.
        self._manifest = msgspec.structs.replace(self._manifest, files=file_records(self._images))
        signed = msgspec.json.encode(
            Signed(manifest=self._manifest, sockets=list(_sockets(self._tree / "upper")))
        )
        mac = blake3(signed, key=self._key).hexdigest()
        path = Path(self._header) / _HEADER
        path.write_bytes(msgspec.json.encode(Header(version=VERSION, mac=mac, signed=Raw(signed))))
        # The same archive each time, to the byte.
        moment = datetime.fromisoformat(self._manifest.checkpoint.created).timestamp() // 1
        for file in (path, self._images, *self._images.rglob("*")):
            os.utime(file, (moment, moment))
        self.size = self._measure()

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def chunks(self, start: int = 0) -> Generator[bytes, None, None]:
        """The bytes from ``start`` on."""
        with subprocess.Popen(
            [*self._command(), "--file=-"],
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as child:
            assert child.stdout is not None
            try:
                while start and (skipped := child.stdout.read(min(start, _CHUNK))):
                    start -= len(skipped)
                while chunk := child.stdout.read(_CHUNK):
                    yield chunk
            finally:
                child.kill()  # nothing, where it has ended by itself

    def _measure(self) -> int:
        # Tar knows /dev/null, and counts without reading.
        done = subprocess.run(
            [*self._command(), "--file=/dev/null", "--totals"],
            env=child_environment(),
            capture_output=True,
            text=True,
        )
        for line in done.stderr.splitlines():
            if line.startswith("Total bytes written: "):
                return int(line.split()[3])
        raise CheckpointsError("The archive could not be written.", reason=done.stderr.strip())

    def _command(self) -> list[str]:
        return [
            *("tar", "--create", "--format=posix", "--sort=name", "--numeric-owner"),
            # Not a later version: those put the number of the process into names.
            *("--sparse", "--sparse-version=0.0"),
            "--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime",
            *("--xattrs", "--xattrs-include=*", "--warning=no-file-ignored"),
            *("-C", self._header, _HEADER),
            *("-C", str(self._images.parent), "images"),
            *("-C", str(self._tree), "upper"),
        ]


class Import:
    """An archive that has arrived as a file. All of it blocks.

    Raises
    ------
    InvalidRequest
        From any method, if the archive is not what it says.
    NotAllowed
        If nobody vouches for it.
    """

    def __init__(self, file: IO[bytes], key: bytes, *, trusted: bool, max_bytes: int) -> None:
        self._file = file
        self._max_bytes = max_bytes
        with _explained():
            header = self._read_header()
        if not trusted and not secrets.compare_digest(
            blake3(bytes(header.signed), key=key).hexdigest(), header.mac
        ):
            raise NotAllowed(
                "This archive is not from this host's own store.",
                reason="Resuming it runs whatever it holds, and the programs that read it run as "
                "root. Nothing was kept.",
                hint="If you know where it comes from, root can import it: "
                "`jupyter checkpoints import --trust FILE`.",
            )
        with _explained():
            signed = msgspec.json.decode(header.signed, type=Signed)
            self.manifest = signed.manifest
            self._sockets = signed.sockets
            if self.manifest.version != MANIFEST_VERSION:
                raise ValueError(f"its manifest has version {self.manifest.version}")

    def _read_header(self) -> Header:
        with self._open() as archive:
            member = archive.next()
            if member is None or member.name != _HEADER or not member.isreg():
                raise ValueError(f"it does not begin with {_HEADER}")
            if member.size > _MAX_HEADER:
                raise ValueError(f"its {_HEADER} is too large")
            source = archive.extractfile(member)
            assert source is not None
            content = source.read()
        version = json.loads(content).get("version")
        if version != VERSION:
            raise ValueError(f"it has version {version}, this release knows version {VERSION}")
        return msgspec.json.decode(content, type=Header)

    def unpack_images(self, images: Path) -> None:
        """Write the process images; only what the manifest names, in directories of ours."""
        expected = {record.path: record.size for record in self.manifest.files}
        with _explained(), self._open() as archive:
            while (member := archive.next()) is not None and expected:
                if member.name in expected:
                    self._unpack_image(archive, member, images.parent, expected.pop(member.name))
                archive.members.clear()  # type: ignore[attr-defined]
            if expected:
                raise ValueError(f"{min(expected)} is missing")

    @staticmethod
    def _unpack_image(
        archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path, size: int
    ) -> None:
        parts = Path(member.name).parts
        if parts[0] != "images" or ".." in parts or not member.isreg() or member.size != size:
            raise ValueError(f"{member.name} is not what its manifest says")
        source = archive.extractfile(member)
        assert source is not None
        path = target / member.name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(path, "xb") as out:
            holes: Any = member
            for start, length in holes.sparse or [(0, member.size)]:
                source.seek(start)
                out.seek(start)
                while length and (chunk := source.read(min(length, _CHUNK))):
                    length -= len(chunk)
                    out.write(chunk)
            out.truncate(size)

    def unpack_tree(self, directory: Path) -> None:
        """Write ``upper`` into an empty directory, by a child that sees nothing else."""
        self._file.seek(0)
        done = subprocess.run(
            [
                *(sys.executable, "-I", "-S", unpack_archive.__file__),
                *(str(directory), str(self._max_bytes), str(MAX_ENTRIES)),
            ],
            env=child_environment(),
            cwd="/",
            stdin=self._file,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        with _explained():
            answer = json.loads(done.stdout or b'{"error": "unpacking it failed"}')
            if "error" in answer:
                raise ValueError(answer["error"])
            for socket in self._sockets:
                self._make_socket(directory / "upper", socket)

    @staticmethod
    def _make_socket(upper: Path, socket: Socket) -> None:
        path = upper / socket.path
        if ".." in path.parts or path.parent.resolve() != upper.resolve() / path.parent.relative_to(
            upper
        ):
            raise ValueError(f"{socket.path} leads out of the container's files")
        os.mknod(path, stat.S_IFSOCK | socket.mode & 0o7777)
        os.chown(path, socket.uid, socket.gid, follow_symlinks=False)
        os.chmod(path, socket.mode & 0o7777)

    @contextmanager
    def _open(self) -> Iterator[tarfile.TarFile]:
        self._file.seek(0)
        with tarfile.open(
            fileobj=self._file, mode="r:", encoding="utf-8", errors="surrogateescape"
        ) as archive:
            yield archive


def _sockets(upper: Path) -> Iterator[Socket]:
    for directory, _, names in os.walk(upper):
        for name in names:
            path = Path(directory, name)
            info = path.lstat()
            if stat.S_ISSOCK(info.st_mode):
                relative = str(path.relative_to(upper))
                yield Socket(relative, stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid)


@contextmanager
def _explained() -> Iterator[None]:
    """Whatever a hostile archive makes Python say is one kind of error."""
    try:
        yield
    except (ValueError, KeyError, AttributeError, tarfile.TarError, OSError) as error:
        raise InvalidRequest(
            _REFUSED,
            reason=str(error) or type(error).__name__,
            hint="Make it again with `jupyter checkpoints export`.",
        ) from error
