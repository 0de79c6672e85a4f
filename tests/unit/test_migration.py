"""What release 0.1 wrote down, when the agent served root alone, is read as it was meant."""

from __future__ import annotations

from pathlib import Path

import msgspec

from jupyter_checkpoints.agent.identity import ROOT
from jupyter_checkpoints.agent.records import Record
from jupyter_checkpoints.store.directory import DirectoryStore

_WRITTEN = Path(__file__).with_name("migration")


def test_records_of_kernels() -> None:
    """They run as root, and are root's."""
    record = msgspec.json.decode((_WRITTEN / "record-0.1.json").read_bytes(), type=Record)
    assert (record.uid, record.identity, record.state) == (0, ROOT, "running")
    assert [(m.source, m.target) for m in record.mounts] == [("/srv/notebooks", "/nb")]
    again = msgspec.json.decode(msgspec.json.encode(record), type=Record)
    assert again == record


def test_manifests_of_checkpoints(tmp_path: Path) -> None:
    """They are root's, and shared with nobody."""
    checkpoint_id = "44dddc5a-321a-421f-977a-d83a052f75c7"
    store = DirectoryStore(tmp_path / "store")
    (tmp_path / "store" / checkpoint_id).mkdir(mode=0o700)
    written = (_WRITTEN / "manifest-0.1.json").read_bytes()
    (tmp_path / "store" / checkpoint_id / "manifest.json").write_bytes(written)
    manifest = store.load(checkpoint_id)
    saved = manifest.checkpoint
    assert (saved.id, saved.uid, saved.shares) == (checkpoint_id, 0, [])
    assert [m.checkpoint.id for m in store.list()] == [checkpoint_id]
    assert len(manifest.files) > 10
