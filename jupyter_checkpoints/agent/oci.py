"""The OCI configuration of a kernel's container.

Everything in it comes from the agent's configuration and the caller's checked request, nothing
from a checkpoint. Capabilities and masked paths are Docker's defaults.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..layout import INIT_PATH
from ..models import Limits
from . import userns
from .identity import Identity, OpenMount
from .seccomp import DEFAULT_CAPABILITIES

#: Where the agent's own files (the connection file) are mounted, read-only.
RUN_JUPYTER = "/run/jupyter"

_MASKED = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
]
_READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


def _mount(target: str, kind: str, *options: str, source: str = "") -> dict[str, Any]:
    return {
        "destination": target,
        "type": kind,
        "source": source or kind,
        "options": list(options),
    }


def _bind(source: Path, target: str, *options: str) -> dict[str, Any]:
    return _mount(
        target, "bind", "bind", "nosuid", "nodev", "private", *options, source=str(source)
    )


def _shown(source: Path, mount: OpenMount) -> dict[str, Any]:
    options = ["ro" if mount.read_only else "rw"]
    if not mount.executable:
        options.append("noexec")
    return _bind(source, mount.target, *options)


def resources(limits: Limits) -> dict[str, Any]:
    """Limits in OCI terms; swap is limited with memory, or the limit would mean little."""
    found: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if limits.memory is not None:
        found["memory"] = {"limit": limits.memory, "swap": limits.memory}
    if limits.cpus is not None:
        found["cpu"] = {"period": 100_000, "quota": max(1000, int(limits.cpus * 100_000))}
    if limits.pids is not None:
        found["pids"] = {"limit": limits.pids}
    return found


def configuration(
    *,
    rootfs: Path,
    argv: list[str],
    user: Identity,
    env: dict[str, str],
    cwd: str,
    hostname: str,
    network_namespace: Path | None,
    ids: userns.IdMap | None,
    hook: dict[str, Any] | None,
    cgroup: str,
    criu_config: Path,
    private: Path,
    machine_id: bool,
    mounts: Sequence[tuple[Path, OpenMount]],
    limits: Limits,
    seccomp: dict[str, Any],
) -> dict[str, Any]:
    """``config.json`` of one container; called at every start and resume.

    Parameters
    ----------
    rootfs:
        The mounted overlay.
    private:
        Directory of the kernel with ``connection``, ``hosts``, ``resolv.conf``, ``machine-id``.
    machine_id:
        Whether the container sees the last of these.
    mounts:
        Where the source of each is, in a place that only the agent can change, and what it is.
    network_namespace:
        An existing namespace with its address; ``None`` for a new one, which ``hook`` connects.
    user:
        Whose it is. With ``ids`` he is root inside, otherwise himself.
    ids:
        What its ids are outside, in a user namespace of its own; ``None`` for the host's ids.
    hook:
        Run when the container's namespaces are there and nothing in it runs yet.
    """
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    capabilities = list(DEFAULT_CAPABILITIES)
    network = {"type": "network"}
    if network_namespace is not None:
        network["path"] = str(network_namespace)
    found: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            # -g: an interrupt reaches the kernel and the children of a running cell alike.
            "args": [INIT_PATH, "-g", "--", *argv],
            "env": [f"{name}={value}" for name, value in env.items()],
            "cwd": cwd,
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "noNewPrivileges": True,
            # The usual limit, and not the agent's: programs that use `select` count on it.
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": min(1024, files), "hard": files}],
        },
        "root": {"path": str(rootfs), "readonly": False},
        "hostname": hostname,
        "mounts": [
            _mount("/proc", "proc", "nosuid", "noexec", "nodev"),
            _mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
            _mount(
                "/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=620"
            ),
            _mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", source="shm"),
            _mount("/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev"),
            _mount("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
            _bind(private / "connection", RUN_JUPYTER, "ro"),
            _bind(private / "hosts", "/etc/hosts", "ro"),
            _bind(private / "resolv.conf", "/etc/resolv.conf", "ro"),
            *([_bind(private / "machine-id", "/etc/machine-id", "ro")] if machine_id else []),
            *(_shown(source, mount) for source, mount in mounts),
        ],
        "annotations": {"org.criu.config": str(criu_config)},
        "linux": {
            "cgroupsPath": cgroup,
            "resources": resources(limits),
            "namespaces": [
                {"type": "pid"},
                {"type": "mount"},
                {"type": "ipc"},
                {"type": "uts"},
                {"type": "cgroup"},
                network,
            ],
            "seccomp": seccomp,
            "maskedPaths": _MASKED,
            "readonlyPaths": _READONLY,
        },
    }
    if ids is None and not user.is_root:
        # Nothing of root's: no capabilities, and no home that could be written.
        process = found["process"]
        process["user"] = {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups}
        process["capabilities"] = {name: [] for name in process["capabilities"]}
        others = [pair for pair in process["env"] if not pair.startswith("HOME=")]
        process["env"] = [*others, "HOME=/tmp"]
    if ids is not None:
        found["process"]["user"]["additionalGids"] = userns.supplementary_groups(ids)
        found["linux"]["namespaces"].append({"type": "user"})
        found["linux"]["uidMappings"] = userns.oci_mappings(ids.uids)
        found["linux"]["gidMappings"] = userns.oci_mappings(ids.gids)
    if hook is not None:
        found["hooks"] = {"createRuntime": [hook]}
    return found
