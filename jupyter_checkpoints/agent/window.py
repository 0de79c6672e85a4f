"""The frozen window of a dump: CRIU has written all but the memory, and the processes stand still.

A dump with lazy pages keeps private anonymous memory back, to serve it to another host. It is
asked for none of it: while it waits, its processes are frozen and whole, and the agent takes from
them what it needs. The dump waits at one end of a pair of sockets that nobody else can reach; when
the agent closes the other end, or dies, the processes go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import select
import socket
import struct
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

#: page-xfer.c: struct page_server_iov, with the command PS_IOV_FORCE_CLOSE.
_CLOSE = struct.pack("<IIQQQ", 0x1024, 0, 0, 0, 0)


#: CRIU holds all memory in pipes of a MiB while the window is open: two descriptors each, and some
#: more for pieces.
_PER_MIB = 2.25
_SPARE_DESCRIPTORS = 512


def affordable(memory: int) -> bool:
    """Whether CRIU may well have as many descriptors as a window needs for ``memory`` bytes.

    Without ``CAP_SYS_RESOURCE`` neither it nor the agent can have more than their hard limit. It
    may need more than this: for memory that processes share after a fork, it has pipes for each.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _PER_MIB * memory / 2**20 + _SPARE_DESCRIPTORS
    return most == resource.RLIM_INFINITY or needed <= most


class Window:
    """The window of one dump, made before it is started. Used by one save."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair()
        self._theirs = theirs.detach()
        self._status, self._done = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._kept = [self._theirs, self._done]

    def give(self) -> list[int]:
        """The descriptors that CRIU has to inherit; whoever starts it closes them here then."""
        given, self._kept = self._kept, []
        return given

    @property
    def configuration(self) -> str:
        """What CRIU's configuration has to say."""
        return f"ps-socket {self._theirs}\nstatus-fd {self._done}\n"

    async def during(
        self,
        dump: Coroutine[Any, Any, object],
        take: Callable[[], None],
        go_on: Callable[[Callable[[], bool]], object] = lambda ended: None,
    ) -> None:
        """Run a dump, and ``take``, in a thread, while all stands still.

        Then ``go_on`` is called in that thread, with what tells whether the dump has ended.
        Raises whatever any of them does; the dump has ended then, and the processes go on.
        """
        running: asyncio.Future[object] = asyncio.ensure_future(dump)

        def work() -> None:
            # Like the dump: others on a busy host wait, instead of the processes.
            with contextlib.suppress(OSError):
                os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
            if self._opened():
                try:
                    take()
                finally:
                    # At once, whatever else this process has to do.
                    self._release()
                go_on(running.done)

        # A thread of its own: the processes stand still until it has begun, too.
        thread = ThreadPoolExecutor(1, thread_name_prefix="window")
        working: asyncio.Future[None] = asyncio.wrap_future(thread.submit(work))
        thread.shutdown(wait=False)
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError:
            running.cancel()
            raise
        finally:
            # If the window has not opened, it never will.
            with contextlib.suppress(OSError):
                self._ours.shutdown(socket.SHUT_RDWR)
            await asyncio.gather(working, running, return_exceptions=True)
        working.result()
        running.result()

    def close(self) -> None:
        """Give back what is left of it."""
        self._ours.close()
        for fd in (*self.give(), self._status):
            os.close(fd)

    def _opened(self) -> bool:
        """Wait until the images are written and all stands still; false if that never comes.

        It never comes when all that have inherited what :meth:`give` gave are gone, or our end of
        the sockets is shut down. Blocking.
        """
        waiting = select.poll()
        waiting.register(self._status, select.POLLIN)
        waiting.register(self._ours, select.POLLIN)
        ready = dict(waiting.poll())
        return self._status in ready and bool(os.read(self._status, 1))

    def _release(self) -> None:
        """Let the processes go on."""
        # If the dump has ended: how, its status tells.
        with contextlib.suppress(OSError):
            self._ours.sendall(_CLOSE)
            # Not closed before the dump has ended: it answers.
            self._ours.shutdown(socket.SHUT_WR)
