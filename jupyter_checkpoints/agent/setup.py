"""Make a host ready: everything that kernels in containers need, step by step.

Each step looks first and changes something only where it has to, so that all of them can be run
again at any time, in about a second.
"""

from __future__ import annotations

import grp
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from msgspec import Struct

from .. import kernelspecs, layout
from ..errors import CheckpointsError, HostNotReady, NotAllowed
from . import criu_prefix, docker_setup, systemd
from .debian import Tell
from .host_features import host_features
from .images import ImageStore
from .tools import child_environment, find_tools

_APT_SECONDS = 900
_ALLOW_EXPIRED = (
    *("-o", "Acquire::Check-Valid-Until=false"),
    *("-o", "Acquire::Check-Date=false"),
)


class Step(Struct, frozen=True, kw_only=True):
    """One step of the set-up and how it went."""

    step: str
    status: Literal["ok", "done", "failed"]
    """``ok``: there was nothing to do; ``done``: something was changed."""
    detail: str
    seconds: float


class Need(Struct, frozen=True):
    """Something a host has to have: a program or a file, and the package that brings it."""

    provides: str
    package: str
    purpose: str

    def is_met(self) -> bool:
        if self.provides.startswith("/"):
            return Path(self.provides).exists()
        return shutil.which(self.provides, path=child_environment()["PATH"]) is not None


#: Debian 12 and 13 and Ubuntu 24.04 call all packages so.
NEEDS = (
    Need("runc", "runc", "runs containers"),
    Need("ip", "iproute2", "sets up kernels' networks"),
    Need("nft", "nftables", "address translation, and holding packets back during a save"),
    Need("mkfs.btrfs", "btrfs-progs", "snapshots of kernels' files"),
    Need("mmdebstrap", "mmdebstrap", "makes images and unpacks CRIU"),
    Need("patchelf", "patchelf", "points CRIU at its own libraries"),
    Need("/usr/bin/tini-static", "tini", "the init of containers"),
    Need(
        "/usr/share/containers/seccomp.json",
        "golang-github-containers-common",
        "the system calls that containers may make",
    ),
    Need(
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "debian-archive-keyring",
        "checks the signatures of Debian's packages",
    ),
    Need("/etc/ssl/certs/ca-certificates.crt", "ca-certificates", "checks package indexes"),
)

Outcome = tuple[Literal["ok", "done"], str]


def set_up(
    on_step: Callable[[Step], None],
    tell: Callable[[str, str], None],
    *,
    docker: bool = False,
) -> list[Step]:
    """Run all steps and return them. Called by ``jupyter checkpoints setup``, as root; blocking.

    Stops at the first step that fails, as the later ones need it; it is then the last of the
    list, with what to do in its ``detail``.

    Parameters
    ----------
    on_step:
        Called after each step.
    tell:
        Called with a step's name and one line, while the step works.
    docker:
        Also let Docker Engine hold kernels' containers.

    Raises
    ------
    NotAllowed
        If this process is not root.
    """
    _require_root()
    work: dict[str, Callable[[Tell], Outcome]] = {
        "packages": install_packages,
        "criu": install_criu,
        "kernel": check_kernel,
        "image": build_default_image,
        "kernelspecs": install_kernelspecs,
        "group": make_group,
    }
    if docker:
        work["docker"] = register_with_docker
    work["service"] = install_service
    return _run(work, on_step, tell)


def undo_docker(on_step: Callable[[Step], None], tell: Callable[[str, str], None]) -> list[Step]:
    """Take back what ``docker`` has added; as :func:`set_up`. The rest of the set-up stays."""
    _require_root()
    return _run({"docker": unregister_from_docker}, on_step, tell)


def _require_root() -> None:
    if os.geteuid() != 0:
        raise NotAllowed(
            "Only root can set this host up",
            reason="packages are installed, and a directory below /var/lib is made",
            hint="Run `sudo jupyter checkpoints setup`, or ask an administrator to.",
        )


def _run(
    work: Mapping[str, Callable[[Tell], Outcome]],
    on_step: Callable[[Step], None],
    tell: Callable[[str, str], None],
) -> list[Step]:
    steps: list[Step] = []
    for name, action in work.items():
        started = time.monotonic()
        status: Literal["ok", "done", "failed"]
        try:
            status, detail = action(partial(tell, name))
        except CheckpointsError as error:
            status, detail = "failed", str(error)
        step = Step(
            step=name,
            status=status,
            detail=detail,
            seconds=round(time.monotonic() - started, 3),
        )
        steps.append(step)
        on_step(step)
        if status == "failed":
            break
    return steps


def install_packages(tell: Tell) -> Outcome:
    """Install what is missing with the distribution's package manager."""
    missing = [need for need in NEEDS if not need.is_met()]
    if not missing:
        return "ok", f"all {len(NEEDS)} are there"
    release = os_release()
    family = {release.get("ID", ""), *release.get("ID_LIKE", "").split()}
    if not family & {"debian", "ubuntu"} or not shutil.which("apt-get"):
        raise HostNotReady(
            f"Packages of {release.get('PRETTY_NAME', 'this system')} are not known here",
            reason="missing:\n"
            + "\n".join(f"- {need.provides}: {need.purpose}" for need in missing),
            hint="Install these by hand, then run this again.",
        )
    packages = sorted({need.package for need in missing})
    tell(f"installing {', '.join(packages)}")
    _apt_update(tell)
    _apt("install", "--yes", "--no-install-recommends", *packages)
    if still := [need.provides for need in missing if not need.is_met()]:
        raise HostNotReady(
            "The installed packages do not bring all that is needed",
            reason=f"still missing: {', '.join(still)}",
            hint="Install them by hand, then run this again.",
        )
    return "done", f"installed {', '.join(packages)}"


def install_criu(tell: Tell) -> Outcome:
    """Make sure of a CRIU that is new enough and works on this kernel."""
    try:
        tools = find_tools()
        criu_prefix.check(tools.criu)
    except CheckpointsError as error:
        tell(f"{error.message}; installing a newer one into {layout.CRIU_PREFIX}")
    else:
        return "ok", f"CRIU {tools.criu_version} ({tools.criu})"
    version = criu_prefix.install(tell)
    find_tools()
    return "done", f"CRIU {version} in {layout.CRIU_PREFIX}, nothing of the host's own changed"


def check_kernel(tell: Tell) -> Outcome:
    """See what the kernel offers; only what nothing goes without is an error."""
    features = host_features(find_tools().criu)
    missing = [feature for feature in features if not feature.present]
    if blocking := [feature for feature in missing if feature.required]:
        raise HostNotReady(
            "This kernel lacks features",
            reason=", ".join(feature.name for feature in blocking),
            hint="\n".join(f"{feature.name}: {feature.otherwise}" for feature in blocking),
        )
    detail = ", ".join(feature.name for feature in features if feature.present)
    if missing:
        detail += "; without " + "; ".join(f"{f.name} ({f.otherwise})" for f in missing)
    return "ok", f"{os.uname().release}: {detail}"


def build_default_image(tell: Tell) -> Outcome:
    """Build the image that kernels run in unless they name another."""
    store = ImageStore(layout.DATA_DIR / "images")
    image, built = store.ensure_default(lambda stage, message: tell(f"{stage}: {message}"))
    detail = f"{image.name}, {image.size / 1e6:.0f} MB, {image.digest[:12]}"
    return ("done" if built else "ok"), detail


def install_kernelspecs(tell: Tell) -> Outcome:
    """Install the kernelspecs of the default image into this Python's environment."""
    before = _kernelspec_texts()
    paths = kernelspecs.add_defaults()
    detail = ", ".join(sorted(path.name for path in paths))
    return ("ok" if before == _kernelspec_texts() else "done"), detail


def make_group(tell: Tell) -> Outcome:
    """Make the group whose members may use the agent; who is in it is for the administrator."""
    try:
        members = grp.getgrnam(layout.GROUP).gr_mem
    except KeyError:
        try:
            subprocess.run(
                ["groupadd", "--system", layout.GROUP],
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=True,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise HostNotReady(
                f"The group {layout.GROUP} could not be made",
                reason=str(getattr(error, "stderr", "") or error),
                hint="Make it by hand, then run this again.",
            ) from error
        return "done", f"{layout.GROUP}: add the users who may use runtime checkpoints to it"
    return "ok", f"{layout.GROUP}: {len(members)} users besides root"


def register_with_docker(tell: Tell) -> Outcome:
    """Let Docker Engine, which has to be there, know the OCI runtime ``jupyter-checkpoints``."""
    changed, detail = docker_setup.register(tell)
    return ("done" if changed else "ok"), detail


def unregister_from_docker(tell: Tell) -> Outcome:
    changed, detail = docker_setup.unregister(tell)
    return ("done" if changed else "ok"), detail


def install_service(tell: Tell) -> Outcome:
    """Let systemd start the agent when it is needed, where there is systemd."""
    if not systemd.is_running():
        return "ok", "no systemd here: the agent is started when root first needs it"
    changed = systemd.install()
    return ("done" if changed else "ok"), f"systemd starts the agent ({systemd.SOCKET})"


def os_release(path: Path = Path("/etc/os-release")) -> Mapping[str, str]:
    """The distribution's own words about itself; empty if it has none."""
    try:
        text = path.read_text()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {key.strip(): value.strip().strip("\"'") for key, _, value in pairs}


def _kernelspec_texts() -> dict[str, str]:
    return {
        spec.path: Path(spec.path, "kernel.json").read_text() for spec in kernelspecs.installed()
    }


def _apt_update(tell: Tell) -> None:
    try:
        _apt("update")
    except HostNotReady as error:
        if "expired" not in error.reason and "not valid" not in error.reason:
            raise
        tell("the mirror is out of date; signatures are still checked, going on with it")
        _apt("update", options=_ALLOW_EXPIRED)


def _apt(*arguments: str, options: Sequence[str] = ()) -> None:
    command = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", *options, *arguments]
    proxies = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    try:
        done = subprocess.run(
            command,
            env=child_environment() | proxies | {"DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_APT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostNotReady("apt-get does not run", reason=str(error)) from error
    if done.returncode != 0:
        raise HostNotReady(
            f"apt-get {arguments[0]} failed",
            reason="\n".join(done.stdout.splitlines()[-8:]),
            hint="Correct what apt-get complains of, then run this again.",
        )
