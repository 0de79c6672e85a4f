"""The system calls that a kernel's container may make.

The rules are the distribution's (the profile that Podman and Buildah use), narrowed where a call
would make the container impossible to save or reach beyond it:

* ``io_uring_*`` and ``userfaultfd``: CRIU cannot save such descriptors. Refused, libuv and others
  fall back to epoll.
* ``add_key``, ``keyctl``, ``request_key``: kernel keyrings are not namespaced.
* ``bpf``, ``perf_event_open``: they look at the whole host.
* mounts and new namespaces, as in Docker's own profile: CRIU cannot save a nested user namespace,
  and inside one a process has capabilities that the container was denied.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import HostNotReady
from .tools import SETUP_HINT, version_tuple

#: Docker's default set.
DEFAULT_CAPABILITIES: tuple[str, ...] = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)

#: Where distributions keep the profile; the first that is there is used.
PROFILES = (
    Path("/usr/share/containers/seccomp.json"),
    Path("/etc/containers/seccomp.json"),
)

#: Answered with EPERM whatever the profile says of them.
BLOCKED: frozenset[str] = frozenset(
    {
        "add_key",
        "bpf",
        "fsconfig",
        "fsmount",
        "fsopen",
        "fspick",
        "io_uring_enter",
        "io_uring_register",
        "io_uring_setup",
        "keyctl",
        "mount",
        "mount_setattr",
        "move_mount",
        "open_tree",
        "perf_event_open",
        "pivot_root",
        "request_key",
        "setns",
        "umount",
        "umount2",
        "unshare",
        "userfaultfd",
    }
)

_EPERM, _ENOSYS = 1, 38
#: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_NEW_NAMESPACES = (1 << 17, 1 << 25, 1 << 26, 1 << 27, 1 << 28, 1 << 29, 1 << 30)

# uname's name: (Go's name, as in the profile's conditions; libseccomp's name). The machine's own
# architecture alone: rules for 32-bit programs too would take runc 16 ms more at every start.
_ARCHITECTURES = {
    "x86_64": ("amd64", "SCMP_ARCH_X86_64"),
    "aarch64": ("arm64", "SCMP_ARCH_AARCH64"),
}


def load_profile(capabilities: Iterable[str] = DEFAULT_CAPABILITIES) -> dict[str, Any]:
    """The OCI ``linux.seccomp`` object for a container with these capabilities.

    Called once per agent; reads one file of 16 KB.

    Raises
    ------
    HostNotReady
        If the distribution's profile is missing or unreadable, or the machine's architecture is
        one we have no rules for.
    """
    for path in PROFILES:
        try:
            document = json.loads(path.read_bytes())
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise HostNotReady(
                "The seccomp profile cannot be read",
                reason=f"{path}: {error}",
                hint="Reinstall the package golang-github-containers-common.",
            ) from error
        return compile_profile(document, capabilities, platform.machine(), os.uname().release)
    raise HostNotReady(
        "The seccomp profile of this distribution is missing",
        reason=f"none of {', '.join(map(str, PROFILES))} exists",
        hint=f"{SETUP_HINT} (Debian's package: golang-github-containers-common)",
    )


def compile_profile(
    document: Mapping[str, Any], capabilities: Iterable[str], machine: str, kernel_release: str
) -> dict[str, Any]:
    """Resolve a profile's conditions for one container on one machine and narrow the outcome.

    ``document`` is in containers-common's format. A pure function, for :func:`load_profile` and
    for tests; raises :class:`HostNotReady` for an unknown ``machine``.
    """
    if machine not in _ARCHITECTURES:
        raise HostNotReady(
            f"There are no seccomp rules for {machine}",
            reason=f"known: {', '.join(_ARCHITECTURES)}",
            hint="Use a machine of one of these architectures.",
        )
    go_name, architecture = _ARCHITECTURES[machine]
    granted = frozenset(capabilities)
    kernel = version_tuple(kernel_release)[:2]

    def applies(rule: Mapping[str, Any]) -> bool:
        wanted, unwanted = rule.get("includes") or {}, rule.get("excludes") or {}
        return not (
            (wanted.get("arches") and go_name not in wanted["arches"])
            or (wanted.get("caps") and not granted.issuperset(wanted["caps"]))
            or (wanted.get("minKernel") and kernel < version_tuple(wanted["minKernel"])[:2])
            or go_name in (unwanted.get("arches") or ())
            or granted.intersection(unwanted.get("caps") or ())
            or (unwanted.get("minKernel") and kernel >= version_tuple(unwanted["minKernel"])[:2])
        )

    ours = BLOCKED | {"clone", "clone3"}
    syscalls: list[dict[str, Any]] = []
    for rule in document["syscalls"]:
        names = rule.get("names") or [rule["name"]]
        if applies(rule) and (kept := [name for name in names if name not in ours]):
            syscalls.append(_oci_rule(kept, rule))
    syscalls += [
        {"names": sorted(BLOCKED), "action": "SCMP_ACT_ERRNO", "errnoRet": _EPERM},
        {
            "names": ["clone"],
            "action": "SCMP_ACT_ALLOW",
            "args": [_masked(sum(_NEW_NAMESPACES), 0)],
        },
        *(
            {
                "names": ["clone"],
                "action": "SCMP_ACT_ERRNO",
                "errnoRet": _EPERM,
                "args": [_masked(flag, flag)],
            }
            for flag in _NEW_NAMESPACES
        ),
        # Its flags are behind a pointer, which a filter cannot read. At ENOSYS, glibc uses clone.
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS},
    ]
    profile = {
        "defaultAction": document["defaultAction"],
        "architectures": [architecture],
        "syscalls": syscalls,
    }
    if "defaultErrnoRet" in document:
        profile["defaultErrnoRet"] = document["defaultErrnoRet"]
    return profile


def _masked(mask: int, value: int) -> dict[str, Any]:
    """The condition that of clone's flags, those of ``mask`` are ``value``."""
    return {"index": 0, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}


def _oci_rule(names: list[str], rule: Mapping[str, Any]) -> dict[str, Any]:
    converted: dict[str, Any] = {"names": names, "action": rule["action"]}
    if rule.get("errnoRet") is not None and rule["action"] == "SCMP_ACT_ERRNO":
        converted["errnoRet"] = rule["errnoRet"]
    if rule.get("args"):
        converted["args"] = [
            {
                "index": arg["index"],
                "value": arg["value"],
                "valueTwo": arg.get("valueTwo", 0),
                "op": arg["op"],
            }
            for arg in rule["args"]
        ]
    return converted
