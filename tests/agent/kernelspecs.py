"""Kernelspecs for tests: the ones that `setup` installs, where only the tests find them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from jupyter_checkpoints import kernelspecs

from .agents import Agent


@pytest.fixture(scope="module")
def jupyter_dirs(agent: Agent, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Jupyter's own directories, empty but for our kernelspecs; returns their parent.

    Set in the environment, so that programs a test starts use them as well.
    """
    root = tmp_path_factory.mktemp("jupyter")
    kernelspecs.add_defaults(prefix=str(root / "prefix"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(root / "prefix" / "share" / "jupyter"))
        for name in ("DATA", "RUNTIME", "CONFIG"):
            directory = root / name.lower()
            directory.mkdir(mode=0o700)
            patch.setenv(f"JUPYTER_{name}_DIR", str(directory))
        patch.setenv("IPYTHONDIR", str(root / "ipython"))
        assert os.environ["JUPYTER_RUNTIME_DIR"]
        yield root
