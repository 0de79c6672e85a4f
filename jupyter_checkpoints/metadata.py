"""What a notebook says about runtime checkpoints: ``metadata.runtime_checkpoints``.

The JSON Schema for people and other programs is ``schemas/notebook_metadata.json``; the struct
here says the same. What is wrong in a notebook is reported and never stops anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

KEY = "runtime_checkpoints"
SCHEMA = Path(__file__).parent / "schemas" / "notebook_metadata.json"


class NotebookSettings(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """One notebook's settings; the defaults are those of a notebook that says nothing."""

    enabled: bool = False
    """Whether anything may be saved at all."""
    autosave: bool = True
    mode: Literal["process", "filesystem"] | None = None
    """``None``: as the kernelspec says."""
    runtime: Annotated[str, Meta(pattern=r"^([A-Za-z0-9][A-Za-z0-9_-]{0,63})?\Z")] = ""
    """Empty until the first kernel starts."""


def read_settings(metadata: Mapping[str, Any]) -> tuple[NotebookSettings, str]:
    """A notebook's settings, and what is wrong with them (then they are those of no settings)."""
    value = metadata.get(KEY)
    if value is None:
        return NotebookSettings(), ""
    if isinstance(value, Mapping):
        # `"mode": null` is no mode in the schema, and not worth an error either.
        value = {name: entry for name, entry in value.items() if entry is not None}
    try:
        return msgspec.convert(value, NotebookSettings), ""
    except msgspec.ValidationError as error:
        return NotebookSettings(), f"metadata.{KEY}: {error}"


def write_settings(metadata: dict[str, Any], **changes: Any) -> None:
    """Change settings in a notebook's metadata; what we do not know in there stays."""
    value = metadata.get(KEY)
    metadata[KEY] = {**(value if isinstance(value, dict) else {}), **changes}
