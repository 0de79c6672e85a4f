"""The same with other tools; here what they have in common, and dill.

Each holds the same array. dill saves it from a plain kernel, and the tools of :mod:`.containers` a
program in a container.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .kernels import kernel
from .measure import GIB, PLAIN, Note, TooLittleMemory, filling, require_memory
from .results import RivalResult


class Unavailable(Exception):
    """The tool cannot do it here; the message says why."""


class Rival(ABC):
    """Another tool. ``directory`` is for its files, on the file system of the store."""

    tool: str

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    async def measure(self, sizes: Sequence[float], note: Note) -> list[RivalResult]:
        """Save and resume each size (GiB) once; a tool that cannot do it says so in the result."""
        results = []
        try:
            known = await self.version()
            for gib in sizes:
                note(f"{self.tool}, {gib:g} GiB")
                try:
                    results.append(await self._measure(gib, known))
                except (Unavailable, TooLittleMemory) as reason:
                    results.append(
                        RivalResult(tool=self.tool, version=known, gib=gib, unavailable=str(reason))
                    )
        except Unavailable as reason:
            results.append(RivalResult(tool=self.tool, unavailable=str(reason)))
        finally:
            await self.close()
        return results

    async def install(self) -> None:  # noqa: B027  (most have nothing to install)
        """Install it from the distribution, if it is missing and can be had there.

        Raises :class:`Unavailable`.
        """

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
        # The array, its pickle, and the pages of the file that it is written to.
        require_memory(3 * gib * GIB + GIB)
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
                await one.run(filling(gib))
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
