"""Root needs no set-up to have an agent: whoever asks first starts it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jupyter_checkpoints.agent.subnets import free_subnet
from jupyter_checkpoints.layout import SOCKET_ENV

#: Four clients ask at once; then the agent they found is ended, and its end awaited.
_PROGRAM = """
import anyio, json, os, signal
from pathlib import Path
from jupyter_checkpoints import layout
from jupyter_checkpoints.client import connect

async def main():
    pids = []

    async def ask():
        async with connect() as agent:
            pids.append((await agent.status()).pid)

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(ask)
    process = os.pidfd_open(pids[0])
    log = layout.DATA_DIR / "agent.log"
    print(json.dumps({
        "pids": pids,
        "session": os.getsid(pids[0]) == os.getsid(0),
        "mode": oct(log.stat().st_mode & 0o777),
        "cwd": os.readlink(f"/proc/{pids[0]}/cwd"),
        "environment": Path(f"/proc/{pids[0]}/environ").read_text(),
    }))
    os.kill(pids[0], signal.SIGTERM)
    with anyio.fail_after(30):
        await anyio.wait_readable(process)

anyio.run(main)
"""


#: Gives the program, and the agent it starts, a host without an agent and without any data.
_OTHER_PLACES = """
import os
from pathlib import Path
from jupyter_checkpoints import layout
layout.DATA_DIR = Path({root!r}) / "data"
layout.RUN_DIR = Path({root!r}) / "run"
os.environ["JUPYTER_CONFIG_DIR"] = {root!r}
"""


@pytest.fixture
def root() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="jupyter-checkpoints-test-"))
    yield directory
    if (pool := directory / "data" / "pool").is_mount():
        subprocess.run(["umount", pool], check=True)
    shutil.rmtree(directory)


def test_clients_of_root_start_one_agent_for_all(root: Path) -> None:
    (root / "path").mkdir()
    (root / "path" / "sitecustomize.py").write_text(_OTHER_PLACES.format(root=str(root)))
    # The default addresses may be those of an agent that this host has.
    config = {"AgentApp": {"subnet": str(free_subnet())}}
    (root / "jupyter_checkpoints_agent_config.json").write_text(json.dumps(config))
    environment = {name: value for name, value in os.environ.items() if name != SOCKET_ENV}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        env={**environment, "PYTHONPATH": str(root / "path"), "AWS_SECRET_ACCESS_KEY": "secret"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found["pids"]) == 4
    assert len(set(found["pids"])) == 1
    assert found["session"] is False, "the agent must outlive the terminal it was started from"
    assert found["mode"] == "0o600"
    assert found["cwd"] == "/"
    assert "AWS_SECRET" not in found["environment"]
