"""An agent for one run of the benchmarks, with the engine that is to be measured."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jupyter_checkpoints import layout
from jupyter_checkpoints.errors import HostNotReady

_SECONDS = 60.0


@contextmanager
def agent_with(engine: str, directory: Path) -> Iterator[layout.Layout]:
    """Everything that connects to an agent meanwhile connects to this one.

    Its images are the host's, its data is in ``directory``. Docker is asked at ``$DOCKER_HOST``.

    Raises
    ------
    HostNotReady
        If the agent does not start; what it said is the reason.
    """
    paths = layout.Layout(directory / "data", directory / "run", layout.DATA_DIR / "images")
    with (directory / "agent.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyter_checkpoints.agent"),
                f"--engine={engine}",
                f"--docker-host={os.environ.get('DOCKER_HOST', '')}",
                f"--data-dir={paths.data_dir}",
                f"--run-dir={paths.run_dir}",
                f"--images-dir={paths.images}",
                "--subnet=10.214.0.0/16",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    before = os.environ.get(layout.SOCKET_ENV)
    try:
        _wait(process, paths.socket, directory / "agent.log")
        os.environ[layout.SOCKET_ENV] = str(paths.socket)
        yield paths
    finally:
        os.environ.pop(layout.SOCKET_ENV, None)
        if before is not None:
            os.environ[layout.SOCKET_ENV] = before
        process.send_signal(signal.SIGTERM)
        process.wait()


def _wait(process: subprocess.Popen[bytes], path: Path, log: Path) -> None:
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(os.fspath(path))
                return
            except OSError:
                time.sleep(0.05)
    raise HostNotReady("The agent did not start.", reason=log.read_text(errors="replace")[-2000:])
