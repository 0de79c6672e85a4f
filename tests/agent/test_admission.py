"""Whom the agent serves, and for whom root may ask."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jupyter_checkpoints.client import AgentClient
from jupyter_checkpoints.errors import InvalidRequest

from ..users import User, Users
from .agents import Agent
from .conftest import running_agent

pytestmark = pytest.mark.anyio

STATUS = """
import anyio, sys
from pathlib import Path
from jupyter_checkpoints.client import connect
from jupyter_checkpoints.errors import CheckpointsError

async def main(socket, user=None):
    async with connect(Path(socket), user=user) as agent:
        try:
            print((await agent.status()).uid)
        except CheckpointsError as error:
            print(type(error).__name__, error)

anyio.run(main, *sys.argv[1:])
"""


@pytest.fixture(scope="module")
def shared(default_image: None, users: Users) -> Iterator[Agent]:
    """An agent that serves both users."""
    with running_agent(f"--AgentApp.allowed_groups={users.group}") as agent:
        yield agent


def _status(user: User, agent: Agent, *named: str) -> str:
    return user.run(STATUS, str(agent.socket), *named)


def test_members_of_the_group_are_served(shared: Agent, users: Users) -> None:
    found = shared.socket.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o660, 0)
    assert found.st_gid == users.alice.groups[0]
    for user in (users.alice, users.bob):
        assert _status(user, shared) == str(user.uid)


def test_numbers_are_served_without_a_group(default_image: None, users: Users) -> None:
    options = [f"--AgentApp.allowed_uids=[{users.alice.uid}]", "--AgentApp.allowed_groups=[]"]
    with running_agent(*options, "--AgentApp.socket_mode=0666") as agent:
        assert _status(users.alice, agent) == str(users.alice.uid)
        assert _status(users.bob, agent).startswith("NotAllowed")


def test_only_root_acts_for_others(shared: Agent, users: Users) -> None:
    for name in (users.bob.name, str(users.bob.uid), "root", "0", users.alice.name):
        assert _status(users.alice, shared, name).startswith("NotAllowed"), name
    refused = [line for line in shared.audit() if line["uid"] == users.alice.uid]
    assert len(refused) == 5
    assert all(line["outcome"] == "refused" and "root" in line["reason"] for line in refused)


async def test_root_acts_for_whom_it_names(shared: Agent, users: Users) -> None:
    for name in (users.bob.name, users.bob.uid):
        async with AgentClient(shared.socket, user=name) as client:
            assert (await client.status()).uid == users.bob.uid
    line = shared.audit()[-1]
    assert (line["uid"], line["for"], line["outcome"]) == (0, users.bob.uid, "done")
    assert line["pid"] == os.getpid()
    async with AgentClient(shared.socket, user="no-such-user") as client:
        with pytest.raises(InvalidRequest, match="no-such-user"):
            await client.status()


async def test_images_are_for_root(shared: Agent, users: Users) -> None:
    async with AgentClient(shared.socket, user=users.alice.name) as client:
        assert await client.images()
        for request in (
            client.build_image("mine", {}),
            client.import_image("mine", users.alice.home),
            client.remove_image("python3"),
        ):
            with pytest.raises(Exception, match="Only root"):
                await request


_LOGGING = """
c.AgentApp.logging_config = {{
    "formatters": {{"audit": {{"format": "AUDIT %(message)s"}}}},
    "handlers": {{"audit": {{"class": "logging.StreamHandler", "formatter": "audit"}}}},
    "loggers": {{"jupyter_checkpoints.audit": {{"handlers": ["audit"], "level": "INFO"}}}},
}}
c.AgentApp.allowed_groups = [{group!r}]
"""


def test_the_audit_log_goes_where_it_is_sent(
    default_image: None, users: Users, tmp_path: Path
) -> None:
    """As docs/security.md says."""
    config = tmp_path / "config.py"
    config.write_text(_LOGGING.format(group=users.group))
    with running_agent(f"--config={config}") as agent:
        assert _status(users.alice, agent, "root").startswith("NotAllowed")
        said = agent.log.read_text().splitlines()
    (line,) = [json.loads(text[6:]) for text in said if text.startswith("AUDIT ")]
    assert (line["uid"], line["outcome"]) == (users.alice.uid, "refused")


def test_a_configuration_that_cannot_be_read_ends_the_agent(tmp_path: Path) -> None:
    """It does not go on without the administrator's limits."""
    config = tmp_path / "config.py"
    config.write_text("c.AgentApp.user_kernels = 3\nc.AgentApp.user_memory = (\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "jupyter_checkpoints.agent", f"--config={config}"),
            *(f"--run-dir={tmp_path}/run", f"--data-dir={tmp_path}/data"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "user_memory" in done.stderr
    assert not (tmp_path / "run").exists()
