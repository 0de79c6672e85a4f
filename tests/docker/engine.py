"""A Docker Engine of the tests' own: nothing of it is shared with one that this host may have."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
from msgspec.structs import replace

from jupyter_checkpoints import layout
from jupyter_checkpoints.agent.docker_setup import RUNTIME, install_runtime
from jupyter_checkpoints.agent.rootfs import unmount_below
from jupyter_checkpoints.agent.tools import find_tools
from tests.agent.agents import wait_until
from tests.agent.watched_agent import PROGRAMS

_NO_NETWORK = (
    *("--bridge=none", "--iptables=false", "--ip6tables=false"),
    *("--ip-masq=false", "--ip-forward=false"),
)
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class DockerEngine:
    """containerd and dockerd with directories, sockets and configuration of their own.

    ``programs`` is a directory with those to use, runc among them, if not the host's.
    ``containerd_images``: containerd's image store instead of ``overlay2`` (Docker 24 and newer).
    ``experimental``: with Docker's own checkpoints, made by the CRIU that our agents use.
    ``network``: a namespace that is all its own (:func:`.own_network.own_network`), where it has a
    firewall and bridges.
    """

    def __init__(
        self,
        root: Path,
        programs: Path | None = None,
        *,
        containerd_images: bool = False,
        storage_driver: str = "overlay2",
        experimental: bool = False,
        network: Sequence[str] = (),
    ) -> None:
        self.root = root
        self._network = list(network)
        self.programs = programs
        self.containerd: subprocess.Popen[bytes] | None = None
        self.dockerd: subprocess.Popen[bytes] | None = None
        tools = find_tools()
        if programs is not None:
            tools = replace(tools, runc=programs / "runc")
        program, _ = install_runtime(tools, root / "runtime", layout.REQUESTS)
        self.daemon_json = root / "daemon.json"
        configuration: dict[str, Any] = {
            "runtimes": {RUNTIME: {"path": str(program)}},
            "live-restore": True,
        }
        self._path = f"{programs}:{_PATH}" if programs else _PATH
        if experimental:
            configuration["experimental"] = True
            self._path = f"{tools.criu.parent}:{self._path}"
        if storage_driver != "overlay2":
            configuration["storage-driver"] = storage_driver
        if programs is not None:
            configuration["features"] = {"containerd-snapshotter": containerd_images}
        self.daemon_json.write_text(json.dumps(configuration))
        (root / "containerd.toml").write_text(
            f'version = 2\nroot = "{root}/containerd/root"\nstate = "{root}/containerd/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{root}/containerd.sock"\n'
        )

    @property
    def url(self) -> str:
        return f"unix://{self.root}/docker.sock"

    @property
    def options(self) -> tuple[str, str]:
        """What an agent has to be told to use it."""
        return "--engine=docker", f"--docker-host={self.url}"

    @property
    def agent_env(self) -> dict[str, str]:
        """What the environment of such an agent has to say."""
        return {PROGRAMS: str(self.programs)} if self.programs else {}

    def client(self) -> Any:
        return docker.DockerClient(base_url=self.url, version="auto", timeout=60)

    def start(self) -> None:
        self.start_containerd()
        self.start_dockerd()

    def start_containerd(self) -> None:
        self.containerd = self._run("containerd", f"--config={self.root}/containerd.toml")
        wait_until(lambda: _listens(self.root / "containerd.sock"), what="containerd")
        if self.dockerd is not None and self.dockerd.poll() is None:
            # It tries to connect again only now and then.
            with contextlib.closing(self.client()) as client:
                wait_until(lambda: _knows_containerd(client), 60, "dockerd and containerd")

    def start_dockerd(self) -> None:
        self.dockerd = self._run(
            "dockerd",
            f"--config-file={self.daemon_json}",
            f"--data-root={self.root}/data",
            f"--exec-root={self.root}/exec",
            f"--pidfile={self.root}/docker.pid",
            f"--host={self.url}",
            f"--containerd={self.root}/containerd.sock",
            # Not a rule and not an interface of this host is touched.
            *([] if self._network else _NO_NETWORK),
        )
        wait_until(lambda: _listens(self.root / "docker.sock"), 60, "dockerd")
        self.client().close()

    def stop_dockerd(self, signum: int = signal.SIGTERM) -> None:
        assert self.dockerd is not None
        self.dockerd.send_signal(signum)
        self.dockerd.wait(60)
        (self.root / "docker.sock").unlink(missing_ok=True)

    def kill_containerd(self) -> None:
        """``kill -9``; containers and their shims live on."""
        assert self.containerd is not None
        self.containerd.kill()
        self.containerd.wait()
        (self.root / "containerd.sock").unlink()

    def shims(self) -> list[int]:
        """The processes that hold containers for containerd."""
        mine = f"-address\0{self.root}/containerd.sock\0".encode()
        return [pid for pid, words in _processes() if b"containerd-shim" in words and mine in words]

    def stop(self) -> None:
        """End containers that are left, then the daemons."""
        if self.dockerd is not None and self.dockerd.poll() is None:
            client = self.client()
            for container in client.containers.list(all=True):
                container.remove(force=True)
            client.close()
        for daemon in (self.dockerd, self.containerd):
            if daemon is not None:
                daemon.terminate()
                daemon.wait(60)
        # Those that containerd has forgotten when it was killed.
        for shim in self.shims():
            os.kill(shim, signal.SIGKILL)

    def log(self) -> str:
        return (self.root / "dockerd.log").read_text()[-4000:]

    def _run(self, program: str, *options: str) -> subprocess.Popen[bytes]:
        with (self.root / f"{program}.log").open("ab") as log:
            return subprocess.Popen(
                [
                    *self._network,
                    self.programs / program if self.programs else program,
                    *options,
                ],
                env={"PATH": self._path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def _knows_containerd(client: Any) -> bool:
    return "containerd" in [part["Name"] for part in client.version()["Components"]]


def _processes() -> Iterator[tuple[int, bytes]]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield int(path.parent.name), path.read_bytes()


def _listens(path: Path) -> bool:
    """A socket's file is there a moment before anybody listens."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _directory() -> Path:
    """Not one of pytest's own: a later session would delete it with what is mounted."""
    root = Path(tempfile.mkdtemp(prefix="jupyter-checkpoints-docker-"))
    root.chmod(0o711)
    return root


@contextmanager
def running_engine(
    programs: Path | None = None,
    *,
    containerd_images: bool = False,
    storage_driver: str = "overlay2",
    network: Sequence[str] = (),
) -> Iterator[DockerEngine]:
    root = _directory()
    try:
        engine = DockerEngine(
            root,
            programs,
            containerd_images=containerd_images,
            storage_driver=storage_driver,
            network=network,
        )
        try:
            engine.start()
            yield engine
        finally:
            engine.stop()
    finally:
        unmount_below(root)
        shutil.rmtree(root)
