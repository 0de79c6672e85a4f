"""kill -9 of Docker's own processes, at random moments of saves and resumes.

dockerd and containerd come back, as their services do: at once, or only when what was going on has
ended without them. A shim takes its container with it, which is an end like any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_checkpoints import layout
from jupyter_checkpoints.agent import process
from jupyter_checkpoints.client import AgentClient
from tests.agent.agents import Agent, wait_until
from tests.agent.cells import PATIENCE
from tests.agent.conftest import running_agent
from tests.agent.test_crash import (
    SPAN,
    VERBS,
    begin,
    check_all,
    check_kernel,
    outcome,
    saved_kernel,
    told,
)

from . import newest
from .conftest import DOCKER
from .engine import DockerEngine, running_engine

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(900)]

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "4"))
LABEL = "org.jupyter.runtime-checkpoints"


@pytest.fixture(scope="module")
def docker_engine() -> Iterator[DockerEngine]:
    """One that may be killed."""
    programs = None if DOCKER == "host" else newest.require()
    with running_engine(programs, containerd_images=DOCKER == "newest-containerd") as engine:
        yield engine


@pytest.fixture(scope="module")
def agent(default_image: None, docker_engine: DockerEngine) -> Iterator[Agent]:
    with running_agent(*docker_engine.options, env=docker_engine.agent_env) as agent:
        yield agent


class Victim:
    """One of Docker's processes."""

    def __init__(self, engine: DockerEngine, name: str, choose: random.Random) -> None:
        self.engine = engine
        self.name = name
        self.choose = choose
        self._killed = False

    def kill(self) -> None:
        self._killed = True
        match self.name:
            case "dockerd":
                self.engine.stop_dockerd(signal.SIGKILL)
            case "containerd":
                self.engine.kill_containerd()
            case "shim":
                # The kernel's, or that of what is being started; none after a stop that was quick.
                if shims := sorted(self.engine.shims()):
                    self._kill_shim(self.choose.choice(shims))

    def _kill_shim(self, shim: int) -> None:
        held: list[int] = []
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ends by itself
            for path in Path(f"/proc/{shim}/task").glob("*/children"):
                held += map(int, path.read_text().split())
            os.kill(shim, signal.SIGKILL)
        # containerd ends what it held.
        wait_until(lambda: not any(map(process.start_time, held)))

    def revive(self) -> None:
        match self.name:
            case "dockerd" if self._killed:
                self.engine.start_dockerd()
            case "containerd" if self._killed:
                self.engine.start_containerd()
        self._killed = False


def left_in_docker(agent: Agent, engine: DockerEngine) -> dict[str, object]:
    """What Docker has of an agent's kernels; empty when there is none."""
    client = engine.client()
    label = f"{LABEL}.agent={agent.layout.run_dir}"
    found: list[Any] = client.containers.list(all=True, filters={"label": label})
    client.close()
    requests = [p for p in layout.REQUESTS.iterdir() if str(agent.layout.run_dir) in p.read_text()]
    return {
        "containers": [(c.name, c.status, c.labels) for c in found],
        "requests": requests,
        "mounts": [
            line.split()[4]
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if f"{engine.root}/" in line and " overlay " in line
        ],
    }


# The one that looks for shims comes first: where its daemons are killed Docker may forget some.
@pytest.mark.parametrize("name", ["shim", "dockerd", "containerd"])
async def test_kill_9(agent: Agent, docker_engine: DockerEngine, name: str) -> None:
    seed = int(os.environ.get("CRASH_SEED", random.randrange(10**6)))
    print(f"CRASH_SEED={seed}")  # noqa: T201 - to repeat a failure
    victim = Victim(docker_engine, name, random.Random(f"{name} {seed}"))
    try:
        async with AgentClient(agent.socket) as client:
            await be_killed(victim, agent, client)
    finally:
        # One failure is one failure: those that follow find everything as it was.
        await asyncio.to_thread(victim.revive)
        async with asyncio.timeout(PATIENCE):
            await agent.delete_everything()
    agent.assert_clean()
    wait_until(
        lambda: not any(left_in_docker(agent, docker_engine).values()),
        what=f"{left_in_docker(agent, docker_engine)}",
    )


async def be_killed(victim: Victim, agent: Agent, client: AgentClient) -> None:
    """A kernel is saved and resumed over and over, and in the midst of each the victim dies."""
    choose = victim.choose
    kernel_id = str(uuid.uuid4())
    digest, base = await saved_kernel(client, kernel_id)
    hits = rounds = 0
    # A run in which hardly anything was ever hit would prove nothing.
    while rounds < ROUNDS or hits < ROUNDS // 2:
        rounds += 1
        assert rounds <= 4 * ROUNDS, hits
        verb, delay, at_once = (
            choose.choice(VERBS),
            choose.random() * SPAN,
            choose.random() < 0.5,
        )
        operation = asyncio.ensure_future(
            outcome(begin(verb, client, kernel_id, base, str(uuid.uuid4())))
        )
        await asyncio.sleep(delay)
        hits += not operation.done()
        await asyncio.to_thread(victim.kill)
        if not at_once:
            async with asyncio.timeout(PATIENCE):
                await operation
        await asyncio.to_thread(victim.revive)
        async with asyncio.timeout(PATIENCE):
            await operation
            kernel = await told(client, kernel_id)
            if victim.name == "shim" and kernel.state == "exited":
                assert kernel.exit_code == 128 + signal.SIGKILL
            else:
                # Without Docker's daemons kernels live on.
                assert kernel.state in ("running", "stopped"), (verb, delay, kernel)
            if kernel.state != "running":
                # What it was resumed from earlier is deleted by now.
                saved = kernel.checkpoint if kernel.state == "stopped" else base.id
                kernel = await client.resume(kernel_id, saved)
            await check_kernel(kernel, digest)
            for other in await client.kernels():
                if other.id != kernel_id:
                    await client.delete_kernel(other.id)
        assert await check_all(client, base.id) in (1, 2)
        # The kernel's container, and nothing else. Of a start in whose midst its own daemons
        # were killed, Docker may forget a shim: that has no container, and is not ours.
        wait_until(
            lambda: victim.name != "shim" or len(victim.engine.shims()) == 1,
            what=f"{left_in_docker(agent, victim.engine)}",
        )
