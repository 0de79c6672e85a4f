"""``python -m benchmarks [--json] [--sizes 0,1,4,8]``: measure on this machine, now.

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
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import msgspec
import psutil
from rich.console import Console
from rich.markdown import Markdown

from jupyter_checkpoints.client import connect
from jupyter_checkpoints.errors import CheckpointsError
from jupyter_checkpoints.models import Status

from . import loops, many, measure, rivals, tables
from .agent import Agent, agent_with
from .results import Host, Missing, Report

T = TypeVar("T")


def main() -> None:
    arguments = _arguments()
    errors = Console(stderr=True)
    with errors.status("Measuring…") as status:
        quiet = not errors.is_terminal

        def note(text: str) -> None:
            if quiet:
                errors.print(text)
            else:
                status.update(f"Measuring: {text}")

        try:
            report = asyncio.run(_measured(arguments, note))
        except CheckpointsError as error:
            errors.print(str(error))
            sys.exit(error.exit_code)
    if arguments.json:
        print(msgspec.json.encode(report).decode())
    else:
        Console().print(Markdown(tables.markdown(report)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure saving and resuming on this machine."
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
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
    parser.add_argument("--repeats", type=int, default=3, help="turns per size (default: 3)")
    parser.add_argument(
        "--starts", type=int, default=10, help="kernel starts of each kind (default: 10; 0: none)"
    )
    parser.add_argument(
        "--cold", action="store_true", help="resume from the disk and not from the page cache"
    )
    parser.add_argument("--no-rivals", action="store_true", help="leave other tools out")
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
            size = await self._try(
                f"{gib:g} GiB, saving and resuming",
                measure.size(gib, directory, arguments.repeats, self.agent, arguments.cold, note),
            )
            changes = await self._try(
                f"{gib:g} GiB, saving again",
                measure.changes(gib, directory, arguments.changed, arguments.repeats, paths, note),
            )
            ten = await self._try(
                f"{gib:g} GiB, ten checkpoints", many.ten_checkpoints(gib, directory, paths, note)
            )
            remixes = await self._try(
                f"{gib:g} GiB, ten remixes", many.ten_remixes(gib, directory, note)
            )
            server = await self._try(
                f"{gib:g} GiB, a server with other kernels",
                loops.server(gib, directory, paths.socket, arguments.repeats, note),
            )
            report.sizes += [size] if size else []
            report.changes += changes or []
            report.tens += [ten] if ten else []
            report.remixes += [remixes] if remixes else []
            report.servers += [server] if server else []
        if not arguments.no_rivals:
            image = images["python3"]
            rootfs = paths.images / image.digest / "rootfs"
            for rival in (
                rivals.Dill(directory),
                rivals.Docker(directory, rootfs, image.env),
                rivals.Podman(directory, rootfs, image.env),
            ):
                found = await self._try(rival.tool, rival.measure(arguments.sizes, note))
                report.rivals += found or []
        return report

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
