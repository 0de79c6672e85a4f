"""A Docker Engine that accepts and says nothing holds nobody for ever."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_checkpoints.agent import docker_client
from jupyter_checkpoints.agent.docker_client import client_of, connect, is_ready, told
from jupyter_checkpoints.errors import HostNotReady

pytest.importorskip("docker")

_LONGER = 30.0


@pytest.fixture
def mute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of one; what is asked is heard, and never answered."""
    monkeypatch.setattr(docker_client, "SECONDS", 0.2)
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield f"unix://{path}"


_CALLS: dict[str, Callable[[Any], object]] = {
    "inspect": lambda api: api.inspect_container("a"),
    "start": lambda api: api.start("a"),
    "remove": lambda api: api.remove_container("a", v=True, force=True),
    # The SDK itself would wait for these without a limit.
    "wait": lambda api: api.wait("a"),
    "import": lambda api: api.import_image_from_stream(io.BytesIO(b"a" * 2**20), repository="a"),
}


@pytest.mark.parametrize("name", list(_CALLS))
def test_what_is_asked(mute: str, name: str) -> None:
    api = client_of(mute, "1.41")
    with pytest.raises(HostNotReady, match="does not answer"), told():
        _CALLS[name](api)
    api.close()


def test_at_the_start(mute: str) -> None:
    with pytest.raises(HostNotReady, match="does not answer"):
        connect(mute)
    assert not is_ready(mute)


def test_what_may_take_longer(mute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a limit of its own, and those that are asked meanwhile or later have theirs."""
    monkeypatch.setattr(docker_client, "SECONDS", _LONGER)
    api = client_of(mute, "1.41")
    begin = time.monotonic()
    with pytest.raises(HostNotReady), told(0.2):
        api.start("a")
    assert time.monotonic() - begin < _LONGER
    monkeypatch.setattr(docker_client, "SECONDS", 0.2)
    with pytest.raises(HostNotReady), told():
        api.start("a")
    api.close()


def test_events(mute: str) -> None:
    """No limit: nothing may happen for days."""
    api = client_of(mute, "1.41")
    begun, ended = threading.Event(), threading.Event()

    def follow() -> None:
        begun.set()
        with contextlib.suppress(HostNotReady), told():
            api.events()
        ended.set()

    threading.Thread(target=follow, daemon=True).start()
    assert begun.wait(_LONGER)
    for _ in range(3):
        with pytest.raises(HostNotReady), told():
            api.info()
    assert not ended.is_set()
