"""Can this kernel be saved? Answered from ``/proc``, without touching its processes.

What CRIU cannot dump fails a save, with CRIU's words for it; here it is named before, in the shape
of preflight's findings: a stable code, one plain sentence, what to do. Nothing found is no promise.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..models import Finding

_GPU = re.compile(r"/dev/(nvidia|dri/|kfd)")
#: Devices that every container has, and that can be saved.
_HARMLESS = re.compile(r"/dev/(null|zero|full|random|urandom|tty|ptmx|console|pts/|shm/|mqueue/)")
#: Kinds of files without a name that CRIU does not know.
_UNKNOWN = re.compile(
    r"(?:anon_inode:\[?|/)(io_uring|userfaultfd|perf_event|bpf-|landlock|secretmem)"
)
_NAMESPACES = ("pid", "mnt", "net", "ipc", "uts")


def findings(pids: Iterable[int]) -> list[Finding]:
    """What stands in the way of saving the container of these processes. Blocking.

    Parameters
    ----------
    pids:
        All of its processes, in the host's numbers; the first one is its init. Those that end
        meanwhile are left out.
    """
    found: dict[tuple[str, str], Finding] = {}
    first: dict[str, str] | None = None
    for pid in sorted(pids):
        process = Path("/proc", str(pid))
        try:
            namespaces = {name: os.readlink(process / "ns" / name) for name in _NAMESPACES}
            first = namespaces if first is None else first
            for finding in _of_process(process, namespaces, first):
                found.setdefault((finding.code, finding.message), finding)
        except OSError:
            continue
    return list(found.values())


def _of_process(
    process: Path, namespaces: dict[str, str], first: dict[str, str]
) -> Iterator[Finding]:
    status = dict(
        line.split(":", 1)
        for line in (process / "status").read_text(errors="replace").splitlines()
        if ":" in line
    )
    # As the container's own tools show it.
    who = f"process {status.get('NSpid', process.name).split()[-1]} ({status['Name'].strip()})"
    if int(status.get("TracerPid", "0")):
        yield _block(
            "traced",
            f"A debugger or profiler is attached to {who}.",
            "Detach it (gdb, strace, py-spy), then save.",
        )
    if namespaces != first:
        yield _block(
            "nested-namespace",
            f"There is a container or sandbox inside of the kernel's: {who}.",
            "End it (bubblewrap, unshare, a nested container), then save.",
        )
    for path in sorted(_files(process)):
        yield from of_file(path, who)


def of_file(path: str, who: str) -> Iterator[Finding]:
    """What is wrong with a file that a process has open or mapped, named as ``/proc`` does."""
    if _GPU.match(path):
        yield _block(
            "gpu",
            f"The kernel holds a GPU: {who} uses {path}.",
            "Free the GPU (delete the models and arrays on it, end its process), then save.",
        )
    elif path.startswith("/dev/") and not _HARMLESS.match(path):
        yield _block(
            "device", f"The kernel holds a device: {who} uses {path}.", "Close it, then save."
        )
    elif match := _UNKNOWN.match(path):
        kind = match[1].rstrip("-")
        hint = "Set UV_USE_IO_URING=0 in its environment." if kind == "io_uring" else ""
        yield _block(
            kind.replace("_", "-"),
            f"The kernel uses {kind}, which cannot be saved: {who}.",
            hint or "Close what uses it, then save.",
        )


def _files(process: Path) -> set[str]:
    """What the process has open or mapped, as far as it could be of interest."""
    found = set()
    for fd in os.scandir(process / "fd"):
        try:
            found.add(os.readlink(fd.path))
        except OSError:
            continue
    for line in (process / "maps").read_text(errors="replace").splitlines():
        _, _, path = line.partition("/dev/")
        if path:
            found.add("/dev/" + path)
        elif "anon_inode:" in line:
            found.add(line[line.index("anon_inode:") :])
        elif "/secretmem" in line:
            found.add("/secretmem")
    return found


def _block(code: str, message: str, hint: str) -> Finding:
    return Finding(code=code, severity="block", message=message, hint=hint)
