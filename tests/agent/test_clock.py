"""The host was rebooted between save and resume: its clocks began anew, the kernel's go on.

A host that was up for less time than the saved kernel's is had by running the agent, and with it
runc and CRIU, in a time namespace.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence

import pytest

from jupyter_checkpoints.client import AgentClient

from .agents import Agent
from .launch import Kernel, Launch

pytestmark = pytest.mark.anyio

PREPARE = """
import asyncio, os, select, signal, threading, time

fired = []
started = time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME), time.time()
signal.signal(signal.SIGALRM, lambda *_: fired.append("alarm"))
signal.setitimer(signal.ITIMER_REAL, {seconds})
threading.Timer({seconds}, fired.append, ["thread"]).start()
asyncio.get_running_loop().call_later({seconds}, fired.append, "asyncio")
timers = [os.timerfd_create(clock) for clock in (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME)]
for timer in timers:
    os.timerfd_settime(timer, initial={seconds}, interval={seconds})
def wait(name, for_it):
    for_it()
    fired.append(name)
for name, for_it in [
    ("sleep", lambda: time.sleep({seconds})),
    ("event", lambda: threading.Event().wait({seconds})),
    ("select", lambda: select.select([], [], [], {seconds})),
    ("child", lambda: os.system("sleep {seconds}")),
]:
    threading.Thread(target=wait, args=(name, for_it)).start()
def clocks():
    now = time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME), time.time()
    return [new - old for new, old in zip(now, started)]
"""
#: Timers of three seconds: not over at the save, and soon after the resume.
SECONDS = 3
EVERYTHING = ["alarm", "asyncio", "child", "event", "select", "sleep", "thread"]
CHECK = """
for _ in range(1000):
    if len(fired) == 7:
        break
    await asyncio.sleep(0.02)
for timer in timers:
    for _ in range(2):
        assert select.select([timer], [], [], 20)[0], "a timer stopped"
        os.read(timer, 8)
print(sorted(fired))
"""


def younger_host(seconds: float) -> Sequence[str]:
    """Runs a program as if the host had been up for ``seconds``."""
    up = time.clock_gettime(time.CLOCK_BOOTTIME), time.monotonic()
    boottime, monotonic = (int(seconds - clock) for clock in up)
    return ["unshare", "--time", f"--boottime={boottime}", f"--monotonic={monotonic}"]


def test_a_younger_host_can_be_had() -> None:
    done = subprocess.run(
        [*younger_host(5), "cat", "/proc/uptime"], check=True, capture_output=True, text=True
    )
    assert 3 < float(done.stdout.split()[0]) < 60


async def resumed_after(agent: Agent, runner: Sequence[str]) -> list[float]:
    """Save a kernel, start the agent anew under ``runner``, resume; what the clocks passed."""
    async with AgentClient(agent.socket) as client:
        original = await Launch(client).start()
        await original.run(PREPARE.format(seconds=SECONDS))
        saved = await original.save()
        assert await original.run("fired") == "[]"
        await original.end()
    agent.end()
    # What is in memory does not outlive a reboot.
    shutil.rmtree(agent.layout.run_dir)
    agent.runner = list(runner)
    agent.start()
    assert agent.process is not None
    elsewhere = os.readlink(f"/proc/{agent.process.pid}/ns/time") != os.readlink(
        "/proc/self/ns/time"
    )
    assert elsewhere == bool(runner)
    async with AgentClient(agent.socket) as client:
        kernel: Kernel = await Launch(client).resume(saved)
        clocks = await kernel.run("clocks()")
        assert await kernel.run(CHECK) == str(EVERYTHING)
        await kernel.end()
        await client.delete_checkpoint(saved.id)
    agent.end()
    agent.runner = []
    agent.start()
    return [float(clock) for clock in clocks.strip("[]").split(",")]


async def test_timers_fire_after_a_reboot(private_agent: Agent) -> None:
    monotonic, boottime, wall = await resumed_after(private_agent, younger_host(5))
    # Neither back nor far ahead: the kernel's clocks leave out the time it was not there.
    assert 0 <= monotonic <= wall + 0.1
    assert 0 <= boottime <= wall + 0.1


async def test_timers_fire_after_a_restart_of_the_agent(private_agent: Agent) -> None:
    monotonic, boottime, wall = await resumed_after(private_agent, [])
    assert 0 <= monotonic <= wall + 0.1
    assert 0 <= boottime <= wall + 0.1
