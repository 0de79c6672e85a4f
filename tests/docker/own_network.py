"""A network namespace that daemons and agents share: what they do to interfaces and rules stays in
it, and nothing of this host is touched."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: `/sys` tells of the network namespace in which it was mounted. Cgroups are the host's still.
#: What the host mounts later is seen here, and not the other way round.
_PREPARE = """
set -e
ip link set lo up
mount --rbind /sys/fs/cgroup {spare}
mount -t sysfs sysfs /sys
mount --rbind {spare} /sys/fs/cgroup
umount --lazy {spare}
echo ready
exec sleep infinity
"""


@contextmanager
def own_network(spare: Path) -> Iterator[list[str]]:
    """What has to precede a command that is to run in it; it is gone when all of them have ended.

    ``spare`` is an empty directory.
    """
    holder = subprocess.Popen(
        [
            *("unshare", "--net", "--mount", "--propagation=slave"),
            *("sh", "-c", _PREPARE.format(spare=spare)),
        ],
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"ready\n", "no network namespace"
        yield ["nsenter", f"--target={holder.pid}", "--net", "--mount"]
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
