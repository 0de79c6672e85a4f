"""The JupyterLab part in a real browser: ``labextension/ui-tests`` has the tests themselves."""

from __future__ import annotations

import os

import pytest

from .lab import browse


@pytest.mark.timeout(1200)
def test_in_the_browser() -> None:
    assert browse(f"10.{28 + (os.getpid() + 50) % 100}.0.0/16") == 0
