"""The file around a manifest: its version, which is read before anything else, and its digest.

Version 1 is a checkpoint whose images lie beside its manifest, version 2 one whose images are in
packs; ``map`` is the digest of its page map then, and ``digest`` is over manifest and map.
"""

from __future__ import annotations

import msgspec
from blake3 import blake3
from msgspec import Raw, Struct

from ..errors import CheckpointDamaged
from .source import damaged
from .store import MANIFEST_VERSION, Manifest

PLAIN, PACKED = 1, 2


class _Versioned(Struct):
    version: int


class Envelope(Struct, kw_only=True):
    """``digest`` is that of the manifest's bytes as they stand, and of ``map``."""

    version: int
    digest: str
    manifest: Raw
    map: str = ""

    def open(self) -> Manifest:
        """What is in it."""
        return msgspec.json.decode(self.manifest, type=Manifest)


def encode(manifest: Manifest, map_digest: str = "") -> bytes:
    """The bytes of a manifest's file; ``map_digest`` if its images are in packs."""
    body = msgspec.json.encode(manifest)
    envelope = Envelope(
        version=PACKED if map_digest else PLAIN,
        digest=blake3(body + map_digest.encode()).hexdigest(),
        manifest=Raw(body),
        map=map_digest,
    )
    return msgspec.json.encode(envelope)


def decode(checkpoint_id: str, content: bytes, newest: int = PACKED) -> tuple[Envelope, Manifest]:
    """What is in a manifest's file.

    Raises
    ------
    CheckpointDamaged
        If it makes no sense, or has a version above ``newest``.
    """
    try:
        version = msgspec.json.decode(content, type=_Versioned).version
        if not PLAIN <= version <= newest:
            raise CheckpointDamaged(
                f"Checkpoint {checkpoint_id} cannot be read.",
                reason=f"its manifest has version {version}, "
                f"this store knows versions up to {newest}",
                hint="If a newer release made it, upgrade jupyter-runtime-checkpoints."
                if version > PACKED
                else "Set `AgentApp.store_format` to packs.",
            )
        envelope = msgspec.json.decode(content, type=Envelope)
        digest = blake3(bytes(envelope.manifest) + envelope.map.encode()).hexdigest()
        if digest != envelope.digest or (version == PACKED) != bool(envelope.map):
            raise damaged(checkpoint_id, "its manifest is not what was saved")
        manifest = envelope.open()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise damaged(checkpoint_id, f"its manifest makes no sense: {error}") from error
    if manifest.version != MANIFEST_VERSION:
        raise damaged(checkpoint_id, f"its manifest has version {manifest.version}")
    if manifest.checkpoint.id != checkpoint_id:
        raise damaged(checkpoint_id, f"its manifest is that of {manifest.checkpoint.id}")
    return envelope, manifest
