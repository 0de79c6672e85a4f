"""The same with other tools, where they are installed: dill, Docker and Podman.

Each holds the same array. dill saves it from a plain kernel; Docker and Podman save a program in a
container of the same image, because neither has a kernel that one could talk to after a restore.
Docker keeps the processes only, Podman's export has the files too.
"""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .kernels import kernel
from .measure import FILL, GIB, PLAIN, Note
from .results import RivalResult

#: Seconds for one command; Docker needs a quarter of a minute for a gigabyte.
_TIMEOUT = 300.0
_NAME = "jupyter-checkpoints-benchmark"

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


class Unavailable(Exception):
    """The tool cannot do it here; the message says why."""


class Rival(ABC):
    """Another tool. ``directory`` is for its files, on the file system of the store."""

    tool: str

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    async def measure(self, sizes: Sequence[float], note: Note) -> list[RivalResult]:
        """Save and resume each size (GiB) once; a tool that cannot do it says so in the result."""
        try:
            known = await self.version()
        except Unavailable as reason:
            return [RivalResult(tool=self.tool, unavailable=str(reason))]
        results = []
        try:
            for gib in sizes:
                note(f"{self.tool}, {gib:g} GiB")
                try:
                    results.append(await self._measure(gib, known))
                except Unavailable as reason:
                    results.append(
                        RivalResult(tool=self.tool, version=known, gib=gib, unavailable=str(reason))
                    )
        finally:
            await self.close()
        return results

    @abstractmethod
    async def close(self) -> None:
        """Remove what was made."""

    @abstractmethod
    async def version(self) -> str:
        """The tool's version. Raises :class:`Unavailable`."""

    @abstractmethod
    async def _measure(self, gib: float, version: str) -> RivalResult: ...


class Dill(Rival):
    """Pickles the kernel's variables, from inside; what cannot be pickled is lost or fails."""

    tool = "dill"

    @property
    def _session(self) -> Path:
        return self.directory / "session.pkl"

    async def version(self) -> str:
        try:
            version("numpy")
            return version("dill")
        except PackageNotFoundError as error:
            raise Unavailable(f"{error.name} is not installed in this Python") from error

    async def close(self) -> None:
        self._session.unlink(missing_ok=True)

    async def _measure(self, gib: float, version: str) -> RivalResult:
        path = self._session
        # In functions: what lies in __main__ is pickled too, an open file among it.
        save = f"""
def save(path):
    import dill, os
    dill.dump_module(path)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return os.path.getsize(path)
save({os.fspath(path)!r})
"""
        try:
            async with kernel(PLAIN, self.directory) as one:
                await one.run(FILL.format(count=int(gib * GIB) // 8) + "None")
                began = time.perf_counter()
                held = await one.run(save)
                saved = time.perf_counter() - began
            began = time.perf_counter()
            async with kernel(PLAIN, self.directory) as other:
                load = f"import dill\ndill.load_module({os.fspath(path)!r})\nNone"
                await other.run(load)
                await other.run("data.size")
                resumed = time.perf_counter() - began
        except RuntimeError as error:
            raise Unavailable(str(error).splitlines()[-1]) from error
        return RivalResult(
            tool=self.tool,
            version=version,
            gib=gib,
            # The kernel itself does it, and nothing else meanwhile.
            pause_s=saved,
            save_s=saved,
            resume_s=resumed,
            bytes_held=held,
        )


class _ContainerTool(Rival):
    command: str

    def __init__(self, directory: Path, rootfs: Path, env: Mapping[str, str]) -> None:
        super().__init__(directory)
        self.rootfs = rootfs
        self.env = env
        self._imported = False

    async def version(self) -> str:
        if shutil.which(self.command) is None:
            raise Unavailable(f"{self.command} is not installed")
        return (await self._run("version", "--format", "{{.Client.Version}}")).strip()

    async def _measure(self, gib: float, version: str) -> RivalResult:
        out = self.directory / "said"
        out.unlink(missing_ok=True)
        program = _PROGRAM.format(count=int(gib * GIB) // 8)
        async with self._container(program):
            await self._said(out, 1)
            began = time.perf_counter()
            await self._save()
            saved = time.perf_counter() - began
            paused = float((await self._said(out, 2))[1])
            held = await self._held()
            await self._stop()
            said = len(_lines(out))
            began = time.perf_counter()
            await self._restore()
            await self._said(out, said + 1)
            resumed = time.perf_counter() - began
        return RivalResult(
            tool=self.tool,
            version=version,
            gib=gib,
            pause_s=paused,
            save_s=saved,
            resume_s=resumed,
            bytes_held=held,
        )

    @asynccontextmanager
    async def _container(self, program: str) -> AsyncIterator[None]:
        await self._run("rm", "--force", _NAME, check=False)
        if not self._imported:
            await self._import()
            self._imported = True
        try:
            await self._run(
                *("run", "--detach", "--name", _NAME, "--network", "none"),
                *("--volume", f"{self.directory}:/out", *self._run_options()),
                *(f"--env={name}={value}" for name, value in self.env.items()),
                *(_NAME, "python", "-c", program),
            )
            yield
        finally:
            await self._run("rm", "--force", _NAME, check=False)

    async def _import(self) -> None:
        """The same image, by way of a pipe."""
        process = await asyncio.create_subprocess_shell(
            f'tar --create --directory "$ROOTFS" . | {self.command} import - {_NAME}',
            env={**os.environ, "ROOTFS": os.fspath(self.rootfs)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        await _finished(f"{self.command} import", process)

    async def close(self) -> None:
        if self._imported:
            await self._run("rmi", "--force", _NAME, check=False)

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
                state = await self._run("inspect", "--format", "{{.State.Status}}", _NAME)
                if state.strip() != "running" or look > deadline:
                    log = (await self._run("logs", "--tail", "1", _NAME, check=False)).strip()
                    raise Unavailable(f"the program does not go on: {state.strip()} {log}")
            await asyncio.sleep(0.002)

    async def _run(self, *arguments: str, check: bool = True) -> str:
        process = await asyncio.create_subprocess_exec(
            self.command,
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        return await _finished(f"{self.command} {arguments[0]}", process, check)

    def _run_options(self) -> list[str]:
        return []

    @abstractmethod
    async def _save(self) -> None:
        """Save the container; it goes on running."""

    @abstractmethod
    async def _held(self) -> int:
        """Bytes of what was saved."""

    async def _stop(self) -> None:
        await self._run("kill", _NAME)
        await self._run("wait", _NAME, check=False)

    @abstractmethod
    async def _restore(self) -> None: ...


class Docker(_ContainerTool):
    """``docker checkpoint``, an experimental feature that the daemon has to be started with."""

    tool = "docker"
    command = "docker"

    async def version(self) -> str:
        known = await super().version()
        if (await self._run("info", "--format", "{{.ExperimentalBuild}}")).strip() != "true":
            raise Unavailable("the Docker daemon was not started with --experimental")
        return known

    async def _save(self) -> None:
        await self._run("checkpoint", "create", "--leave-running", _NAME, "one")

    async def _held(self) -> int:
        root = (await self._run("info", "--format", "{{.DockerRootDir}}")).strip()
        identity = (await self._run("inspect", "--format", "{{.Id}}", _NAME)).strip()
        return _size(Path(root, "containers", identity, "checkpoints"))

    async def _restore(self) -> None:
        await self._run("start", "--checkpoint", "one", _NAME)


class Podman(_ContainerTool):
    """``podman container checkpoint --export``, uncompressed, which is its fastest."""

    tool = "podman"
    command = "podman"

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
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _TIMEOUT)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise Unavailable(f"{what} did not end within {_TIMEOUT:.0f} s") from None
    text = output.decode(errors="replace")
    if check and process.returncode:
        lines = text.strip().splitlines()
        raise Unavailable(f"{what}: {lines[-1] if lines else f'exit status {process.returncode}'}")
    return text


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
