"""The tests in TypeScript that need no browser: ``labextension/src/__tests__``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LABEXTENSION = Path(__file__).parents[2] / "labextension"


@pytest.mark.timeout(600)
def test_units() -> None:
    # Node and jlpm are the virtual environment's.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["jlpm", "test", "--ci"], cwd=LABEXTENSION, env={**os.environ, "PATH": path}, check=True
    )
