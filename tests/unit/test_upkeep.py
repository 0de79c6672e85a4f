"""What the agent does for its store by itself."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from jupyter_checkpoints.agent import upkeep
from jupyter_checkpoints.agent.precopies import Precopies
from jupyter_checkpoints.store.packs import PackStore
from tests.agent.agents import wait_until
from tests.unit.store.saving import files_of, packs_of, save

pytestmark = pytest.mark.anyio


async def test_the_store_is_tidied_and_compressed_until_the_agent_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "GRACE", 0.01)
    store = PackStore(tmp_path / "store", packs_of(tmp_path / "store"))
    files = {"pages-1.img": b"compress me, page by page. " * 300_000}
    save(store, "c1", files)
    (pack,) = store.packs.glob("*.pack")
    before = pack.stat().st_size
    keeping = asyncio.ensure_future(upkeep.keep_store(store, Precopies(store), 1, 1e-9))
    await asyncio.to_thread(wait_until, lambda: pack.stat().st_size < before / 2)
    keeping.cancel()
    await asyncio.wait([keeping])
    assert keeping.cancelled()
    assert files_of(store, "c1") == files
    store.close()
