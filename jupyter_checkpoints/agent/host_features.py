"""What this host's kernel offers to containers and to saving them."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from msgspec import Struct

from ..errors import CheckpointsError
from . import criu_prefix
from .tools import child_environment, version_tuple

_SECONDS = 30
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
_NAT_RULES = """
table ip jupyter_checkpoints_probe {
  chain outbound { type nat hook postrouting priority srcnat; ip saddr 192.0.2.0/24 masquerade; }
}
"""


class Feature(Struct, frozen=True, kw_only=True):
    """One feature: whether it is there, whether nothing goes without it, what else is the case."""

    name: str
    present: bool
    required: bool
    otherwise: str
    """What is the case where it is missing, and what to do."""


def host_features(criu: Path) -> list[Feature]:
    """Look at, and where looking does not tell try, what kernels in containers need.

    Called by ``setup``; needs root and takes some 200 ms. Modules that are needed are loaded.
    """
    return [
        Feature(
            name="overlay file system",
            present=_file_system("overlay"),
            required=True,
            otherwise="kernels' files are layered by it: use a kernel with CONFIG_OVERLAY_FS",
        ),
        Feature(
            name="namespaces",
            present=all(Path("/proc/self/ns", name).exists() for name in _NAMESPACES),
            required=True,
            otherwise="containers are made of them: use a kernel with all of CONFIG_*_NS",
        ),
        Feature(
            name="checkpoint and restore",
            present=_criu_is_content(criu),
            required=True,
            otherwise="`criu check` fails: use a kernel with CONFIG_CHECKPOINT_RESTORE, and run "
            "on the host itself",
        ),
        Feature(
            name="no seccomp filter",
            present=_unfiltered(),
            required=True,
            otherwise="setup, and so the agent, runs under one (a container's?): CRIU cannot "
            "suspend those of kernels, so run on the host itself or with `seccomp=unconfined`",
        ),
        Feature(
            name="btrfs on a loop device",
            present=_file_system("btrfs") and Path("/dev/loop-control").exists(),
            required=False,
            otherwise="kernels' files are copied at each save instead of snapshot, unless the "
            "disk has btrfs or XFS with reflink",
        ),
        Feature(
            name="id-mapped mounts",
            present=_maps_ids(),
            required=False,
            otherwise="kernels of ordinary users have no root inside, and cannot install into "
            "their files: use Linux 5.19 or newer, with user.max_user_namespaces above 0",
        ),
        Feature(
            name="address translation",
            present=_succeeds("unshare", "--net", "nft", "-f", "-", stdin=_NAT_RULES),
            required=False,
            otherwise="kernels cannot reach the network outside of this host",
        ),
    ]


def _unfiltered() -> bool:
    """ptrace(2): only a tracer without a filter of its own may use PTRACE_O_SUSPEND_SECCOMP."""
    status = Path("/proc/self/status").read_text().splitlines()
    return "Seccomp:\t2" not in status


def _file_system(name: str) -> bool:
    def known() -> bool:
        text = Path("/proc/filesystems").read_text()
        return any(line.split()[-1] == name for line in text.splitlines())

    return known() or (_succeeds("modprobe", "--quiet", name) and known())


def _criu_is_content(criu: Path) -> bool:
    try:
        criu_prefix.check(criu)
    except CheckpointsError:
        return False
    return True


def _maps_ids() -> bool:
    """Whether overlays of mounts with mapped ids can be had; the agent tries it on its own disk."""
    limit = Path("/proc/sys/user/max_user_namespaces")
    allowed = limit.exists() and int(limit.read_text()) > 0
    return allowed and version_tuple(platform.release())[:2] >= (5, 19)


def _succeeds(*command: str, stdin: str = "") -> bool:
    try:
        done = subprocess.run(
            command,
            env=child_environment(),
            input=stdin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=os.sep,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
