"""Where things are on disk: one place that knows every path of the agent.

Data (``/var/lib/jupyter-checkpoints``) outlives a reboot, run-time state
(``/run/jupyter-checkpoints``) does not need to. Both are ``0700``, owned by the agent.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

DATA_DIR = Path("/var/lib/jupyter-checkpoints")
RUN_DIR = Path("/run/jupyter-checkpoints")
#: The private prefix that ``setup`` installs CRIU into; ``bin/criu`` in it runs it.
CRIU_PREFIX = Path("/opt/jupyter-checkpoints/criu")
#: Where ``setup --engine docker`` puts the OCI runtime that Docker runs.
DOCKER_RUNTIME = Path("/opt/jupyter-checkpoints/docker")
#: Where agents leave their requests to that runtime, one file for each container's id.
REQUESTS = RUN_DIR / "requests"
#: Whose members may use the agent of a host; made by ``setup``.
GROUP = "jupyter-checkpoints"
#: The header of a request in which root names the user that it is for, by name or number.
USER_HEADER = "Jupyter-Checkpoints-User"
SOCKET_ENV = "JUPYTER_CHECKPOINTS_SOCKET"
#: Where root places an init for images that have none, and argv[0] of every container's PID 1.
INIT_PATH = "/.jupyter-checkpoints/init"


def default_socket() -> Path:
    """The agent's socket: ``$JUPYTER_CHECKPOINTS_SOCKET``, else the host's own agent."""
    return Path(os.environ.get(SOCKET_ENV) or RUN_DIR / "agent.sock")


class Layout:
    """The paths of one agent. Several agents (a host's and a test's) never share one.

    Parameters
    ----------
    data_dir, run_dir:
        The two roots. ``instance`` is derived from ``run_dir`` and tells this agent's global
        names (network namespaces, interfaces, cgroups) from those of any other agent.
    images_dir:
        Read-only images; may be shared by several agents. Default: below ``data_dir``.
    """

    def __init__(self, data_dir: Path, run_dir: Path, images_dir: Path | None = None) -> None:
        self.data_dir = data_dir
        self.run_dir = run_dir
        self.images = images_dir or data_dir / "images"
        self.instance = hashlib.sha256(os.fsencode(run_dir)).hexdigest()[:4]

    @property
    def store(self) -> Path:
        return self.data_dir / "checkpoints"

    @property
    def packs(self) -> Path:
        """What checkpoints share of their process images; on the file system of :attr:`store`."""
        return self.data_dir / "packs"

    @property
    def pool(self) -> Path:
        """Mount point (or directory) of the snapshot-capable pool of writable layers."""
        return self.data_dir / "pool"

    @property
    def pool_file(self) -> Path:
        return self.data_dir / "pool.img"

    @property
    def archive_key(self) -> Path:
        """The secret that tells this store's own archives from others."""
        return self.data_dir / "archive.key"

    @property
    def incoming(self) -> Path:
        """Archives while they arrive; emptied at the agent's start."""
        return self.data_dir / "incoming"

    def touched(self, checkpoint_id: str) -> Path:
        """What the resumes of a checkpoint touched first, so that it comes first next time."""
        return self.data_dir / "touched" / checkpoint_id

    @property
    def socket(self) -> Path:
        return self.run_dir / "agent.sock"

    @property
    def lock(self) -> Path:
        return self.run_dir / "agent.lock"

    @property
    def kernels(self) -> Path:
        return self.run_dir / "kernels"

    @property
    def stages(self) -> Path:
        """What containers with user namespaces are made of: root inside can pass it."""
        return self.run_dir / "stages"

    @property
    def subordinate_ids(self) -> Path:
        """Which range of ids the containers of each ordinary user have."""
        return self.data_dir / "subordinate-ids.json"

    @property
    def cgroups(self) -> Path:
        """Links to the hierarchies of control groups, for CRIU."""
        return self.run_dir / "cgroups"

    @property
    def runc_root(self) -> Path:
        return self.run_dir / "runc"

    def kernel(self, kernel_id: str) -> Path:
        """The bundle of one kernel: OCI configuration, mount point, log, state."""
        return self.kernels / kernel_id
