"""CRIU finds what it has found out about this Linux, also where /run is no tmpfs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

#: Runs in a mount namespace of its own, whose /run is the directory (or tmpfs) of the test.
PROGRAM = """
import json, os, subprocess
from jupyter_checkpoints.agent.criu_cache import CriuCache
from jupyter_checkpoints.agent.tools import find_tools

tools = find_tools()

def known():
    done = subprocess.run([tools.criu, "check", "-v4"], env=tools.env, capture_output=True)
    return b"Loaded kdat cache" in done.stdout + done.stderr

def mounts():  # an agent that runs meanwhile may have its own, below this /run
    return open("/proc/self/mountinfo").read().count("criu.kdat")

cache, told, others = CriuCache(tools), {}, mounts()
told["before"] = known()
cache.open()
told["open"] = [known(), known()]
told["shown"] = sorted(os.listdir("/run"))
CriuCache(tools).open()  # of an agent whose predecessor was killed
told["again"] = known()
cache.close()
told["closed"] = known()
told["mounted"] = mounts() > others
told["left"] = sorted(os.listdir("/run"))
print(json.dumps(told))
"""


def run_with(mount: str) -> dict[str, Any]:
    """What the program tells, where this mounts a /run for it."""
    done = subprocess.run(
        [
            *("unshare", "--mount", "sh", "-ec", f'{mount}\nexec "$@"', "sh"),
            *(sys.executable, "-c", PROGRAM),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_where_run_is_no_tmpfs() -> None:
    place = Path("/var/tmp", f"criu-cache-{os.getpid()}")
    place.mkdir()
    try:
        told = run_with(f"mount --bind {place} /run")
    finally:
        subprocess.run(["rm", "-r", place], check=True)
    assert told["before"] is False
    assert told["open"] == [True, True]
    assert told["again"] is True
    assert told["closed"] is False
    assert told["mounted"] is False
    assert "criu.kdat" not in told["left"]


def test_where_run_is_a_tmpfs() -> None:
    """CRIU does it by itself, and keeps it."""
    # Not of this minute: left by a CRIU that was killed.
    told = run_with("mount -t tmpfs run /run\ntouch -d '2 minutes ago' /run/criu.kdat.tmp")
    assert told["before"] is False
    assert told["open"] == [False, True]
    assert told["shown"].count("criu.kdat") == 1
    assert told["closed"] is True
    assert told["mounted"] is False
