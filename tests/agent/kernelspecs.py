"""Kernelspecs for tests: the ones that `setup` installs, where only the tests find them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from jupyter_checkpoints import kernelspecs
from jupyter_checkpoints.client import AgentClient

from .agents import Agent


@pytest.fixture(scope="module")
def jupyter_dirs(agent: Agent, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Jupyter's own directories, empty but for our kernelspecs; returns their parent.

    Set in the environment, so that programs a test starts use them as well.
    """
    root = tmp_path_factory.mktemp("jupyter")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(root / "prefix" / "share" / "jupyter"))
        for name in ("DATA", "RUNTIME", "CONFIG"):
            directory = root / name.lower()
            directory.mkdir(mode=0o700)
            patch.setenv(f"JUPYTER_{name}_DIR", str(directory))
        patch.setenv("IPYTHONDIR", str(root / "ipython"))
        kernelspecs.add_defaults(prefix=str(root / "prefix"))
        yield root


@pytest.fixture
def nothing_left(agent: Agent) -> Iterator[None]:
    """Remove what a failed test leaves, so that it fails alone."""
    yield

    async def remove() -> None:
        async with AgentClient(agent.socket) as client:
            for kernel in await client.kernels():
                await client.delete_kernel(kernel.id)
            for checkpoint in await client.checkpoints():
                await client.delete_checkpoint(checkpoint.id)

    anyio.run(remove)
