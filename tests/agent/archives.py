"""Archives of images, made entry by entry, so that tests can make hostile ones too."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import sys
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
CONFIG = {"Env": ["PATH=/bin:/opt/bin", "GREETING=hello=you"], "WorkingDir": "/home"}

Entry = tuple[tarfile.TarInfo, bytes]


def file(name: str, content: bytes = b"", mode: int = 0o644, **attributes: Any) -> Entry:
    """A regular file, or whatever ``attributes`` (those of TarInfo) make of it."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(content), mode, 1_700_000_000
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, content


def directory(name: str, mode: int = 0o755) -> Entry:
    return file(name, mode=mode, type=tarfile.DIRTYPE)


def symlink(name: str, target: str) -> Entry:
    return file(name, type=tarfile.SYMTYPE, linkname=target)


def hardlink(name: str, target: str) -> Entry:
    return file(name, type=tarfile.LNKTYPE, linkname=target)


def layer(*entries: Entry) -> bytes:
    """An uncompressed layer."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def config(layers: Iterable[bytes], architecture: str = ARCHITECTURE) -> bytes:
    """The image's configuration."""
    return json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": CONFIG,
            "rootfs": {"type": "layers", "diff_ids": [_digest(one) for one in layers]},
        }
    ).encode()


def docker_save(path: Path, *layers: bytes, architecture: str = ARCHITECTURE) -> Path:
    """The older output of ``docker save``; returns ``path``."""
    settings = config(layers, architecture)
    name = hashlib.sha256(settings).hexdigest() + ".json"
    members = {name: settings}
    members |= {f"{number}/layer.tar": one for number, one in enumerate(layers)}
    members["manifest.json"] = json.dumps(
        [
            {
                "Config": name,
                "RepoTags": ["t:1"],
                "Layers": [f"{n}/layer.tar" for n in range(len(layers))],
            }
        ]
    ).encode()
    return write(path, members)


def oci_members(*layers: bytes, compression: str = "gzip") -> dict[str, bytes]:
    """The files of an OCI image layout with one image, below an index of platforms."""
    packers: dict[str, Callable[[bytes], bytes]]
    packers = {"gzip": gzip.compress, "zstd": zstd.compress, "none": bytes}
    pack = packers[compression]
    suffix = {"gzip": "+gzip", "zstd": "+zstd", "none": ""}[compression]
    settings = config(layers)
    blobs = [pack(one) for one in layers]
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "config": _descriptor(settings, "application/vnd.oci.image.config.v1+json"),
            "layers": [
                _descriptor(blob, f"application/vnd.oci.image.layer.v1.tar{suffix}")
                for blob in blobs
            ],
        }
    ).encode()
    here = {"architecture": ARCHITECTURE, "os": "linux"}
    index = json.dumps(
        {
            "schemaVersion": 2,
            "manifests": [
                _descriptor(manifest, "application/vnd.oci.image.manifest.v1+json", here),
                _descriptor(b"{}", "application/vnd.oci.image.manifest.v1+json", _UNKNOWN),
            ],
        }
    ).encode()
    top = json.dumps(
        {
            "schemaVersion": 2,
            "manifests": [_descriptor(index, "application/vnd.oci.image.index.v1+json")],
        }
    ).encode()
    return {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": top,
        **{blob_name(one): one for one in (index, manifest, settings, *blobs)},
    }


def blob_name(content: bytes) -> str:
    return f"blobs/sha256/{hashlib.sha256(content).hexdigest()}"


def write(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    """A tar of these files."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info, _ = file(name, content)
            tar.addfile(info, io.BytesIO(content))
    return path


_UNKNOWN = {"architecture": "unknown", "os": "unknown"}


def _descriptor(content: bytes, kind: str, where: dict[str, str] | None = None) -> dict[str, Any]:
    entry: dict[str, Any] = {"mediaType": kind, "digest": _digest(content), "size": len(content)}
    return entry | ({"platform": where} if where else {})


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
