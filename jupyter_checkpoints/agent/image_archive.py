"""Read an image from an archive: an OCI image layout or the output of ``docker save``.

Nothing in an archive is believed: every blob is compared with the digest that names it, sizes and
numbers are bounded, and layers are unpacked by a child that has the tree as its root directory
(:mod:`jupyter_checkpoints.agent.unpack_layer`).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import platform
import posixpath
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Literal, Protocol, TypeVar, cast

import msgspec
from msgspec import Struct

from ..errors import InsufficientResources, InvalidRequest, NotFound
from . import unpack_layer
from .image_build import Built, Progress
from .tools import child_environment

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: Bounds of one image; far above what real ones have.
MAX_BYTES = 64 * 2**30
MAX_ENTRIES = 2_000_000
MAX_LAYERS = 256
_MAX_JSON = 4 * 2**20
_MAX_NESTED_INDEXES = 3
_CHUNK = 1 << 20
#: Left free on the disk whatever an archive holds.
_DISK_RESERVE = 1 * 2**30

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_T = TypeVar("_T")
_HINT = "Make it again with `docker save IMAGE -o FILE` or `skopeo copy … oci-archive:FILE`."


class _Platform(Struct):
    architecture: str = ""
    os: str = ""


class _Descriptor(Struct, rename="camel"):
    digest: str
    media_type: str = ""
    platform: _Platform | None = None


class _Index(Struct):
    manifests: list[_Descriptor]


class _Manifest(Struct):
    config: _Descriptor
    layers: list[_Descriptor]


class _Settings(Struct, rename="pascal"):
    env: list[str] | None = None
    working_dir: str = ""


class _RootFs(Struct):
    diff_ids: list[str]


class _Config(Struct):
    rootfs: _RootFs
    architecture: str = ""
    config: _Settings | None = None


class _Saved(Struct, rename="pascal"):
    """One image of ``docker save``'s manifest.json."""

    config: str
    layers: list[str]


class _Layer(Struct):
    """A layer's place in the archive, and what it must hash to (empty: not told)."""

    member: str
    digest: str
    diff_id: str


def unpack_archive(
    archive: Path, rootfs: Path, scratch: Path, progress: Progress, *, max_bytes: int = MAX_BYTES
) -> Built:
    """Unpack an image at ``rootfs``, an empty directory. Blocking, root.

    Called by :meth:`~jupyter_checkpoints.agent.images.ImageStore.import_archive`.

    Parameters
    ----------
    archive:
        The file: tar, also compressed with gzip or zstd.
    scratch:
        A directory for a decompressed copy, on the disk of ``rootfs``.
    max_bytes:
        Most bytes that the image may have; what the disk has free bounds it as well.

    Raises
    ------
    NotFound
        If there is no such file.
    InvalidRequest
        If it is not an image's archive, damaged, for another kind of machine, or holds what no
        image needs; the reason says which.
    InsufficientResources
        If the disk has no room for it.
    """
    with _opened(archive, scratch, max_bytes) as tar:
        config, layers = _contents(_Members(tar))
        budget = _Budget(rootfs, max_bytes)
        for number, layer in enumerate(layers, 1):
            progress("layers", f"unpacking layer {number} of {len(layers)}")
            with _Members(tar).open(layer.member) as blob:
                budget.spend(*_unpack(blob, layer, rootfs, budget))
    return _described(config)


class _Budget:
    """What may still be unpacked: bytes and entries."""

    def __init__(self, rootfs: Path, max_bytes: int) -> None:
        free = shutil.disk_usage(rootfs).free - _DISK_RESERVE
        if free <= 0:
            raise _disk_full()
        self.disk_bound = free < max_bytes
        self.bytes, self.entries = min(max_bytes, free), MAX_ENTRIES

    def spend(self, count: int, entries: int) -> None:
        self.bytes -= count
        self.entries -= entries


class _Members:
    """The files in an archive, by name."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def open(self, name: str) -> IO[bytes]:
        member = self._find(name)
        file = self._tar.extractfile(member) if member is not None else None
        if file is None:
            raise _refused(f"{name} is missing")
        return file

    def read_json(self, name: str, kind: type[_T], digest: str = "") -> _T:
        with self.open(name) as file:
            content = file.read(_MAX_JSON + 1)
        if len(content) > _MAX_JSON:
            raise _refused(f"{name} has more than {_MAX_JSON} bytes")
        if digest and hashlib.sha256(content).hexdigest() != digest:
            raise _refused(f"{name} is not what its digest says")
        try:
            return msgspec.json.decode(content, type=kind)
        except (msgspec.DecodeError, RecursionError) as error:
            raise _refused(f"{name}: {error}") from error

    def _find(self, name: str) -> tarfile.TarInfo | None:
        for candidate in (name, f"./{name}"):
            try:
                member = self._tar.getmember(candidate)
            except KeyError:
                continue
            if member.issym():  # older `docker save` links equal layers to each other
                target = posixpath.normpath(
                    posixpath.join(posixpath.dirname(name), member.linkname)
                )
                try:
                    member = self._tar.getmember(target)
                except KeyError:
                    return None
            return member if member.isreg() else None
        return None


def _contents(members: _Members) -> tuple[_Config, list[_Layer]]:
    if "oci-layout" in members:
        config, layers = _read_layout(members)
    elif "manifest.json" in members:
        config, layers = _read_saved(members)
    else:
        raise _refused("it has neither `oci-layout` nor `manifest.json`")
    ours = _ARCHITECTURES.get(platform.machine(), platform.machine())
    if config.architecture and config.architecture != ours:
        raise _refused(f"it is for {config.architecture}, this machine is {ours}")
    if len(layers) > MAX_LAYERS:
        raise _refused(f"it has {len(layers)} layers, at most {MAX_LAYERS} are taken")
    if len(layers) != len(config.rootfs.diff_ids):
        raise _refused("its configuration tells another number of layers than its manifest")
    for layer, diff_id in zip(layers, config.rootfs.diff_ids, strict=True):
        layer.diff_id = _sha256(diff_id)
    return config, layers


def _read_layout(members: _Members) -> tuple[_Config, list[_Layer]]:
    index = members.read_json("index.json", _Index)
    for _ in range(_MAX_NESTED_INDEXES):
        chosen = _choose(index.manifests)
        digest = _sha256(chosen.digest)
        if "index" not in chosen.media_type and "manifest.list" not in chosen.media_type:
            break
        index = members.read_json(_blob(digest), _Index, digest)
    else:
        raise _refused("its indexes are nested too deeply")
    manifest = members.read_json(_blob(digest), _Manifest, digest)
    config_digest = _sha256(manifest.config.digest)
    config = members.read_json(_blob(config_digest), _Config, config_digest)
    layers = []
    for layer in manifest.layers:
        if "tar" not in layer.media_type or "encrypted" in layer.media_type:
            raise _refused(f"a layer has the unknown type {layer.media_type!r}")
        digest = _sha256(layer.digest)
        layers.append(_Layer(member=_blob(digest), digest=digest, diff_id=""))
    return config, layers


def _choose(manifests: list[_Descriptor]) -> _Descriptor:
    """The one manifest for this machine (attestations have the platform ``unknown``)."""
    ours = _ARCHITECTURES.get(platform.machine(), platform.machine())
    fitting = [
        entry
        for entry in manifests
        if entry.platform is None
        or (entry.platform.os == "linux" and entry.platform.architecture == ours)
    ]
    digests = {entry.digest for entry in fitting}
    if not digests:
        raise _refused(f"it has no image for linux/{ours}")
    if len(digests) > 1:
        raise _refused("it has several images")
    return fitting[0]


def _read_saved(members: _Members) -> tuple[_Config, list[_Layer]]:
    saved = members.read_json("manifest.json", list[_Saved])
    if len(saved) != 1:
        raise _refused(f"it has {len(saved)} images")
    # The configuration's name is its digest; the layers' digests are in it.
    name = posixpath.basename(saved[0].config).removesuffix(".json")
    digest = name if re.fullmatch(r"[0-9a-f]{64}", name) else ""
    if not digest:
        raise _refused("its configuration is not named by a digest")
    config = members.read_json(saved[0].config, _Config, digest)
    return config, [_Layer(member=layer, digest="", diff_id="") for layer in saved[0].layers]


def _unpack(blob: IO[bytes], layer: _Layer, rootfs: Path, budget: _Budget) -> tuple[int, int]:
    """Unpack one layer and return its bytes and entries.

    Digests are compared at the end, when all of it was read once; until then the tree is nothing.
    """
    outer, inner = hashlib.sha256(), hashlib.sha256()
    command = [
        *(sys.executable, "-I", "-S", unpack_layer.__file__),
        *(str(rootfs), str(budget.bytes), str(budget.entries)),
    ]
    with subprocess.Popen(
        command,
        env=child_environment(),
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        # A tar is longer than its files by headers and padding. Beyond what entries can have of
        # these it only wants to be decompressed for ever.
        remaining = budget.bytes + 4096 * budget.entries
        try:
            for chunk in _chunks(_Hashing(blob, outer.update), _compression(blob)):
                remaining -= len(chunk)
                if remaining < 0:
                    raise _refused("a layer is larger than an image may be")
                inner.update(chunk)
                child.stdin.write(chunk)
            child.stdin.close()
        except BrokenPipeError:
            pass  # the child has refused the layer, and says why
        except BaseException:
            child.kill()
            raise
        finally:
            with suppress(BrokenPipeError):
                child.stdin.close()
        said = child.stdout.read(_CHUNK)
    try:
        answer: dict[str, Any] = json.loads(said)
    except ValueError:
        answer = {"error": f"unpacking it ended with status {child.returncode}"}
    if error := answer.get("error"):
        too_large = error.startswith("more than") and error.endswith("bytes")
        if "No space left" in error or (too_large and budget.disk_bound):
            raise _disk_full()
        raise _refused(error)
    if layer.digest and outer.hexdigest() != layer.digest:
        raise _refused(f"{layer.member} is not what its digest says")
    if inner.hexdigest() != layer.diff_id:
        raise _refused(f"{layer.member} is not what the image's configuration says")
    return answer["bytes"], answer["entries"]


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class _Hashing:
    """A file that shows what is read of it."""

    def __init__(self, file: IO[bytes], show: Callable[[bytes], None]) -> None:
        self._file, self._show = file, show

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self._show(data)
        return data


@contextmanager
def _opened(archive: Path, scratch: Path, max_bytes: int) -> Iterator[tarfile.TarFile]:
    """The archive as a seekable tar; a compressed one is decompressed to ``scratch`` first."""
    try:
        # Not blocking: a pipe in the file's place must not hold the agent up.
        descriptor = os.open(archive, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"There is no file {archive}") from error
    except OSError as error:
        raise InvalidRequest(f"{archive} cannot be read", reason=str(error)) from error
    with ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(open(descriptor, "rb"))
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise InvalidRequest(f"{archive} is not a file", hint=_HINT)
        if (compression := _compression(file)) != "none":
            packed, file = file, stack.enter_context(TemporaryFile(dir=scratch))
            budget = _Budget(scratch, max_bytes)
            for chunk in _chunks(packed, compression):
                budget.spend(len(chunk), 0)
                if budget.bytes < 0:
                    raise _disk_full() if budget.disk_bound else _refused("it is too large")
                file.write(chunk)
            file.seek(0)
        try:
            yield stack.enter_context(tarfile.open(fileobj=file, mode="r:"))
        except (tarfile.TarError, EOFError) as error:
            raise _refused(f"as a tar archive it is damaged: {error}") from error


_Compression = Literal["none", "gzip", "zstd"]


def _compression(file: IO[bytes]) -> _Compression:
    start = file.read(4)
    file.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return "gzip"
    return "zstd" if start == b"\x28\xb5\x2f\xfd" else "none"


def _chunks(file: _Readable, compression: _Compression) -> Iterator[bytes]:
    """What is in ``file``, decompressed; raises :class:`InvalidRequest` if it is damaged."""
    stream: _Readable = file
    if compression == "gzip":
        stream = gzip.GzipFile(fileobj=cast("IO[bytes]", file), mode="rb")
    elif compression == "zstd":
        stream = zstd.ZstdFile(cast("IO[bytes]", file))
    try:
        while chunk := stream.read(_CHUNK):
            yield chunk
    except (gzip.BadGzipFile, zlib.error, zstd.ZstdError, EOFError) as error:
        raise _refused(f"its compression is damaged: {error}") from error


def _described(config: _Config) -> Built:
    settings = config.config or _Settings()
    env = {"PATH": _DEFAULT_PATH, "HOME": "/root"}
    for entry in settings.env or ():
        name, separator, value = entry.partition("=")
        if name and separator and "\0" not in entry:
            env[name] = value
    cwd = settings.working_dir
    return Built(env=env, cwd=cwd if cwd.startswith("/") else "/", packages={})


def _blob(digest: str) -> str:
    return f"blobs/sha256/{digest}"


def _sha256(digest: str) -> str:
    algorithm, _, value = digest.partition(":")
    if algorithm != "sha256" or re.fullmatch(r"[0-9a-f]{64}", value) is None:
        raise _refused(f"{digest[:80]!r} is not a SHA-256 digest")
    return value


def _refused(reason: str) -> InvalidRequest:
    return InvalidRequest("The archive is not a usable image", reason=reason, hint=_HINT)


def _disk_full() -> InsufficientResources:
    return InsufficientResources(
        "The disk has no room for the image",
        reason=f"{_DISK_RESERVE // 2**30} GiB are to stay free",
        hint="Free some space, or remove images: `jupyter checkpoints image list`.",
    )
