"""``python -m benchmarks [--docs] [--sizes 0,1,4,8]``: measure on this machine, now.

Needs what ``jupyter-checkpoints setup`` sets up. An agent with data of its own is started for it.
Other tools are measured where they are installed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec
import psutil
from rich.console import Console
from rich.markdown import Markdown

from jupyter_checkpoints.client import connect
from jupyter_checkpoints.errors import CheckpointsError
from jupyter_checkpoints.models import Status

from . import containers, loops, many, measure, page, rivals, tables
from .agent import Agent, agent_with
from .results import Host, Missing, Report, RivalResult

T = TypeVar("T")

#: By the names that ``--rivals`` knows.
_RIVALS: dict[str, Callable[[Path, Path, Mapping[str, str]], rivals.Rival]] = {
    "runc": containers.Runc,
    "docker": containers.Docker,
    "podman": containers.Podman,
    "dill": lambda directory, *_: rivals.Dill(directory),
}


def main() -> None:
    arguments = _arguments()
    if arguments.from_file is not None:
        report = msgspec.json.decode(arguments.from_file.read_bytes(), type=Report)
    else:
        report = _measure(arguments)
        arguments.results.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    if arguments.docs:
        page.write(report)
    if arguments.json:
        print(msgspec.json.encode(report).decode())
    else:
        Console().print(Markdown(tables.markdown(report)))


def _measure(arguments: argparse.Namespace) -> Report:
    errors = Console(stderr=True)
    with errors.status("Measuring…") as status:
        quiet = not errors.is_terminal

        def note(text: str) -> None:
            if quiet:
                errors.print(text)
            else:
                status.update(f"Measuring: {text}")

        try:
            return asyncio.run(_measured(arguments, note))
        except CheckpointsError as error:
            errors.print(str(error))
            sys.exit(error.exit_code)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure saving and resuming on this machine."
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument(
        "--docs", action="store_true", help=f"write {page.PAGE.name} and {page.PICTURE.name} anew"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("benchmark.json"),
        help="where to keep what was measured (default: benchmark.json)",
    )
    parser.add_argument(
        "--from",
        dest="from_file",
        metavar="RESULTS",
        type=Path,
        help="measure nothing, and show what an earlier run kept",
    )
    parser.add_argument(
        "--sizes",
        type=lambda text: [float(size) for size in text.split(",") if size],
        default=[0.0, 1.0, 4.0, 8.0],
        help="GiB of random numbers, comma-separated (default: 0,1,4,8)",
    )
    parser.add_argument(
        "--changed",
        type=lambda text: [float(share) for share in text.split(",") if share],
        default=[0.0, 0.01, 0.1],
        help="shares of memory that change before further saves (default: 0,0.01,0.1)",
    )
    parser.add_argument(
        "--engine",
        choices=["embedded", "docker"],
        default="embedded",
        help="which engine to measure (default: embedded)",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="turns per size; one less for more than 1 GiB (default: 3)",
    )
    parser.add_argument(
        "--starts", type=int, default=10, help="kernel starts of each kind (default: 10; 0: none)"
    )
    parser.add_argument(
        "--cold", action="store_true", help="resume from the disk and not from the page cache"
    )
    parser.add_argument(
        "--rivals",
        type=lambda text: [name for name in text.split(",") if name],
        help="other tools to measure, comma-separated, of "
        + ", ".join(_RIVALS)
        + "; what is missing is installed (default: those that are there; empty: none)",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path("/var/tmp"),
        help="for the agent's data and temporary files (default: /var/tmp)",
    )
    return parser.parse_args()


async def _measured(arguments: argparse.Namespace, note: measure.Note) -> Report:
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=arguments.directory) as temporary:
        note(f"starting an agent with the {arguments.engine} engine")
        with agent_with(arguments.engine, Path(temporary)) as agent:
            return await _Run(arguments, agent, Path(temporary), note).all()


class _Run:
    """One run: whatever cannot be measured is noted, and the rest goes on."""

    def __init__(
        self, arguments: argparse.Namespace, agent: Agent, directory: Path, note: measure.Note
    ) -> None:
        self.arguments = arguments
        self.agent = agent
        self.directory = directory
        self.note = note

    async def all(self) -> Report:
        arguments, directory, note = self.arguments, self.directory, self.note
        paths = self.agent.paths
        async with connect() as client:
            host = _host(await client.status())
            images = {image.name: image for image in await client.images()}
        self.report = report = Report(host=host, cold=arguments.cold)
        if arguments.starts:
            report.start = await self._try(
                "starting kernels", measure.start(directory, arguments.starts, note)
            )
        for gib in arguments.sizes:
            repeats = arguments.repeats if gib <= 1 else max(1, arguments.repeats - 1)
            size = await self._try(
                f"{gib:g} GiB, saving and resuming",
                measure.size(gib, directory, repeats, self.agent, arguments.cold, note),
            )
            changes = await self._try(
                f"{gib:g} GiB, saving again",
                measure.changes(gib, directory, arguments.changed, repeats, paths, note),
            )
            precopied = await self._try(
                f"{gib:g} GiB, saving after a pre-copy",
                measure.precopied(gib, directory, repeats, paths, note),
            )
            ten = await self._try(
                f"{gib:g} GiB, ten checkpoints", many.ten_checkpoints(gib, directory, paths, note)
            )
            remixes = await self._try(
                f"{gib:g} GiB, ten remixes", many.ten_remixes(gib, directory, note)
            )
            server = await self._try(
                f"{gib:g} GiB, a server with other kernels",
                loops.server(gib, directory, self.agent, repeats, note),
            )
            report.sizes += [size] if size else []
            report.changes += changes or []
            report.precopies += [precopied] if precopied else []
            report.tens += [ten] if ten else []
            report.remixes += [remixes] if remixes else []
            report.servers += [server] if server else []
        image = images["python3"]
        rootfs = paths.images / image.digest / "rootfs"
        for name, kind in _RIVALS.items():
            if arguments.rivals is None or name in arguments.rivals:
                rival = kind(directory, rootfs, image.env)
                found = await self._try(name, self._rival(rival))
                report.rivals += found or []
        return report

    async def _rival(self, rival: rivals.Rival) -> list[RivalResult]:
        if self.arguments.rivals is not None:
            try:
                await rival.install()
            except rivals.Unavailable as reason:
                self.note(f"{rival.tool} cannot be installed: {reason}")
        return await rival.measure(self.arguments.sizes, self.note)

    async def _try(self, what: str, work: Awaitable[T]) -> T | None:
        try:
            return await work
        except Exception as error:
            why = str(error).strip().splitlines() or [type(error).__name__]
            self.report.missing.append(Missing(what=what, why=why[-1]))
            self.note(f"{what}: {error}")
            await self._clean_up()
            return None

    async def _clean_up(self) -> None:
        """Have the usual agent again, and nothing in it that a measurement has left."""
        await asyncio.to_thread(self.agent.run)
        async with connect() as client:
            for kernel in await client.kernels():
                await client.delete_kernel(kernel.id)
            for checkpoint in await client.checkpoints():
                await measure.delete(client, checkpoint.id)


def _host(status: Status) -> Host:
    return Host(
        machine=platform.machine(),
        processor=_processor(),
        processors=len(os.sched_getaffinity(0)),
        memory=psutil.virtual_memory().total,
        kernel=platform.release(),
        engine=status.engine,
        pool=status.pool,
        criu=status.criu_version,
        runc=status.runc_version,
        version=status.version,
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
