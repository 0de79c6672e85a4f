"""``python -m benchmarks.docker_runtime``: what the OCI runtime costs containers that are not ours.

Docker may be told to run everything by the runtime ``jupyter-checkpoints``. What is no kernel goes
on to runc; this measures ``docker run --rm`` of a program that does nothing, by either, in turns.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tarfile
import time
from pathlib import Path
from typing import Any

import docker

from jupyter_checkpoints.agent.docker_setup import RUNTIME

from .docker_engine import docker_engine

_IMAGE = "jupyter-checkpoints-nothing"
#: A static program that ends at once.
_PROGRAM = Path("/usr/bin/tini-static")
_RUNTIMES = ("runc", RUNTIME)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.docker_runtime",
        description="Measure what the OCI runtime costs containers that are not kernels.",
    )
    parser.add_argument("--repeats", type=int, default=20, help="runs of each (default: 20)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    arguments = parser.parse_args()
    with docker_engine() as url:
        client = docker.DockerClient(base_url=url, version="auto")
        client.api.import_image_from_data(_archive(), repository=_IMAGE)
        found = _measured(client, arguments.repeats)
        client.close()
    plain, ours = (statistics.median(found[runtime]) for runtime in _RUNTIMES)
    result = {
        "runc_ms": round(1000 * plain, 1),
        f"{RUNTIME}_ms": round(1000 * ours, 1),
        "more_ms": round(
            1000
            * statistics.median(
                b - a for a, b in zip(*(found[runtime] for runtime in _RUNTIMES), strict=True)
            ),
            1,
        ),
        "ratio": round(ours / plain, 3),
        "runs": arguments.repeats,
    }
    if arguments.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name:24} {value}" for name, value in result.items()))


def _measured(client: Any, repeats: int) -> dict[str, list[float]]:
    """Seconds of each run, by runtime; the first turn is not counted."""
    found: dict[str, list[float]] = {runtime: [] for runtime in _RUNTIMES}
    for turn in range(repeats + 1):
        # Whoever is second finds more in the caches.
        for runtime in _RUNTIMES if turn % 2 else _RUNTIMES[::-1]:
            began = time.perf_counter()
            client.containers.run(
                _IMAGE,
                ["/init", "--version"],
                runtime=runtime,
                network_mode="none",
                remove=True,
            )
            if turn:
                found[runtime].append(time.perf_counter() - began)
    return found


def _archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(_PROGRAM.resolve(), "init")
    return buffer.getvalue()


if __name__ == "__main__":
    main()
