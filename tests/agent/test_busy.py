"""Kernels that are saved in the middle of a cell: it goes on, in the kernel and in its clone."""

from __future__ import annotations

import hashlib
import time

import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient

from .callers import for_all_callers
from .cells import CellError, finish
from .launch import Launch
from .launch import launch as launch

pytestmark = [pytest.mark.anyio, for_all_callers]

ROUNDS = 240
#: A tenth of a second each: the cell runs for 24 seconds.
LOOP = f"""
import time
seen = []
for n in range({ROUNDS}):
    seen.append(n)
    print(n, flush=True)
    time.sleep(0.1)
"""


async def printed(channels: AsyncKernelClient, cell: str, text: str) -> None:
    """Wait until the cell has printed something."""
    while True:
        message = await channels.get_iopub_msg(timeout=60)
        if message["parent_header"].get("msg_id") != cell or message["msg_type"] != "stream":
            continue
        if text in message["content"]["text"].split():
            return


async def test_a_long_loop_goes_on_in_both(launch: Launch) -> None:
    original = await launch.start()
    began = time.monotonic()
    cell = original.channels.execute(LOOP)
    await printed(original.channels, cell, "100")

    saved = await original.save()
    # The clone gives the reply to whoever had asked: the new client comes as the same one.
    clone = await launch.resume(saved, session=original.channels.session.session)
    lines = {}
    for name, kernel in (("original", original), ("clone", clone)):
        lines[name] = (await finish(kernel.channels, cell)).split()
    assert time.monotonic() - began > 20

    # Nothing the original printed is lost; the clone's output is heard once somebody listens.
    assert lines["original"] == [str(n) for n in range(101, ROUNDS)]
    assert 100 < int(lines["clone"][0]) < ROUNDS - 50
    assert lines["clone"] == [str(n) for n in range(int(lines["clone"][0]), ROUNDS)]
    for kernel in (original, clone):
        assert await kernel.run(f"seen == list(range({ROUNDS}))") == "True"


async def test_a_computation_comes_to_the_same_result(launch: Launch) -> None:
    """No rest in between: saved wherever the processor is."""
    steps = 3_000_000
    original = await launch.start()
    cell = original.channels.execute(
        "import hashlib\nvalue = b''\nprint('began', flush=True)\n"
        f"for _ in range({steps}):\n    value = hashlib.sha256(value).digest()"
    )
    await printed(original.channels, cell, "began")
    saved = await original.save()
    clone = await launch.resume(saved, session=original.channels.session.session)
    value = b""
    for _ in range(steps):
        value = hashlib.sha256(value).digest()
    for kernel in (original, clone):
        await finish(kernel.channels, cell)
        assert await kernel.run("value.hex()") == repr(value.hex())


async def test_a_sleeping_cell_can_be_interrupted(launch: Launch) -> None:
    original = await launch.start()
    cell = original.channels.execute("import time\nprint('began', flush=True)\ntime.sleep(3600)")
    await printed(original.channels, cell, "began")
    saved = await original.save()
    clone = await launch.resume(saved, session=original.channels.session.session)
    for kernel in (original, clone):
        await kernel.agent.signal(kernel.model.id, 2)
        with pytest.raises(CellError, match="KeyboardInterrupt"):
            await finish(kernel.channels, cell)
        assert await kernel.run("6 * 7") == "42"


async def test_a_cell_that_waits_for_input(launch: Launch) -> None:
    original = await launch.start()
    cell = original.channels.execute("print('You are', input('Who? '))")
    assert (await original.channels.get_stdin_msg(timeout=60))["content"]["prompt"] == "Who? "
    saved = await original.save()
    clone = await launch.resume(saved, session=original.channels.session.session)
    for kernel, name in ((original, "one"), (clone, "two")):
        kernel.channels.input(name)
        assert await finish(kernel.channels, cell) == f"You are {name}"


async def test_saved_many_times_while_busy(launch: Launch) -> None:
    original = await launch.start()
    cell = original.channels.execute(
        "import time\nfor n in range(2000):\n    print(n)\n    time.sleep(0.001)"
    )
    for _ in range(5):
        checkpoint = await original.save()
        await original.agent.delete_checkpoint(checkpoint.id)
    lines = (await finish(original.channels, cell)).split()
    assert lines == [str(n) for n in range(2000)]
