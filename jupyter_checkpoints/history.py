"""A runtime's history as pages show it: checkpoints, what they hold, and what branches off.

Plain decisions on plain data; the REST handlers ask.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from .models import CheckpointModel, Usage


class ListedCheckpoint(CheckpointModel, frozen=True, kw_only=True):
    """A checkpoint as REST gives it: with what only the server, and all checkpoints, tell of it."""

    notebook: str = ""
    """The path of its runtime's notebook; empty if this server has none for it."""
    owner: str = ""
    """The user whose it is, if that is somebody else who shares it."""
    held: int = 0
    """Bytes on the disk."""
    shared: int = 0
    """So many of these are held by other checkpoints as well."""


def listed(
    checkpoints: Iterable[CheckpointModel], usage: Usage, paths: Mapping[str, str]
) -> list[ListedCheckpoint]:
    """The checkpoints, in their order, with what they hold and whose they are.

    Parameters
    ----------
    paths:
        The paths of notebooks, by runtime.
    """
    found = []
    for model in checkpoints:
        held = usage.held.get(model.id, 0)
        fields: dict[str, Any] = msgspec.structs.asdict(model)
        found.append(
            ListedCheckpoint(
                **fields,
                notebook=paths.get(model.runtime, ""),
                held=held,
                shared=held - usage.checkpoints.get(model.id, 0),
            )
        )
    return found


def with_remixes(
    checkpoints: Iterable[CheckpointModel], runtime: str, sources: Mapping[str, str]
) -> list[CheckpointModel]:
    """Those of ``runtime`` and of everything that was remixed from it, in their order.

    Parameters
    ----------
    sources:
        The runtime that a runtime was remixed from, where that is written down. Otherwise the
        first checkpoint of a remix tells, as long as it and its parent are there.
    """
    every = list(checkpoints)
    owners = {model.id: model.runtime for model in every}
    derived = dict(sources)
    for model in every:
        if model.trigger == "remix" and owners.get(model.parent):
            derived.setdefault(model.runtime, owners[model.parent])
    family = {runtime}
    while grown := {r for r, source in derived.items() if source in family} - family:
        family |= grown
    return [model for model in every if model.runtime in family]
