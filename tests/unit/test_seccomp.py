"""The seccomp profile: conditions resolved, and narrowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jupyter_checkpoints.agent import seccomp
from jupyter_checkpoints.errors import HostNotReady

DOCUMENT: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 38,
    "syscalls": [
        {
            "names": ["read", "clone", "clone3", "io_uring_setup", "keyctl", "unshare", "ptrace"],
            "action": "SCMP_ACT_ALLOW",
            "args": [],
            "includes": {},
            "excludes": {},
        },
        {"names": ["userfaultfd"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "errno": "EPERM"},
        {
            "names": ["chroot"],
            "action": "SCMP_ACT_ALLOW",
            "includes": {"caps": ["CAP_SYS_CHROOT"]},
        },
        {
            "names": ["acct"],
            "action": "SCMP_ACT_ALLOW",
            "includes": {"caps": ["CAP_SYS_PACCT"]},
        },
        {
            "names": ["acct"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 1,
            "excludes": {"caps": ["CAP_SYS_PACCT"]},
        },
        {
            "names": ["arch_prctl"],
            "action": "SCMP_ACT_ALLOW",
            "includes": {"arches": ["amd64", "x32"]},
        },
        {"names": ["new"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "5.12"}},
        {
            "names": ["personality"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 8, "valueTwo": 0, "op": "SCMP_CMP_EQ"}],
        },
    ],
}


def rules(machine: str = "x86_64", kernel: str = "6.1.0-18-amd64") -> list[dict[str, Any]]:
    profile = seccomp.compile_profile(DOCUMENT, seccomp.DEFAULT_CAPABILITIES, machine, kernel)
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert profile["defaultErrnoRet"] == 38
    syscalls: list[dict[str, Any]] = profile["syscalls"]
    return syscalls


def actions(name: str, found: list[dict[str, Any]]) -> list[str]:
    return [rule["action"] for rule in found if name in rule["names"]]


def test_conditions_are_resolved() -> None:
    found = rules()
    assert actions("chroot", found) == ["SCMP_ACT_ALLOW"]
    assert actions("acct", found) == ["SCMP_ACT_ERRNO"]
    assert actions("arch_prctl", found) == ["SCMP_ACT_ALLOW"]
    assert actions("arch_prctl", rules(machine="aarch64")) == []
    assert actions("new", found) == ["SCMP_ACT_ALLOW"]
    assert actions("new", rules(kernel="5.4.0")) == []
    assert all("includes" not in rule and "excludes" not in rule for rule in found)


def test_blocked_calls_have_one_answer() -> None:
    found = rules()
    for name in seccomp.BLOCKED:
        (rule,) = (rule for rule in found if name in rule["names"])
        assert (rule["action"], rule["errnoRet"]) == ("SCMP_ACT_ERRNO", 1)
    assert actions("read", found) == ["SCMP_ACT_ALLOW"]
    assert actions("ptrace", found) == ["SCMP_ACT_ALLOW"]


def test_processes_yes_namespaces_no() -> None:
    found = rules()
    allowed, *refused = (rule for rule in found if rule["names"] == ["clone"])
    mask = allowed["args"][0]["value"]
    assert mask == 0x7E020000
    assert allowed["args"][0]["valueTwo"] == 0
    flags = [rule["args"][0]["value"] for rule in refused]
    assert sum(flags) == mask
    assert all(rule["args"][0]["valueTwo"] == rule["args"][0]["value"] for rule in refused)
    (clone3,) = (rule for rule in found if "clone3" in rule["names"])
    assert clone3["errnoRet"] == 38


def test_arguments_are_kept() -> None:
    (rule,) = (rule for rule in rules() if rule["names"] == ["personality"])
    assert rule["args"] == [{"index": 0, "value": 8, "valueTwo": 0, "op": "SCMP_CMP_EQ"}]


def test_an_unknown_machine_is_an_error() -> None:
    with pytest.raises(HostNotReady, match="riscv64"):
        rules(machine="riscv64")


def test_a_missing_or_broken_profile_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "seccomp.json"
    monkeypatch.setattr(seccomp, "PROFILES", (path,))
    with pytest.raises(HostNotReady, match="missing"):
        seccomp.load_profile()
    path.write_text("{")
    with pytest.raises(HostNotReady, match="cannot be read"):
        seccomp.load_profile()
    path.write_text(json.dumps(DOCUMENT))
    assert seccomp.load_profile()["architectures"]
