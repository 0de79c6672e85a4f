"""``python -m jupyter_checkpoints.agent.pager``: waits for one resume, and serves it.

The agent keeps one ready, tells it in one line of JSON what to do (:class:`Job`), and waits for the
answer that CRIU may come. It outlives the agent.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import select
import socket
import struct
import sys
import time
from pathlib import Path

import msgspec

from ...message_types import make_types_ready
from ...store.pages import open_pages
from .. import process
from ..cgroup import Cgroup
from . import pair
from .images import lazy_extents
from .job import READY, SOCKET, Job, Outcome, load_touched, save_touched
from .journal import Journal
from .server import Server


def main() -> int:
    make_types_ready()
    line = sys.stdin.readline()
    if not line:
        return 0  # the agent has ended, or needs no pager any more
    job = msgspec.json.decode(line, type=Job)
    bundle, touched_file = Path(job.bundle), Path(job.touched)
    process.mark_self(job.operation)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # What is here stays to the end, and pauses cost somebody a cell's time.
    gc.disable()
    sys.setswitchinterval(0.0005)
    # While this is open there is something to come; the agent waits for its end.
    watched = _listen(bundle, SOCKET)
    listening = _listen(bundle / "work", "lazy-pages.socket")
    os.write(1, READY)
    # No longer: whoever waits for its end would wait for ours.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    # Meanwhile CRIU begins; the images need not be there any longer than it needs them.
    extents = lazy_extents(Path(job.images))
    touched = load_touched(touched_file)
    connection = _accept(listening)
    if connection is None:
        return 0
    # CRIU is in the container's group already: that is ended if its memory cannot be brought.
    group = Cgroup.of(_peer(connection))
    os.dup2(null, 0)
    listening.close()
    journal = Journal()

    def work(keeper: int) -> int:
        try:
            with open_pages(job.pages) as pages:
                server = Server(connection, extents, pages, journal, touched)
                server.serve(keeper)
        except pair.KeeperKilled:
            raise
        except Exception as error:
            # Their memory is not whole, and never will be.
            Outcome(error=str(error) or repr(error)).write(bundle)
            while group.processes():
                group.kill()
                time.sleep(0.01)
            return 1
        with contextlib.suppress(OSError):
            save_touched(touched_file, touched, server.touched)
        Outcome().write(bundle)
        return 0

    status = pair.run(work)
    watched.close()
    return status


def _listen(directory: Path, name: str) -> socket.socket:
    # A socket's path has 107 characters at most; the directory's alone may have more.
    os.chdir(directory)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(name)
    listening.listen()
    os.chdir("/")
    return listening


def _accept(listening: socket.socket) -> socket.socket | None:
    """CRIU's connection; None if the agent has given the resume up, or has ended."""
    poller = select.poll()
    poller.register(listening, select.POLLIN)
    poller.register(0, select.POLLIN)
    if listening.fileno() not in {fd for fd, _ in poller.poll()}:
        return None
    return listening.accept()[0]


def _peer(connection: socket.socket) -> int:
    """The process that has connected."""
    size = struct.calcsize("3i")
    pid, _, _ = struct.unpack(
        "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    )
    return int(pid)


if __name__ == "__main__":
    # Both processes of a pair come here: nothing of the interpreter's end is wanted twice.
    os._exit(main())
