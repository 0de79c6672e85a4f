"""A clone and its original live at once, and know nothing of each other."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest

from jupyter_checkpoints.models import Mount, SaveRequest, StartRequest

from .callers import for_all_callers
from .kernels import python_kernel
from .launch import Launch
from .launch import launch as launch

pytestmark = [pytest.mark.anyio, for_all_callers]

PREPARE = """
import os, socket, threading, time
os.makedirs("/root/work", exist_ok=True)
open("/root/work/both", "w").write("both")
open("/root/work/removed later", "w").write("here")
open("/etc/debian_version", "w").write("changed")
log = open("/root/work/log", "a")
log.write("before;")
log.flush()
x = {"side": "none"}
"""


async def test_files_and_variables_are_each_ones_own(launch: Launch) -> None:
    original = await launch.start()
    await original.run(PREPARE)
    clone = await launch.resume(await original.save())
    sides = {"original": original, "clone": clone}

    for name, kernel in sides.items():
        await kernel.run(f"x['side'] = {name!r}; log.write({name!r}); log.flush()")
        await kernel.run(f"open('/root/work/of {name}', 'w').write({name!r})")
        await kernel.run(f"open('/etc/debian_version', 'a').write({name!r})")
    await clone.run("os.remove('/root/work/removed later')")
    await original.run("os.rename('/root/work/both', '/root/work/moved')")

    for name, kernel in sides.items():
        other = {"original": "clone", "clone": "original"}[name]
        assert await kernel.run("x['side']") == repr(name)
        assert await kernel.run("open('/root/work/log').read()") == repr(f"before;{name}")
        assert await kernel.run("open('/etc/debian_version').read()") == repr(f"changed{name}")
        files = await kernel.run("sorted(os.listdir('/root/work'))")
        assert f"of {name}" in files
        assert f"of {other}" not in files
    assert "removed later" in await original.run("os.listdir('/root/work')")
    assert await clone.run("open('/root/work/both').read()") == "'both'"


async def test_processes_and_addresses_are_each_ones_own(launch: Launch) -> None:
    original = await launch.start()
    await original.run("import subprocess; child = subprocess.Popen(['sleep', '600'])")
    clone = await launch.resume(await original.save())
    addresses = {k.model.connection.ip for k in (original, clone) if k.model.connection}
    assert len(addresses) == 2
    await clone.run("child.kill(); child.wait()")
    assert await original.run("child.poll() is None") == "True"
    assert await clone.run("child.poll()") == "-9"
    # What the system gives out anew is not the same twice.
    chance = "import os, uuid; (os.urandom(16).hex(), uuid.uuid4().hex)"
    assert await original.run(chance) != await clone.run(chance)


async def test_the_notebooks_directory_is_shared(launch: Launch, notebooks: Path) -> None:
    """It is the host's, not the container's: both see what either writes there."""
    mount = Mount(source=str(notebooks), target=str(notebooks))
    original = await launch.start(python_kernel(str(uuid4()), mounts=[mount], detached=True))
    clone = await launch.resume(await original.save())
    await clone.run(f"open('{notebooks}/result', 'w').write('from the clone')")
    assert (notebooks / "result").read_text() == "from the clone"
    assert await original.run(f"open('{notebooks}/result').read()") == "'from the clone'"


async def test_many_clones_at_once(launch: Launch) -> None:
    original = await launch.start()
    await original.run("import os, threading, time; ticks = 0")
    await original.run(
        "def tick():\n    global ticks\n    while True:\n        ticks += 1\n"
        "        time.sleep(.001)\n"
        "threading.Thread(target=tick, daemon=True).start()"
    )
    saved = await original.save()
    clones = await asyncio.gather(*(launch.resume(saved) for _ in range(4)))
    kernels = [original, *clones]
    for number, kernel in enumerate(kernels):
        await kernel.run(f"open('/root/number', 'w').write('{number}')")
    for number, kernel in enumerate(kernels):
        assert await kernel.run("open('/root/number').read()") == f"'{number}'"
        await kernel.run("before = ticks\nwhile ticks == before:\n    time.sleep(0.01)")


async def test_a_clone_needs_neither_original_nor_checkpoint(launch: Launch) -> None:
    original = await launch.start()
    await original.run("x = list(range(10**6)); open('/root/file', 'w').write('kept')")
    saved = await original.save()
    clone = await launch.resume(saved)
    await original.end()
    await launch.agent.delete_checkpoint(saved.id)

    assert await clone.run("sum(x), open('/root/file').read()") == "(499999500000, 'kept')"
    again = await launch.resume(await clone.save())
    assert await again.run("sum(x), open('/root/file').read()") == "(499999500000, 'kept')"


async def test_a_checkpoint_of_a_stopped_kernel_can_be_cloned(launch: Launch) -> None:
    original = await launch.start()
    await original.run("x = 41")
    saved = await original.save(SaveRequest(stop=True))
    clone = await launch.resume(saved)
    assert await clone.run("x + 1") == "42"
    # The original still sleeps, and wakes in its own place.
    await launch.agent.resume(original.model.id, saved.id)
    assert await original.run("x + 2") == "43"


async def test_an_old_checkpoint_can_be_resumed_again_and_again(launch: Launch) -> None:
    original = await launch.start()
    await original.run("x = ['first']; open('/root/file', 'w').write('first')")
    first = await original.save()
    await original.run("x.append('second'); open('/root/file', 'w').write('second')")
    second = await original.save()
    for checkpoint, expected in ((first, "first"), (second, "second"), (first, "first")):
        kernel = await launch.resume(checkpoint)
        assert await kernel.run("x[-1], open('/root/file').read()") == repr((expected, expected))
        await kernel.run("x.append('third'); open('/root/file', 'w').write('third')")
        await kernel.end()
    assert (await launch.agent.checkpoint(second.id)).parent == first.id


async def test_a_resumed_kernel_can_be_started_afresh(launch: Launch) -> None:
    """A restart, as Jupyter does it: the id's new start is a new state, in fresh files."""
    original = await launch.start()
    await original.run("x = 1; open('/root/file', 'w').write('of the checkpoint')")
    clone = await launch.resume(await original.save())
    assert await clone.run("x") == "1"
    await launch.agent.delete_kernel(clone.model.id)
    request = python_kernel(clone.model.id, detached=True)
    assert isinstance(request, StartRequest)
    fresh = await launch.start(request)
    assert await fresh.run("'x' in globals()") == "False"
    assert await fresh.run("import os; os.path.exists('/root/file')") == "False"
