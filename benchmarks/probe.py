"""``python -m benchmarks.probe``: ask an event loop for a trifle every 5 ms, and time the answers.

Started by :mod:`.loops`, as a process of its own, so that nothing else that is measured keeps it
waiting. It says a line once it has its first answer; when its standard input is closed it prints
what it found, in JSON, and ends.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import select
import socket
import sys
import time

import msgspec
from msgspec import Struct

_INTERVAL = 0.005


class Waits(Struct, frozen=True, kw_only=True):
    """Seconds that answers took."""

    worst: float
    p99: float
    requests: int


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("agent")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.probe")
    parser.add_argument("address", help="a socket's file, or HOST:PORT")
    parser.add_argument("path")
    arguments = parser.parse_args()
    if os.path.isabs(arguments.address):
        connection: http.client.HTTPConnection = _UnixConnection(arguments.address)
    else:
        connection = http.client.HTTPConnection(arguments.address)
    # What is to be seen is how long the loop takes, and not how long this process waits for a
    # processor.
    with contextlib.suppress(PermissionError):
        os.nice(-10)
    _ask(connection, arguments.path)
    print("ready", flush=True)
    waits = []
    while True:
        began = time.perf_counter()
        _ask(connection, arguments.path)
        waits.append(time.perf_counter() - began)
        left = max(0.0, began + _INTERVAL - time.perf_counter())
        if select.select([sys.stdin], [], [], left)[0]:
            break
    waits.sort()
    found = Waits(worst=waits[-1], p99=waits[len(waits) * 99 // 100], requests=len(waits))
    print(msgspec.json.encode(found).decode())


def _ask(connection: http.client.HTTPConnection, path: str) -> None:
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    if response.status != 200:
        raise RuntimeError(f"{path} answers {response.status}")


if __name__ == "__main__":
    main()
