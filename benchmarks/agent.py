"""An agent for one run of the benchmarks, with the engine that is to be measured."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from jupyter_checkpoints import kernelspecs, layout
from jupyter_checkpoints.agent.docker_client import is_ready
from jupyter_checkpoints.agent.subnets import free_subnet
from jupyter_checkpoints.errors import HostNotReady

from .docker_engine import docker_engine

_SECONDS = 60.0


class Agent:
    """Started and stopped as the measurements need it; kernels and checkpoints stay.

    Its images are the host's, its data is in ``directory``. Docker is asked at ``docker_host``.
    Methods block.
    """

    def __init__(self, engine: str, directory: Path, docker_host: str) -> None:
        self.paths = layout.Layout(
            directory / "data", directory / "run", layout.DATA_DIR / "images"
        )
        self._engine = engine
        self._docker_host = docker_host
        self._subnet = free_subnet()
        self._log = directory / "agent.log"
        self.held = directory / "agent.held"
        """What has held its event loop, see :mod:`.held`."""
        self._process: subprocess.Popen[bytes] | None = None
        self._options: tuple[str, ...] = ()

    def run(self, *options: str) -> None:
        """Have it run with these options; one that runs with others is replaced.

        Raises
        ------
        HostNotReady
            If it does not start; what it said is the reason.
        """
        if self._process is not None and options == self._options:
            return
        self.stop()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "benchmarks.held", self.held),
                    "jupyter_checkpoints.agent",
                    f"--engine={self._engine}",
                    f"--docker-host={self._docker_host}",
                    f"--data-dir={self.paths.data_dir}",
                    f"--run-dir={self.paths.run_dir}",
                    f"--images-dir={self.paths.images}",
                    f"--subnet={self._subnet}",
                    *options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._options = options
        self._wait(self._process)

    def stop(self) -> None:
        """Its kernels run on."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGTERM)
            process.wait()

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(os.fspath(self.paths.socket))
                    return
                except OSError:
                    time.sleep(0.05)
        raise HostNotReady("The agent did not start.", reason=self.said())

    def said(self) -> str:
        """The end of its log."""
        return self._log.read_text(errors="replace")[-2000:]


@contextmanager
def agent_with(engine: str, directory: Path) -> Iterator[Agent]:
    """Everything that connects to an agent meanwhile connects to this one, and knows our kernels.

    Raises
    ------
    HostNotReady
        If the agent does not start.
    """
    kernelspecs.add_defaults(prefix=str(directory))
    stack = ExitStack()
    docker_host = os.environ.get("DOCKER_HOST", "")
    if engine == "docker" and not is_ready(docker_host):
        # This host's Docker, if it has one, does not know the runtime: it is left as it is.
        docker_host = stack.enter_context(docker_engine())
    agent = Agent(engine, directory, docker_host)
    shown = {
        layout.SOCKET_ENV: str(agent.paths.socket),
        "JUPYTER_PATH": str(directory / "share" / "jupyter"),
    }
    before = {name: os.environ.get(name) for name in shown}
    os.environ.update(shown)
    try:
        agent.run()
        yield agent
    finally:
        agent.stop()
        stack.close()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
