"""Other tools that save containers: runc with CRIU and nothing else, Docker, and Podman.

They save a program in a container of the same image, because neither has a kernel that one could
talk to after a restore. runc and Docker keep the processes only, Podman's export has the files too.
None of them flushes to the disk what it has saved.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import subprocess
import tempfile
import time
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from jupyter_checkpoints.agent.tools import child_environment, find_tools

from .docker_engine import docker_engine
from .measure import FILL, GIB, require_memory
from .results import RivalResult
from .rivals import Rival, Unavailable

#: Seconds for one command; Docker needs a quarter of a minute for a gigabyte.
_TIMEOUT = 300.0
_NAME = "jupyter-checkpoints-benchmark"
_DOCKER_TRIES = 5
_COLLECTED_SECONDS = 3.0

#: Says that it lives whenever the clock on the wall has jumped: after a pause, after a restore.
_PROGRAM = (
    FILL
    + """
import time
def say(text):
    with open("/out/said", "a") as file:
        file.write(text + chr(10))
say("ready")
last = time.time()
while True:
    time.sleep(0.001)
    now = time.time()
    if now - last > 0.02:
        say(str(now - last))
        now = time.time()
    last = now
"""
)


class _ContainerTool(Rival):
    """``rootfs`` and ``env``: the image that our kernels have."""

    def __init__(self, directory: Path, rootfs: Path, env: Mapping[str, str]) -> None:
        super().__init__(directory)
        self.rootfs = rootfs
        self.env = env
        #: What the program sees as ``/out``; nothing is mounted in it.
        self.out = directory / "out"

    async def _measure(self, gib: float, version: str) -> RivalResult:
        require_memory(gib * GIB + GIB)
        self.out.mkdir(exist_ok=True)
        out = self.out / "said"
        out.unlink(missing_ok=True)
        try:
            await self._start(_PROGRAM.format(count=int(gib * GIB) // 8))
            await self._said(out, 1)
            said = len(_lines(out))
            began = time.perf_counter()
            await self._save()
            saved = time.perf_counter() - began
            # It may have been kept waiting before; the pause is the longest that it says.
            lines = (await self._said(out, said + 1))[said:]
            held = await self._held()
            await self._stop()
            said = len(_lines(out))
            began = time.perf_counter()
            await self._restore()
            await self._said(out, said + 1)
            resumed = time.perf_counter() - began
        finally:
            await self._remove()
        return RivalResult(
            tool=self.tool,
            version=version,
            gib=gib,
            pause_s=max(map(float, lines)),
            save_s=saved,
            resume_s=resumed,
            bytes_held=held,
        )

    async def _said(self, out: Path, count: int) -> list[str]:
        """Wait until the program has said ``count`` things."""
        deadline = time.monotonic() + _TIMEOUT
        look = time.monotonic() + 1
        while True:
            lines = await asyncio.to_thread(_lines, out)
            if len(lines) >= count:
                return lines
            if time.monotonic() > look:
                look = time.monotonic() + 1
                state = await self._state()
                if state != "running" or look > deadline:
                    raise Unavailable(f"the program does not go on: {state} {await self._log()}")
            await asyncio.sleep(0.002)

    @abstractmethod
    async def _start(self, program: str) -> None:
        """Start the container with a program in Python."""

    @abstractmethod
    async def _save(self) -> None:
        """Save the container; it goes on running."""

    @abstractmethod
    async def _held(self) -> int:
        """Bytes of what was saved."""

    @abstractmethod
    async def _stop(self) -> None:
        """End the container; what was saved stays."""

    @abstractmethod
    async def _restore(self) -> None: ...

    @abstractmethod
    async def _remove(self) -> None:
        """Remove container and checkpoint, if they are there."""

    @abstractmethod
    async def _state(self) -> str:
        """``running``, or what the tool calls it otherwise."""

    @abstractmethod
    async def _log(self) -> str:
        """The last words of the container or of CRIU."""


class Runc(_ContainerTool):
    """``runc checkpoint`` and ``runc restore`` with CRIU's defaults; no store, nothing flushed."""

    tool = "runc + CRIU"

    @property
    def _root(self) -> Path:
        return self.directory / "runc"

    @property
    def _bundle(self) -> Path:
        return self.directory / "bundle"

    @property
    def _images(self) -> Path:
        return self._bundle / "images"

    async def version(self) -> str:
        tools = await asyncio.to_thread(find_tools)
        self._program = str(tools.runc)
        self._environment = child_environment(tools.criu.parent)
        return f"{tools.runc_version} + {tools.criu_version}"

    async def close(self) -> None:
        await asyncio.to_thread(shutil.rmtree, self._root, ignore_errors=True)

    async def _start(self, program: str) -> None:
        self._bundle.mkdir()
        await self._runc("spec", "--bundle", str(self._bundle))
        path = self._bundle / "config.json"
        config: dict[str, Any] = json.loads(path.read_text())
        config["root"] = {"path": str(self.rootfs), "readonly": True}
        config["process"]["terminal"] = False
        # The host's /dev/null could not be saved, the container's can.
        quiet = 'exec python -c "$0" </dev/null >/dev/null 2>&1'
        config["process"]["args"] = ["sh", "-c", quiet, program]
        config["process"]["env"] = [f"{name}={value}" for name, value in self.env.items()]
        config["mounts"].append(
            {
                "destination": "/out",
                "type": "bind",
                "source": str(self.out),
                "options": ["rbind", "rw"],
            }
        )
        path.write_text(json.dumps(config))
        await self._runc("run", "--detach", "--bundle", str(self._bundle), _NAME)

    async def _save(self) -> None:
        await self._by_criu("checkpoint", "--leave-running")

    async def _held(self) -> int:
        return _size(self._images)

    async def _stop(self) -> None:
        await self._runc("delete", "--force", _NAME)

    async def _restore(self) -> None:
        await self._by_criu("restore", "--detach", "--bundle", str(self._bundle))

    async def _remove(self) -> None:
        await self._runc("delete", "--force", _NAME, check=False)
        await asyncio.to_thread(shutil.rmtree, self._bundle, ignore_errors=True)

    async def _state(self) -> str:
        found = await self._runc("state", _NAME, check=False)
        try:
            return str(json.loads(found)["status"])
        except ValueError:
            return found.strip()

    async def _log(self) -> str:
        work = self._bundle / "work"
        logs = sorted(work.glob("*.log"), key=lambda path: path.stat().st_mtime)
        lines = logs[-1].read_text(errors="replace").splitlines() if logs else []
        return "; ".join([line for line in lines if "Error" in line][-3:])

    async def _by_criu(self, verb: str, *options: str) -> None:
        work = self._bundle / "work"
        try:
            await self._runc(
                *(verb, *options, "--image-path", str(self._images)),
                *("--work-path", str(work), _NAME),
            )
        except Unavailable as error:
            raise Unavailable(f"{error} {await self._log()}".strip()) from error

    async def _runc(self, verb: str, *arguments: str, check: bool = True) -> str:
        # What it leaves running must not keep a pipe of ours open.
        with tempfile.TemporaryFile() as output:
            process = await asyncio.create_subprocess_exec(
                *(self._program, "--root", str(self._root), verb, *arguments),
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
            await _ended(f"runc {verb}", process)
            output.seek(0)
            return _checked(f"runc {verb}", process, output.read(), check)


class _Command(_ContainerTool):
    """A tool with Docker's command line."""

    command: str
    package: str
    _imported = False

    @property
    def _environment(self) -> dict[str, str]:
        """With the CRIU that our kernels are saved by."""
        criu = find_tools().criu.parent
        return {**os.environ, "PATH": f"{criu}:{os.environ['PATH']}"}

    async def version(self) -> str:
        if shutil.which(self.command) is None:
            raise Unavailable(f"it is not installed; `--rivals {self.tool}` installs it")
        return (await self._run("version", "--format", "{{.Client.Version}}")).strip()

    async def install(self) -> None:
        if shutil.which(self.command) is not None:
            return
        for arguments in (("update",), ("install", "--yes", "--no-install-recommends")):
            packages = (self.package,) if arguments[0] == "install" else ()
            process = await asyncio.create_subprocess_exec(
                *("apt-get", "-qq", *arguments, *packages),
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            await _finished(f"apt-get {arguments[0]}", process)

    async def close(self) -> None:
        if self._imported:
            await self._run("rmi", "--force", _NAME, check=False)

    async def _start(self, program: str) -> None:
        await self._remove()
        if not self._imported:
            await self._import()
            self._imported = True
        await self._run(
            *("run", "--detach", "--name", _NAME, "--network", "none"),
            *("--volume", f"{self.out}:/out", *self._run_options()),
            *(f"--env={name}={value}" for name, value in self.env.items()),
            *(_NAME, "python", "-c", program),
        )

    async def _import(self) -> None:
        """The same image, by way of a pipe."""
        process = await asyncio.create_subprocess_shell(
            f'tar --create --directory "$ROOTFS" . | {self.command} import - {_NAME}',
            env={**self._environment, "ROOTFS": os.fspath(self.rootfs)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        await _finished(f"{self.command} import", process)

    async def _stop(self) -> None:
        await self._run("kill", _NAME)
        await self._run("wait", _NAME, check=False)

    async def _remove(self) -> None:
        await self._run("rm", "--force", _NAME, check=False)

    async def _state(self) -> str:
        state = await self._run("inspect", "--format", "{{.State.Status}}", _NAME, check=False)
        return state.strip()

    async def _log(self) -> str:
        return (await self._run("logs", "--tail", "1", _NAME, check=False)).strip()

    async def _run(self, *arguments: str, check: bool = True) -> str:
        process = await asyncio.create_subprocess_exec(
            self.command,
            *arguments,
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        return await _finished(f"{self.command} {arguments[0]}", process, check)

    def _run_options(self) -> list[str]:
        return []


class Docker(_Command):
    """``docker checkpoint``, an experimental feature; a daemon of our own is started for it."""

    tool = "docker"
    command = "docker"
    package = "docker.io"

    def __init__(self, directory: Path, rootfs: Path, env: Mapping[str, str]) -> None:
        super().__init__(directory, rootfs, env)
        self._daemon = ExitStack()
        self._url = ""

    @property
    def _environment(self) -> dict[str, str]:
        return {**super()._environment, "DOCKER_HOST": self._url}

    async def version(self) -> str:
        if shutil.which("dockerd") is None:
            raise Unavailable("it is not installed; `--rivals docker` installs it")
        try:
            self._url = await asyncio.to_thread(self._daemon.enter_context, docker_engine())
        except Exception as error:
            raise Unavailable(f"its daemon does not start: {error}") from error
        return (await self._run("version", "--format", "{{.Server.Version}}")).strip()

    async def close(self) -> None:
        await asyncio.to_thread(self._daemon.close)

    async def _save(self) -> None:
        await self._run("checkpoint", "create", "--leave-running", _NAME, "one")

    async def _held(self) -> int:
        root = (await self._run("info", "--format", "{{.DockerRootDir}}")).strip()
        identity = (await self._run("inspect", "--format", "{{.Id}}", _NAME)).strip()
        return _size(Path(root, "containers", identity, "checkpoints"))

    async def _stop(self) -> None:
        await super()._stop()
        # containerd removes a moment later what Docker is going to give it anew.
        await asyncio.sleep(_COLLECTED_SECONDS)

    async def _restore(self) -> None:
        for _ in range(_DOCKER_TRIES):
            try:
                await self._run("start", "--checkpoint", "one", _NAME)
            except Unavailable as error:
                # containerd may still have what Docker wants to give it anew.
                if "already exists" not in str(error):
                    raise
                failed = error
            else:
                return
        raise failed


class Podman(_Command):
    """``podman container checkpoint --export``, uncompressed, which is its fastest."""

    tool = "podman"
    command = "podman"
    package = "podman"

    @property
    def _archive(self) -> Path:
        return self.directory / "podman.tar"

    async def close(self) -> None:
        self._archive.unlink(missing_ok=True)
        await super().close()

    def _run_options(self) -> list[str]:
        # Podman raises these by default, which many a container and virtual machine does not allow.
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        return [f"--ulimit=nofile={files}:{files}", "--ulimit=nproc=1024:1024"]

    async def _save(self) -> None:
        await self._run(
            *("container", "checkpoint", "--leave-running", "--compress", "none"),
            *("--export", os.fspath(self._archive), _NAME),
        )

    async def _held(self) -> int:
        return self._archive.stat().st_size

    async def _stop(self) -> None:
        await self._run("rm", "--force", _NAME)

    async def _restore(self) -> None:
        await self._run("container", "restore", "--import", os.fspath(self._archive))


async def _finished(what: str, process: asyncio.subprocess.Process, check: bool = True) -> str:
    output = await _ended(what, process)
    return _checked(what, process, output, check)


async def _ended(what: str, process: asyncio.subprocess.Process) -> bytes:
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _TIMEOUT)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise Unavailable(f"{what} did not end within {_TIMEOUT:.0f} s") from None
    return output


def _checked(what: str, process: asyncio.subprocess.Process, output: bytes, check: bool) -> str:
    text = output.decode(errors="replace")
    if check and process.returncode:
        lines = text.strip().splitlines()
        raise Unavailable(f"{what}: {lines[-1] if lines else f'exit status {process.returncode}'}")
    return text


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
