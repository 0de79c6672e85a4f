"""Can this checkpoint be resumed here? Answered before anything is touched.

Each question compares what the checkpoint recorded with this host and gives findings: a stable
code, one plain sentence, what to do. Blocking findings stop a resume, warnings do not.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from ..errors import CheckpointsError, NotFound
from ..models import Finding, HostFacts, Limits, Mount
from ..store.store import Manifest
from .criu import OpenFile
from .engines.engine import RunsAs
from .tools import Tools, version_tuple


def host_facts(tools: Tools, engine: str, pool: str) -> HostFacts:
    """What is recorded of this host with every save, and compared at every resume. Blocking."""
    model, flags = "", ""
    for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name" and not model:
            model = value.strip()
        elif name.strip() in ("flags", "Features") and not flags:
            flags = value
    return HostFacts(
        arch=platform.machine(),
        cpu_model=model,
        cpu_flags=sorted(set(flags.split())),
        kernel_release=platform.release(),
        criu_version=tools.criu_version,
        runc_version=tools.runc_version,
        engine=engine,
        pool=pool,
        boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
    )


def check(
    manifest: Manifest,
    *,
    here: HostFacts,
    runs_as: RunsAs,
    require_image: Callable[[str], None],
    require_volume: Callable[[str], None],
    mounts: list[Mount],
    limits: Limits,
    files: list[OpenFile],
    sizes: Callable[[list[str]], list[int | None]],
) -> list[Finding]:
    """All findings, the blocking ones first. Blocking: run it in a thread.

    Parameters
    ----------
    runs_as:
        With whose rights the processes would go on.
    require_image:
        Raises ``NotFound`` if there is no image with a digest.
    require_volume:
        Raises an error if there is no volume with a name that could be mounted.
    mounts, limits:
        Of the container that would be resumed.
    files:
        The regular files that the saved processes have open.
    sizes:
        Measures files of the host, with the rights of whoever would have the kernel.
    """
    found = [
        *_host(manifest, here),
        *_rights(manifest, runs_as),
        *_image(manifest, require_image),
        *_memory(manifest, limits),
        *_mounts(manifest, mounts),
        *_volumes(manifest, mounts, require_volume),
        *_files(mounts, files, sizes),
    ]
    return sorted(found, key=lambda f: f.severity)


def _block(code: str, message: str, hint: str) -> Finding:
    return Finding(code=code, severity="block", message=message, hint=hint)


def _host(manifest: Manifest, here: HostFacts) -> Iterator[Finding]:
    saved = manifest.checkpoint.host
    if saved.pool != here.pool:
        yield _block(
            "pool",
            f"Its files were saved in a {saved.pool} pool, and this agent has a {here.pool} pool.",
            f"Start the agent with `pool = {saved.pool}`.",
        )
    if manifest.checkpoint.mode == "filesystem":
        return
    if saved.arch != here.arch:
        yield _block(
            "architecture",
            f"It was saved on {saved.arch}, and this host is {here.arch}.",
            f"Resume it on a {saved.arch} host.",
        )
    elif missing := sorted(set(saved.cpu_flags) - set(here.cpu_flags)):
        shown = ", ".join(missing[:8]) + (" …" if len(missing) > 8 else "")
        yield _block(
            "cpu-features",
            f"This processor ({here.cpu_model}) lacks features of the one it was saved on "
            f"({saved.cpu_model}): {shown}.",
            "Resume it on a host with the same kind of processor.",
        )
    if version_tuple(here.criu_version)[:2] < version_tuple(saved.criu_version)[:2]:
        yield _block(
            "criu-version",
            f"It was saved by CRIU {saved.criu_version}, and this host has {here.criu_version}.",
            "Run `sudo jupyter checkpoints setup` to install a newer CRIU.",
        )
    if here.kernel_release != saved.kernel_release:
        yield Finding(
            code="kernel-release",
            severity="warn",
            message=f"It was saved on Linux {saved.kernel_release}; "
            f"this host runs {here.kernel_release}.",
            hint="This works as a rule; if it does not, the kernel starts fresh and says why.",
        )


def _rights(manifest: Manifest, here: RunsAs) -> Iterator[Finding]:
    """The rights of processes are saved with them; only a user namespace gives them others."""
    saved = msgspec.convert(manifest.facts, RunsAs)
    if manifest.checkpoint.mode == "filesystem" or saved.can_become(here):
        return
    code = "rights"
    if saved.user_namespace and here.uid == 0:
        yield _block(
            code,
            "It was saved from an ordinary user's kernel, and cannot go on as root's.",
            "Resume it as that user, or for him.",
        )
    elif saved.user_namespace:
        yield _block(
            code,
            "It was saved from a kernel that is root inside, which this host does not offer.",
            "Ask an administrator to look at the agent's status.",
        )
    elif saved.uid == 0:
        yield _block(
            code,
            "It was saved from a kernel of root's, whose rights no other user can be given.",
            "Only root can resume it; its notebook can be run afresh.",
        )
    else:
        yield _block(
            code,
            f"It was saved from a kernel that runs as user {saved.uid}, and can go on only so.",
            "Only that user can resume it; its notebook can be run afresh.",
        )


def _image(manifest: Manifest, require_image: Callable[[str], None]) -> Iterator[Finding]:
    wanted = manifest.checkpoint
    try:
        require_image(wanted.image_digest)
    except NotFound:
        yield _block(
            "image-missing",
            f"Its image {wanted.image} ({wanted.image_digest[:19]}) is not on this host.",
            "Import or build that image: `jupyter checkpoints image --help`.",
        )


def _memory(manifest: Manifest, limits: Limits) -> Iterator[Finding]:
    needed = manifest.checkpoint.memory_size
    if limits.memory is not None and needed > limits.memory:
        yield _block(
            "memory-limit",
            f"It holds {_size(needed)} of memory, and the limit is {_size(limits.memory)}.",
            "Resume it with a higher memory limit.",
        )
    available = _available_memory()
    if needed > available:
        yield _block(
            "memory",
            f"It holds {_size(needed)} of memory, and this host has {_size(available)} available.",
            "Stop other kernels, or resume it on a larger host.",
        )


def _mounts(manifest: Manifest, mounts: list[Mount]) -> Iterator[Finding]:
    given = {m.target for m in mounts}
    for mount in manifest.checkpoint.mounts:
        if mount.target not in given:
            yield _block(
                "mount-missing",
                f"The kernel was using {mount.target}, which is not given to it now.",
                f"Resume it with {mount.source} mounted at {mount.target}.",
            )
    for target in sorted(given - {m.target for m in manifest.checkpoint.mounts}):
        yield Finding(
            code="mount-new",
            severity="warn",
            message=f"{target} was not there when it was saved, and will not be there now.",
            hint="A kernel that is started fresh has it.",
        )


def _volumes(
    manifest: Manifest, mounts: list[Mount], require: Callable[[str], None]
) -> Iterator[Finding]:
    recorded = {mount.target for mount in manifest.checkpoint.mounts}
    for mount in mounts:
        if mount.volume and mount.target in recorded:
            try:
                require(mount.volume)
            except CheckpointsError as error:
                yield _block(
                    "volume-missing",
                    f"The kernel was using the volume {mount.volume} at {mount.target}, which "
                    f"cannot be given to it: {error.message}",
                    error.hint or error.reason,
                )


def _files(
    mounts: list[Mount], files: list[OpenFile], sizes: Callable[[list[str]], list[int | None]]
) -> Iterator[Finding]:
    """Files outside the container that are open: CRIU insists on their size."""
    outside: list[tuple[str, int]] = []
    for file in files:
        mount = next((m for m in mounts if _below(file.path, m.target)), None)
        # What is in a volume CRIU looks at itself: its owner must not lead us anywhere else.
        if mount is None or mount.volume:
            continue
        if file.path.endswith(" (deleted)") or "/link_remap." in file.path:
            continue
        relative = os.path.relpath(file.path, mount.target)
        outside.append((os.path.normpath(os.path.join(mount.source, relative)), file.size))
    found = sizes([path for path, _ in outside])
    for (path, saved), size in zip(outside, found, strict=True):
        if size is None:
            yield _block(
                "file-missing",
                f"A file that the kernel has open is gone: {path}.",
                "Put it back, or resume another checkpoint.",
            )
        elif size != saved:
            yield _block(
                "file-changed",
                f"A file that the kernel has open was changed since: {path} has {size} bytes, "
                f"it had {saved}.",
                "Put it back as it was, or resume another checkpoint.",
            )


def _below(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _available_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
