"""Storing a pack in less space when nobody has used it for a while.

A save writes memory as it is: that is fastest, and so is the resume soon after it. What has lain
for a while is compressed, extent by extent; its pages keep their numbers, so nothing else changes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .pack import (
    CODEC_RAW,
    PAGE,
    Array,
    Pack,
    PackDamaged,
    Table,
    index_path,
    pack_path,
    packed,
    write_index,
)

#: Extents that are tried before a pack is written anew, and the share of it that has to be gained.
_TRIED = 64
_WORTH = 0.15


def compress(
    directory: Path,
    pack_id: str,
    unused: Callable[[Pack], Array],
    stopped: Callable[[], bool] = lambda: False,
) -> int:
    """Write a pack anew, compressed; the bytes that were gained, 0 if it is not worth it.

    Called by the store while it keeps the pack from being given back. Whoever has the pack open
    reads on in the old file. Each extent is verified before it is written again.

    Parameters
    ----------
    unused:
        Tells for each extent of a pack whether no checkpoint needs it: those are left out where
        they are gone already.
    stopped:
        Asked now and then whether to give up.

    Raises
    ------
    PackDamaged
        If an extent that is needed is missing or is not what was written; nothing was changed.
    OSError
        If it cannot be written; nothing was changed.
    """
    pack = Pack(directory, pack_id)
    try:
        if not _is_worth_it(pack):
            return 0
        path = pack_path(directory, pack_id)
        before = path.stat().st_blocks
        temporary = path.with_name(path.name + ".tmp")
        try:
            if not _write(pack, temporary, unused(pack), stopped):
                return 0
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)
        # Until this is done the pack's own table is used: the index is not the same any more.
        with open(path, "rb") as file:
            write_index(index_path(directory, pack_id), Pack.own_table(file.fileno(), pack_id))
        return max(0, before - path.stat().st_blocks) * 512
    finally:
        pack.close()


def _is_worth_it(pack: Pack) -> bool:
    """Whether a few extents, from all over it, promise that."""
    raw = np.flatnonzero(pack.table.where["codec"] == CODEC_RAW)
    stored = pack.table.where["stored"].astype(np.int64)
    if not stored[raw].sum():
        return False
    size = gained = 0
    for number in raw[:: max(1, len(raw) // _TRIED)].tolist():
        try:
            content = _content(pack, number)
        except PackDamaged:
            continue  # it may be one that nobody needs
        size += len(content)
        gained += len(content) - len(packed(content)[0])
    return size > 0 and gained / size * stored[raw].sum() >= _WORTH * stored.sum()


def _content(pack: Pack, number: int) -> memoryview:
    what = pack.table.what[number]
    content = memoryview(bytearray(int(what["pages"]) * PAGE))
    pack.read(int(what["start"]), content)
    return content


def _write(pack: Pack, path: Path, unused: Array, stopped: Callable[[], bool]) -> bool:
    where = np.zeros_like(pack.table.where)
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        for number in range(len(where)):
            if stopped():
                return False
            try:
                content = _content(pack, number)
            except PackDamaged:
                if unused[number]:
                    continue
                raise
            stored, codec = packed(content)
            where[number] = (file.tell(), len(stored), codec)
            file.write(stored)
        file.write(Table(pack.table.nonce, pack.table.what, where).encode())
        file.flush()
        os.fsync(file.fileno())
    return True
