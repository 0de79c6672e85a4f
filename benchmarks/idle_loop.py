"""``python -m benchmarks.idle_loop SOCKET``: an event loop that has nothing to do but to answer.

Started by :mod:`.loops`. What a request to it has to wait for is the machine, and not the loop.
It says a line once it listens, and ends when its standard input is closed.
"""

from __future__ import annotations

import asyncio
import sys

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_unix_socket
from tornado.web import Application, RequestHandler


class _Nothing(RequestHandler):
    def get(self) -> None:
        self.finish({})


async def _serve(path: str) -> None:
    server = HTTPServer(Application([("/", _Nothing)], log_function=lambda _: None))
    server.add_socket(bind_unix_socket(path))
    print("listens", flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
