"""What the agent does for its store when nobody asks for anything."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

from ..store.store import GRACE, Store
from .background import Background
from .precopies import Precopies

log = logging.getLogger(__name__)


async def keep_store(
    store: Store, precopies: Precopies, keep_precopies: float, compress_after: float
) -> None:
    """Give back what deleted checkpoints have left, and compress what has lain for a while.

    Started by the agent, and cancelled at its end: it returns soon then, and nothing is half done.

    Parameters
    ----------
    keep_precopies:
        Seconds after which a pre-copy is given up.
    compress_after:
        Seconds; 0 for never.
    """
    stopped = threading.Event()
    idler = ThreadPoolExecutor(1, thread_name_prefix="upkeep", initializer=Background().enter)
    loop = asyncio.get_running_loop()
    try:
        while True:
            await asyncio.sleep(GRACE)
            await asyncio.to_thread(precopies.give_up_old, keep_precopies)
            await asyncio.to_thread(store.tidy)
            if compress_after:
                gained = await loop.run_in_executor(
                    idler, store.compress, compress_after, stopped.is_set
                )
                if gained:
                    log.info("Checkpoints take %.0f MB less: they were compressed.", gained / 1e6)
    finally:
        stopped.set()
        await asyncio.to_thread(idler.shutdown)
