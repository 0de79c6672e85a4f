"""Blocking work that gives way to everything else, until somebody waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_LEAST = 19


class Background:
    """One piece of such work: what it does, it does in threads that have entered it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: set[int] = set()
        self._hurried = False

    async def run(self, work: Callable[[], T]) -> T:
        """Do it, in a thread of its own."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="background", initializer=self.enter)
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, work)
        finally:
            thread.shutdown(wait=False)

    def enter(self) -> None:
        """Let the calling thread have only what processor and disk nobody else wants.

        What it reads and writes gives way with it: see ioprio_set(2).
        """
        with self._lock:
            self._threads.add(threading.get_native_id())
            if not self._hurried:
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LEAST)

    def hurry(self) -> None:
        """Somebody waits: from now on its threads are like all others."""
        with self._lock:
            self._hurried = True
            for thread in self._threads:
                # It may have ended.
                with contextlib.suppress(OSError):
                    os.setpriority(os.PRIO_PROCESS, thread, 0)
