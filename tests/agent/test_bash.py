"""The Bash kernel: its whole shell with memory, or, in ``filesystem`` mode, its files alone."""

from __future__ import annotations

from uuid import uuid4

import pytest

from jupyter_checkpoints.models import CONNECTION_FILE, Mode, SaveRequest, StartRequest

from .callers import for_all_callers
from .kernels import KEY
from .launch import Launch
from .launch import launch as launch

pytestmark = [pytest.mark.anyio, for_all_callers]

PREPARE = """
mkdir -p /root/work; cd /root/work
export EXPORTED=exported; plain=plain; declare -A map=([key]=value); list=(one two)
greet() { echo "hello $1 from $PWD"; }
alias shout='echo LOUD'
exec 7>/root/work/open; echo before >&7
sleep 600 &
child=$!
set -o noclobber
"""
SHOW = """
echo $EXPORTED $plain ${map[key]} ${list[1]}; greet you; shout
kill -0 $child && echo child; [[ $- == *C* ]] && echo noclobber
echo after >&7; cat /root/work/open
"""
SHOWN = """exported plain value two
hello you from /root/work
LOUD
child
noclobber
before
after"""


def bash(mode: Mode) -> StartRequest:
    return StartRequest(
        kernel_id=str(uuid4()),
        argv=["python", "-m", "bash_kernel", "-f", CONNECTION_FILE],
        key=KEY,
        mode=mode,
        detached=True,
    )


async def test_the_whole_shell(launch: Launch) -> None:
    original = await launch.start(bash("process"))
    await original.run(PREPARE)
    clone = await launch.resume(await original.save())
    for kernel in (original, clone):
        assert (await kernel.run(SHOW)).splitlines() == SHOWN.splitlines()


async def test_files_alone(launch: Launch) -> None:
    original = await launch.start(bash("filesystem"))
    await original.run(PREPARE)
    saved = await original.save()
    assert (saved.mode, saved.memory_size) == ("filesystem", 0)
    clone = await launch.resume(saved)
    assert await clone.run("cat /root/work/open") == "before"
    assert await clone.run("echo [$plain] $(type -t greet) $PWD") == "[] /"
    # And the original's shell is what it was.
    assert (await original.run(SHOW)).splitlines() == SHOWN.splitlines()
    assert await clone.run("cat /root/work/open") == "before"


async def test_one_save_may_take_the_other_mode(launch: Launch) -> None:
    original = await launch.start(bash("filesystem"))
    await original.run(PREPARE)
    clone = await launch.resume(await original.save(SaveRequest(mode="process")))
    assert (await clone.run(SHOW)).splitlines() == SHOWN.splitlines()


async def test_files_alone_in_place(launch: Launch) -> None:
    """The same kernel id and address, an earlier state of its files, a fresh shell."""
    original = await launch.start(bash("filesystem"))
    await original.run("echo saved > /root/file; plain=plain")
    saved = await original.save()
    await original.run("echo later > /root/file")
    await launch.agent.resume(original.model.id, saved.id)
    assert await original.run("cat /root/file; echo [$plain]") == "saved\n[]"
