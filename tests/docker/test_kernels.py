"""Kernels held by Docker Engine are saved and resumed as any other."""

from __future__ import annotations

import pytest

from tests.agent.launch import Launch
from tests.agent.launch import launch as launch

pytestmark = pytest.mark.anyio


async def test_saved_and_resumed(launch: Launch) -> None:
    original = await launch.start()
    await original.run("x = 41; open('/root/file', 'w').write('kept')")
    saved = await original.save()
    assert saved.host.engine == "docker"
    clone = await launch.resume(saved)
    assert await clone.run("x + 1, open('/root/file').read()") == "(42, 'kept')"
    assert await original.run("x + 1, open('/root/file').read()") == "(42, 'kept')"
    await clone.run("x = 'clone'")
    assert await original.run("x") == "41"
