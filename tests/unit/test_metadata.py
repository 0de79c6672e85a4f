"""A notebook's settings: the JSON Schema that is shipped says what is read."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_checkpoints.metadata import (
    KEY,
    SCHEMA,
    NotebookSettings,
    read_settings,
    write_settings,
)

VALIDATOR = jsonschema.Draft7Validator(json.loads(SCHEMA.read_text()))

values = st.one_of(
    st.booleans(),
    st.integers(),
    st.text(max_size=8),
    st.sampled_from(["process", "filesystem", "3f0c-1", "x" * 64, "x" * 65, "a\n", "../x"]),
    st.lists(st.integers(), max_size=2),
)
names = st.sampled_from(["enabled", "autosave", "mode", "runtime", "later"])


@given(st.one_of(st.dictionaries(names, values), values))
def test_read_as_the_schema_says(value: Any) -> None:
    settings, problem = read_settings({KEY: value})
    # JSON Schema's `$` means what Python's does: a newline may follow. Ours may not.
    newline = isinstance(value, dict) and str(value.get("runtime", "")).endswith("\n")
    if newline:
        assert problem
    else:
        assert VALIDATOR.is_valid(value) == (not problem)
    if problem:
        assert settings == NotebookSettings() and not settings.enabled


@pytest.mark.parametrize("metadata", [{}, {KEY: None}, {KEY: {}}])
def test_without_any_nothing_is_enabled(metadata: dict[str, Any]) -> None:
    assert read_settings(metadata) == (NotebookSettings(), "")
    assert not NotebookSettings().enabled


def test_defaults_are_those_of_the_schema() -> None:
    properties = json.loads(SCHEMA.read_text())["properties"]
    for name, description in properties.items():
        assert description.get("default") == getattr(NotebookSettings(), name)


def test_what_we_do_not_know_stays() -> None:
    metadata: dict[str, Any] = {KEY: {"later": 1, "enabled": True}, "other": 2}
    write_settings(metadata, runtime="r")
    assert metadata == {KEY: {"later": 1, "enabled": True, "runtime": "r"}, "other": 2}
    broken: dict[str, Any] = {KEY: "x"}
    write_settings(broken, enabled=False)
    assert broken == {KEY: {"enabled": False}}
