"""``python -m benchmarks [--json] [--sizes 0,0.25,1,4]``: measure on this machine, now.

Needs what ``make lab`` sets up: an agent (one is started for root if none answers), the kernelspecs
``checkpoints-python3`` and ``python3``. Other tools are measured where they are installed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import tempfile
from pathlib import Path

import msgspec
from jupyter_client.kernelspec import NoSuchKernel
from rich.console import Console

from jupyter_checkpoints import layout
from jupyter_checkpoints.client import connect
from jupyter_checkpoints.errors import CheckpointsError
from jupyter_checkpoints.models import Status

from . import measure, rivals, table
from .agent import agent_with
from .results import Host, Report, RivalResult


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
            report = asyncio.run(_measure(arguments, note))
        except CheckpointsError as error:
            errors.print(str(error))
            sys.exit(error.exit_code)
        except NoSuchKernel as error:
            errors.print(f"{error}. Run `make lab ARGS=--check` first.")
            sys.exit(1)
    if arguments.json:
        print(msgspec.json.encode(report).decode())
    else:
        table.show(report, Console())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure saving and resuming on this machine."
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument(
        "--sizes",
        type=lambda text: [float(size) for size in text.split(",") if size],
        default=[0.0, 0.25, 1.0, 4.0],
        help="GiB of random numbers, comma-separated (default: 0,0.25,1,4)",
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
        help="measure this engine, with an agent of its own (default: the host's agent)",
    )
    parser.add_argument("--repeats", type=int, default=3, help="saves per size (default: 3)")
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
        help="for temporary files; on the file system of the store (default: /var/tmp)",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=layout.DATA_DIR,
        help=f"the agent's data directory (default: {layout.DATA_DIR})",
    )
    return parser.parse_args()


async def _measure(arguments: argparse.Namespace, note: measure.Note) -> Report:
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=arguments.directory) as temporary:
        if not arguments.engine:
            paths = layout.Layout(arguments.data_dir, layout.RUN_DIR)
            return await _measure_with(paths, arguments, Path(temporary), note)
        note(f"starting an agent with the {arguments.engine} engine")
        with agent_with(arguments.engine, Path(temporary)) as paths:
            return await _measure_with(paths, arguments, Path(temporary), note)


async def _measure_with(
    paths: layout.Layout, arguments: argparse.Namespace, directory: Path, note: measure.Note
) -> Report:
    async with connect() as agent:
        host = _host(await agent.status())
        images = {image.name: image for image in await agent.images()}
    start = None
    if arguments.starts:
        start = await measure.start(directory, arguments.starts, note)
    store = paths if arguments.cold else None
    results = [
        await measure.size(gib, directory, arguments.repeats, store, note)
        for gib in arguments.sizes
    ]
    changes = [
        change
        for gib in arguments.sizes
        for change in await measure.changes(gib, directory, arguments.changed, paths, note)
    ]
    others: list[RivalResult] = []
    if not arguments.no_rivals:
        image = images["python3"]
        rootfs = paths.images / image.digest / "rootfs"
        for rival in (
            rivals.Dill(directory),
            rivals.Docker(directory, rootfs, image.env),
            rivals.Podman(directory, rootfs, image.env),
        ):
            others += await rival.measure(arguments.sizes, note)
    return Report(
        host=host,
        results=results,
        changes=changes,
        start=start,
        rivals=others,
        cold=arguments.cold,
    )


def _host(status: Status) -> Host:
    return Host(
        machine=platform.machine(),
        processors=len(os.sched_getaffinity(0)),
        kernel=platform.release(),
        engine=status.engine,
        pool=status.pool,
        criu=status.criu_version,
        runc=status.runc_version,
        version=status.version,
    )


if __name__ == "__main__":
    main()
