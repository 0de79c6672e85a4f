"""A private agent for tests: own data, own run-time state, own addresses; images are the host's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jupyter_checkpoints import layout
from jupyter_checkpoints.agent.subnets import free_subnet
from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.layout import Layout
from tests.unit.store.saving import flip, place_of

IMAGES = layout.DATA_DIR / "images"
_PROGRAM = Path(__file__).with_name("watched_agent.py")


def wait_until(condition: Callable[[], bool], seconds: float = 30, what: str = "") -> None:
    """Poll until ``condition`` holds; fails the test if it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what or condition}"
        time.sleep(0.01)


class Agent:
    """Starts, stops and kills one agent process; ``options`` are further command line options."""

    def __init__(
        self,
        root: Path,
        *options: str,
        data_dir: Path | None = None,
        subnet: str = "",
    ) -> None:
        self.layout = Layout(data_dir or root / "data", root / "run", IMAGES)
        self.log = root / "agent.log"
        self.options = [
            f"--data-dir={self.layout.data_dir}",
            f"--run-dir={self.layout.run_dir}",
            f"--images-dir={IMAGES}",
            f"--subnet={subnet or free_subnet()}",
            *options,
        ]
        if not any(o.startswith("--engine=") for o in options):
            self.options.append("--engine=embedded")
        #: A program that runs the agent, if it is not to be run directly.
        self.runner: list[str] = []
        #: Added to its environment.
        self.env: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.layout.socket

    def start(self, env: dict[str, str] | None = None) -> None:
        """Returns when it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.runner, sys.executable, str(_PROGRAM), *self.options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.env, **(env or {})},
            )
        mark = f"listens on {self.socket}"
        before = self._starts(mark) if self.log.exists() else 0
        process = self.process
        wait_until(
            lambda: self._starts(mark) > before or process.poll() is not None, what="agent's start"
        )
        assert process.poll() is None, self.log.read_text()

    def _starts(self, mark: str) -> int:
        return self.log.read_text().count(mark)

    def end(self, signum: int = signal.SIGTERM) -> None:
        """Send a signal and wait for its end."""
        assert self.process is not None
        self.process.send_signal(signum)
        self.process.wait(30)
        self.process = None

    def restart(self, signum: int = signal.SIGTERM) -> None:
        self.end(signum)
        self.start()

    def audit(self) -> list[dict[str, Any]]:
        """The lines of the audit log so far."""
        return [
            json.loads(line[line.index("{") :])
            for line in self.log.read_text().splitlines()
            if '{"time": ' in line
        ]

    # -- what is on the host -------------------------------------------------------------------

    def mounts(self) -> list[str]:
        roots = (str(self.layout.run_dir), str(self.layout.data_dir))
        return [
            line.split()[4]
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if line.split()[4].startswith(roots) and line.split()[4] != str(self.layout.pool)
        ]

    def interfaces(self) -> list[str]:
        prefix = f"jrc{self.layout.instance}"
        return [p.name for p in Path("/sys/class/net").iterdir() if p.name.startswith(prefix)]

    def namespaces(self) -> list[str]:
        directory = Path("/run/netns")
        prefix = f"jrc{self.layout.instance}-"
        return [p.name for p in directory.iterdir() if p.name.startswith(prefix)]

    def cgroups(self) -> list[str]:
        # What has gone meanwhile has no children.
        found = [next(os.walk(group), ("", [], [])) for group in self.cgroup_roots()]
        return [str(Path(group, child)) for group, children, _ in found for child in children]

    def cgroup_roots(self) -> list[Path]:
        """The groups that those of all containers are in."""
        name = f"jupyter-checkpoints-{self.layout.instance}"
        # Not by a glob: others come and go meanwhile.
        return [Path(d) for d, _, _ in os.walk("/sys/fs/cgroup") if Path(d).name == name]

    def containers(self) -> list[str]:
        return [p.name for p in self.layout.runc_root.iterdir()]

    def kernel_directories(self) -> list[str]:
        return [p.name for p in self.layout.kernels.iterdir()]

    def staging(self) -> list[str]:
        return [p.name for p in self.layout.store.iterdir() if p.name.startswith(".")]

    def damage(self, checkpoint_id: str, image: str) -> None:
        """Change a byte of a process image where the store keeps it."""
        flip(*place_of(self.layout.store, self.layout.packs, checkpoint_id, image))

    def pack(self, checkpoint_id: str) -> Path:
        """The file that most of a checkpoint's memory is in."""
        return place_of(self.layout.store, self.layout.packs, checkpoint_id, "pages-2.img")[0]

    def layers(self) -> list[str]:
        return [p.name for p in (self.layout.pool / "layers").iterdir()]

    def snapshots(self) -> set[str]:
        return {p.name for p in (self.layout.pool / "snapshots").iterdir()}

    def checkpoints(self) -> set[str]:
        return {p.name for p in self.layout.store.iterdir() if not p.name.startswith(".")}

    def processes(self) -> list[str]:
        """Monitors and marked children of this agent."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            mark = os.fsencode(f"JUPYTER_CHECKPOINTS_OPERATION={self.layout.instance}/")
            if mark in text or (b"monitor.py" in text and self._monitors(entry)):
                found.append(entry.name)
        return found

    def _monitors(self, process: Path) -> bool:
        """Whether a monitor of this agent has a container; a spare one has no log open."""
        try:
            open_files = [os.readlink(p) for p in (process / "fd").iterdir()]
        except OSError:
            return False
        return any(f.startswith(str(self.layout.kernels)) for f in open_files)

    def leftovers(self) -> dict[str, object]:
        """Everything on the host that belongs to kernels; empty values when no kernel exists."""
        return {
            "mounts": self.mounts(),
            # One link is always kept ready for the next kernel.
            "interfaces": self.interfaces()[1:],
            "namespaces": self.namespaces()[1:],
            "cgroups": self.cgroups(),
            "containers": self.containers(),
            "stages": [p.name for p in self.layout.stages.iterdir()],
            "kernels": self.kernel_directories(),
            "staging": self.staging(),
            "layers": self.layers(),
            "snapshots": self.snapshots() ^ self.checkpoints(),
            "processes": self.processes(),
        }

    def assert_clean(self) -> None:
        """Nothing of any kernel is left; what is on its way out gets a moment."""
        assert "BlockingError" not in self.log.read_text(), self.log.read_text()[-4000:]
        try:
            wait_until(lambda: not any(self.leftovers().values()), 15)
        except AssertionError:
            left = {name: value for name, value in self.leftovers().items() if value}
            raise AssertionError(f"left over: {left}\n{self.log.read_text()[-4000:]}") from None

    def purge(self) -> None:
        """After a test, also one that failed: end all kernels, then the agent."""
        if self.process is None:
            self.start()
        asyncio.run(self.delete_everything())
        self.end()
        if os.path.ismount(self.layout.pool):
            subprocess.run(["umount", self.layout.pool], check=True)

    async def delete_everything(self) -> None:
        """All kernels and all checkpoints; what works on them is waited for."""
        async with AgentClient(self.socket) as client:
            for kernel in await client.kernels():
                await client.delete_kernel(kernel.id)
            for checkpoint in await client.checkpoints():
                await client.delete_checkpoint(checkpoint.id)
