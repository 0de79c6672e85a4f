"""The JupyterLab part in a real browser: ``labextension/ui-tests`` has the tests themselves."""

from __future__ import annotations

import pytest

from .lab import browse


@pytest.mark.timeout(2400)
def test_in_the_browser() -> None:
    assert browse() == 0
