"""A Docker Engine for one run: the one that the tests have, with Docker's own checkpoints."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jupyter_checkpoints.agent.rootfs import unmount_below
from tests.docker.engine import DockerEngine


@contextmanager
def docker_engine() -> Iterator[str]:
    """The URL of a Docker Engine that can save containers, and knows our OCI runtime. Blocks."""
    root = Path(tempfile.mkdtemp(prefix="benchmark-docker-", dir="/var/tmp"))
    try:
        engine = DockerEngine(root, experimental=True)
        try:
            engine.start()
            yield engine.url
        finally:
            engine.stop()
    finally:
        unmount_below(root)
        shutil.rmtree(root)
