"""Setting a host up for real: the private CRIU, and the whole command."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jupyter_checkpoints import layout
from jupyter_checkpoints.agent import criu_prefix
from jupyter_checkpoints.agent.tools import MINIMUM_CRIU, find_tools, version_tuple
from jupyter_checkpoints.errors import HostNotReady


def quiet(line: str) -> None:
    pass


def test_a_private_criu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed, it works and loads nothing of the host's; a failed renewal leaves it."""
    prefix = tmp_path / "criu"
    abandoned = tmp_path / "criu-interrupted"
    abandoned.mkdir()
    version = criu_prefix.install(quiet, prefix)
    assert version_tuple(version) >= MINIMUM_CRIU
    assert criu_prefix.installed_version(prefix) == version
    assert not abandoned.exists()
    criu = prefix / "bin" / "criu"
    criu_prefix.check(criu)
    loaded = subprocess.run(
        [criu, "--version"], env={"LD_DEBUG": "files"}, capture_output=True, text=True, check=True
    )
    files = re.findall(r"calling init: (\S+)", loaded.stderr)
    assert files
    assert not [file for file in files if not Path(file).is_relative_to(prefix.resolve())]

    before = prefix.resolve()
    monkeypatch.setattr(criu_prefix, "SUITE", "no-such-suite")
    with pytest.raises(HostNotReady):
        criu_prefix.install(quiet, prefix)
    assert prefix.resolve() == before
    assert [p.name for p in tmp_path.glob("criu-*")] == [before.name]
    criu_prefix.check(criu)

    monkeypatch.undo()
    criu_prefix.install(quiet, prefix)
    assert prefix.resolve() != before
    assert not before.exists()


def test_criu_is_found_where_it_was_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = find_tools()
    assert version_tuple(tools.criu_version) >= MINIMUM_CRIU
    assert shutil.which("criu", path=tools.env["PATH"]) == str(tools.criu)
    monkeypatch.setattr(layout, "CRIU_PREFIX", Path("/absent"))
    monkeypatch.setenv("PATH", "")
    if shutil.which("criu", path="/usr/local/sbin:/usr/sbin") is None:
        with pytest.raises(HostNotReady, match="criu") as caught:
            find_tools()
        assert "setup" in caught.value.hint


def test_the_command_has_nothing_to_do_the_second_time() -> None:
    command = [sys.executable, "-m", "jupyter_checkpoints.cli.app", "setup", "--json"]
    subprocess.run(command, check=True, capture_output=True)
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    steps = json.loads(done.stdout)
    assert [step["step"] for step in steps] == [
        *("packages", "criu", "kernel", "image", "kernelspecs", "group", "service")
    ]
    assert {step["status"] for step in steps} == {"ok"}
    assert sum(step["seconds"] for step in steps) < 10
