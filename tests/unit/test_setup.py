"""Setting a host up, as far as nothing is installed by it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from jupyter_checkpoints.agent import setup, systemd
from jupyter_checkpoints.agent.setup import NEEDS, Need, Step
from jupyter_checkpoints.agent.tools import child_environment, program_version, version_tuple
from jupyter_checkpoints.errors import HostNotReady, NotAllowed


def quiet(line: str) -> None:
    pass


def test_what_is_there_is_not_installed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "NEEDS", (Need("sh", "dash", ""), Need("/etc/passwd", "base", "")))
    assert setup.install_packages(quiet) == ("ok", "all 2 are there")


def test_other_distributions_get_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Need("no-such-program", "no-such-package", "does nothing")
    monkeypatch.setattr(setup, "NEEDS", (Need("sh", "dash", ""), missing))
    monkeypatch.setattr(setup, "os_release", lambda: {"ID": "other", "PRETTY_NAME": "Other 1"})
    with pytest.raises(HostNotReady, match="Other 1") as caught:
        setup.install_packages(quiet)
    assert "no-such-program: does nothing" in caught.value.reason
    assert "sh" not in caught.value.reason.split()


def test_needs_are_distinct() -> None:
    assert len({need.provides for need in NEEDS}) == len(NEEDS)
    assert all(need.package and need.purpose for need in NEEDS)


def test_os_release(tmp_path: Path) -> None:
    file = tmp_path / "os-release"
    file.write_text("ID=ubuntu\nID_LIKE=\"debian rest\"\n\nPRETTY_NAME='Ubuntu 24.04'\n")
    release = setup.os_release(file)
    assert release["ID_LIKE"] == "debian rest"
    assert release["PRETTY_NAME"] == "Ubuntu 24.04"
    assert setup.os_release(tmp_path / "absent") == {}


def test_the_first_failure_is_the_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(tell: object) -> tuple[str, str]:
        raise HostNotReady("No CRIU", reason="none found", hint="Do this.")

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(setup, "install_packages", lambda tell: ("done", "installed all"))
    monkeypatch.setattr(setup, "install_criu", failing)
    seen: list[Step] = []
    steps = setup.set_up(seen.append, lambda step, line: None)
    assert seen == steps
    assert [(step.step, step.status) for step in steps] == [
        ("packages", "done"),
        ("criu", "failed"),
    ]
    assert steps[1].detail == "No CRIU\nReason: none found\nDo this."


def test_only_root_sets_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NotAllowed) as caught:
        setup.set_up(lambda step: None, lambda step, line: None)
    assert "sudo" in caught.value.hint


def test_versions(tmp_path: Path) -> None:
    assert version_tuple("4.10.1") > version_tuple("4.2")
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\necho "Version: 4.2.1"\necho "GitID: v4.2.1-3"\n')
    program.chmod(0o755)
    assert program_version(program) == "4.2.1"
    program.write_text("#!/bin/sh\necho broken >&2; exit 3\n")
    with pytest.raises(HostNotReady, match="broken"):
        program_version(program)
    with pytest.raises(HostNotReady, match="does not run"):
        program_version(tmp_path / "absent")


def test_children_get_no_more_than_they_need() -> None:
    environment = child_environment(Path("/opt/first"))
    assert environment == {
        "PATH": "/opt/first:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
    }


def test_units_keep_out_of_mounts_and_of_seccomp() -> None:
    texts = systemd.unit_files('/srv/my env/100%/"bin"/python')
    service = texts[systemd.SERVICE]
    quoted = '"/srv/my env/100%%/\\"bin\\"/python"'
    assert f"ExecStart={quoted} -m jupyter_checkpoints.agent\n" in service
    settings = [line.split("=")[0] for line in service.splitlines() if "=" in line[:40]]
    forbidden = ("Protect", "Private", "SystemCall", "Restrict", "NoNewPrivileges", "ReadOnly")
    assert not [name for name in settings if name.startswith(forbidden)]
    assert "SocketMode=0660" in texts[systemd.SOCKET]
    assert "SocketGroup=jupyter-checkpoints" in texts[systemd.SOCKET]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    for name, text in systemd.unit_files().items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / systemd.SERVICE)],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "jupyter-checkpoints" not in done.stderr
