"""CRIU: the configuration of each dump and restore, and what its logs and images say.

A restore's CRIU is started by runc, which takes most options, and a dump's by the agent
(:mod:`.dump`); the rest goes through a configuration file per container, named by the annotation
``org.criu.config``. That file replaces the host's own
``/etc/criu/runc.conf``, and is always written by us: whoever writes it runs code as root.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from msgspec import Struct

from ..store.pack import Array
from ..store.pagemap import Run

_CROWDED = r"Too many open files|Can't retrieve FDs from socket"
#: (pattern in CRIU's log, what it means, what the user can do); the first that matches counts.
_KNOWN: tuple[tuple[str, str, str], ...] = (
    (
        r"\[io_uring\]|send_fds failed \(-22\)",
        "a process uses io_uring, which cannot be saved",
        "Set UV_USE_IO_URING=0 (Node.js), or close what uses it.",
    ),
    (r"\[userfaultfd\]", "a process uses userfaultfd, which cannot be saved", "Close it."),
    (
        r"anon_inode:\[?(perf_event|bpf-map|bpf-prog|landlock-ruleset)",
        "a process holds a profiler or filter descriptor, which cannot be saved",
        "Detach the profiler or debugger, then save again.",
    ),
    (
        r"secretmem",
        "a process uses secret memory (memfd_secret), which cannot be saved",
        "Close what uses it.",
    ),
    (
        r"chr \d+:\d+|/dev/nvidia|/dev/kfd|/dev/dri",
        "a process has a device open (a GPU, most likely), which cannot be saved",
        "Release the device (delete the models on it, or restart), then save again.",
    ),
    (
        r"suspending seccomp failed",
        "the agent runs under a seccomp filter itself, so nothing can suspend that of a kernel",
        "Run the agent on the host, or in a container with `seccomp=unconfined`.",
    ),
    (
        r"zombie \d+ \(comm \S+\) found while seizing|Unable to detach from",
        "a debugger or tracer is attached to a process of the kernel",
        "Detach gdb, strace or py-spy, then save again.",
    ),
    (
        r"nested (user|pid) namespace",
        "a sandbox (unshare, bubblewrap) runs inside the kernel, which cannot be saved",
        "End it, then save again.",
    ),
    (
        r"External socket is used|Can't dump half of stream unix|Unix socket \d+ not found",
        "a process is connected to a socket outside the container",
        "Close that connection, then save again.",
    ),
    (
        r"Can't get rlimit",
        "this host does not let the agent read limits of processes of other users",
        "The agent needs CAP_SYS_RESOURCE, or a kernel with id-mapped mounts (Linux 5.19).",
    ),
    (
        r"path=/mq|mqueue",
        "a process uses a POSIX message queue, which cannot be saved",
        "Use pipes or queues of multiprocessing instead.",
    ),
    (
        r"Can't dump ghost file (\S+) of (\d+) size",
        "a deleted file that is still open is larger than the free disk space allows",
        "Close the file, or free disk space.",
    ),
    (
        _CROWDED,
        "CRIU may not have as many files open as it needs for so many processes",
        "Raise the hard limit of open files (LimitNOFILE) of the agent.",
    ),
    (
        r"Timeout reached. Try to interrupt",
        "a process could not be stopped within ten seconds (it waits for a disk or network)",
        "Try again when the disk or share answers.",
    ),
    (
        r"No space left on device|Can't write .*: No space|ENOSPC",
        "the disk is full",
        "Free some space, or delete checkpoints.",
    ),
    (
        r"File (\S+) has bad size (\d+) \(expect (\d+)\)",
        "a file that the kernel has open was changed since: {0} has {1} bytes, it had {2}",
        "Put the file back as it was, or resume a checkpoint made after the change.",
    ),
    (
        r"Can't open file (\S+) on restore: No such file",
        "a file that the kernel has open is missing: {0}",
        "Put the file back as it was.",
    ),
    (
        r"instruction capabilities do not match|xsave size mismatch|FPU feature required",
        "this processor lacks a feature that the kernel was using",
        "Resume it on a host with the same kind of processor.",
    ),
    (
        r"Can't bind inet socket back",
        "an address that the kernel used is not here",
        "Resume it in place, or start a new kernel.",
    ),
)


class Explanation(Struct, frozen=True):
    """Why CRIU failed, in plain words where they are known, and what the user can do."""

    reason: str
    hint: str
    disk_full: bool = False
    passing: bool = False
    """Something was just under way that will be done in a moment: try again."""


#: A client's connection that nobody has accepted yet, a message of the kernel's that nobody has
#: read yet: so it is while a kernel starts and its clients come. A connection's queue from which
#: something was just acknowledged.
_PASSING = re.compile(
    r"In-flight connection|netlink: The socket has data to read|recv failed \(\d+, want \d+\)"
)


def explain(log: str, otherwise: str) -> Explanation:
    """Read the log of a failed dump or restore. Called when a save or resume has failed.

    ``otherwise`` is the reason where CRIU's log names none: then something else failed.
    """
    errors = [
        re.sub(r"^\(\d+\.\d+\)\s*(\d+: )?", "", line)
        for line in log.splitlines()
        # The rlimit line comes in every log of a host without CAP_SYS_RESOURCE: it means nothing.
        if re.search(r"\bError \(", line) and "RLIMIT_NOFILE" not in line
    ]
    text = "\n".join(errors)
    for pattern, meaning, hint in _KNOWN:
        if found := re.search(pattern, text):
            return Explanation(
                f"{meaning.format(*found.groups())} (CRIU: {_first(errors)})",
                hint,
                disk_full="disk is full" in meaning,
            )
    if _PASSING.search(text):
        return Explanation(
            f"connections of the kernel were just being made (CRIU: {_first(errors)})",
            "Try again in a moment.",
            passing=True,
        )
    return Explanation(
        f"CRIU: {_first(errors)}" if errors else otherwise,
        "The agent's log has more; `jupyter checkpoints doctor` tests this host.",
    )


def _first(errors: list[str]) -> str:
    return errors[0].strip() if errors else ""


def lacks_descriptors(log: str) -> bool:
    """Whether a dump failed only because CRIU may not have as many files open as it tried to."""
    return re.search(rf"Error .*({_CROWDED})", log) is not None


def lacks_userfaultfd(log: str) -> bool:
    """Whether a restore failed only because pages may not come later in this container."""
    return re.search(r"Error .*(uffd|userfaultfd)", log) is not None


def configuration(
    *,
    ghost_limit: int,
    keep_connections: bool,
    lock_network: bool = True,
    action_script: Path | None = None,
    cgroups: Path | None = None,
    work: Path | None = None,
    more: str = "",
) -> str:
    """The text of one container's CRIU configuration file.

    Parameters
    ----------
    ghost_limit:
        Bytes of a deleted, still open file that may be taken into the images.
    keep_connections:
        False at the restore of anything but the kernel's last state in its own place: TCP
        connections come back closed. A dump always takes them alive.
    lock_network:
        False at the dump of a kernel that goes on: what reaches it meanwhile waits in its sockets,
        and of the connections in the images nothing is ever sent.
    action_script:
        Run by CRIU at each stage, see :func:`action_script`.
    cgroups:
        Where it finds all hierarchies of control groups; otherwise it mounts them all for itself.
    work:
        Where a dump puts its log.
    more:
        Further lines.
    """
    lock = "nftables" if lock_network else "skip"
    lines = [f"network-lock {lock}", "link-remap", f"ghost-limit {ghost_limit}"]
    if not keep_connections:
        lines.append("tcp-close")
    if action_script is not None:
        lines.append(f"action-script {action_script}")
    if cgroups is not None:
        lines.append(f"cgroup-yard {cgroups}")
    if work is not None:
        lines.append(f"work-dir {work}")
    return "\n".join(lines) + "\n" + more


def action_script(*, freeze: str, snapshot: str) -> str:
    """The script that freezes the processes for a dump, and takes their files before they go on."""
    return f"""#!/bin/sh
case "$CRTOOLS_SCRIPT_ACTION" in
pre-dump)
{freeze}
;;
post-dump)
{snapshot}
;;
esac
"""


#: mount.c, create_mnt_roots(): where a restore puts mount namespaces together.
_ROOTS = ".criu.mntns.*"
_LONGEST_RESTORE_SECONDS = 24 * 3600.0


def remove_roots(directory: Path = Path("/tmp")) -> None:
    """Remove what restores have left in a directory that were killed. Called at the agent's start.

    Those of restores that may still be under way, of this agent or of others, stay.
    """
    for path in directory.glob(_ROOTS):
        with contextlib.suppress(OSError):  # not empty, not a directory, or just gone
            found = path.lstat()
            if found.st_uid == 0 and time.time() - found.st_mtime > _LONGEST_RESTORE_SECONDS:
                path.rmdir()


def wire(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protobuf message, without its schema: enough for a few facts.

    Raises ``ValueError`` for what is not protobuf.
    """
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                raise ValueError("not a protobuf message")
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value

    while at < len(data):
        key = varint()
        kind, number = key & 7, key >> 3
        if kind == 0:
            yield number, varint()
        elif kind in (1, 2, 5):
            size = varint() if kind == 2 else 8 if kind == 1 else 4
            if at + size > len(data):
                raise ValueError("not a protobuf message")
            yield number, data[at : at + size]
            at += size
        else:
            raise ValueError("not a protobuf message")


def entries(image: Path) -> Iterator[bytes]:
    """The messages of a CRIU image."""
    return messages(image.read_bytes())


def messages(data: bytes) -> Iterator[bytes]:
    """From a CRIU image's content: two magic words, then (u32 size, message) to the end."""
    at = 8
    while at + 4 <= len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        yield data[at + 4 : at + 4 + size]
        at += 4 + size


#: The image that names all open files.
FILES = "files.img"
#: The image of deleted files that are open. CRIU gives them names for as long as its script runs.
REMAPS = "remap-fpath.img"


class OpenFile(Struct, frozen=True):
    """A regular file that a saved kernel had open: its path in the container and its size."""

    path: str
    size: int


def open_files(files_image: bytes) -> list[OpenFile]:
    """The regular files that saved processes have open, with the size CRIU will insist on.

    Takes the content of :data:`FILES`.
    fdinfo.proto: file_entry.reg = 3; regfile.proto: reg_file_entry: name = 6, size = 8.
    """
    found = []
    for entry in messages(files_image):
        for number, value in wire(entry):
            if number == 3 and isinstance(value, bytes):
                fields = dict(wire(value))
                name, size = fields.get(6), fields.get(8)
                if isinstance(name, bytes) and isinstance(size, int):
                    found.append(OpenFile("/" + name.decode(errors="replace").lstrip("/"), size))
    return found


#: compel's task-state.h: TASK_DEAD, TASK_ZOMBIE.
_DEAD = (2, 6)


def kernel_has_ended(images: Path) -> bool:
    """Whether a dump was made in the moment between a kernel's end and that of its container.

    The kernel is the first child that the container's init has had; nothing is ever before it.
    pstree.proto: pid = 1, ppid = 2; core.proto: core_entry.tc = 3, task_core_entry.task_state = 1.

    Raises
    ------
    OSError, ValueError
        If the images cannot be read, or understood.
    """
    processes = [dict(wire(entry)) for entry in entries(images / "pstree.img")]
    children = [int(process[1]) for process in processes if process.get(2) == 1]
    if not children:
        return True
    core = next(entries(images / f"core-{min(children)}.img"))
    task = dict(wire(core)).get(3)
    return isinstance(task, bytes) and dict(wire(task)).get(1) in _DEAD


_PAGE = 4096
#: Flags of a pagemap's entry: its pages may come later; they are in the pages file.
_LAZY, _PRESENT = 2, 4


class LeftOut(Struct, frozen=True):
    """A pagemap of a dump that has left memory where it is: that of one process."""

    image: Path
    file: str
    """The pages file, of which CRIU has written only what could not be left out."""
    lazy: Array
    """Addresses of what was left out: ranges [start, stop) in bytes, ascending; (n, 2)."""
    written: Array
    """The same of what is in the pages file."""

    @property
    def space(self) -> str:
        """As in :func:`memory`."""
        return self.image.stem


def left_out(images: Path) -> Iterator[LeftOut]:
    """The processes of which a dump has left memory out. Called while they stand still.

    Raises
    ------
    ValueError
        If the images cannot be understood.
    """
    for image in images.glob("pagemap-*.img"):
        if not image.stem.removeprefix("pagemap-").isdigit():
            continue  # shared memory is written
        pages_id, found = _pagemap(image.read_bytes())
        lazy, written = found[found["flags"] == _LAZY], found[found["flags"] != _LAZY]
        if len(lazy):
            yield LeftOut(image, f"pages-{pages_id}.img", _addresses(lazy), _addresses(written))


def _addresses(entries: Array) -> Array:
    start = entries["address"]
    return np.stack([start, start + entries["pages"] * _PAGE], axis=1)


_ENTRY = np.dtype([("address", "<i8"), ("pages", "<i8"), ("flags", "<i8"), ("flags_at", "<i8")])


def _pagemap(data: bytes) -> tuple[int, Array]:
    """The number of the pages file of a pagemap, and its entries.

    ``flags_at`` is the place in ``data``; the rest is as in the file.

    pagemap.proto: pagemap_head.pages_id = 1; pagemap_entry: vaddr = 1, compat_nr_pages = 2,
    flags = 4, nr_pages = 5. There may be very many, and a kernel stands still meanwhile: so all
    are read at once.

    Raises
    ------
    ValueError
        If it makes no sense.
    """
    sizes = []
    at = 8
    while at < len(data):
        sizes.append(int.from_bytes(data[at : at + 4], "little"))
        at += 4 + sizes[-1]
    if not sizes or at != len(data):
        raise ValueError("it ends within an entry")
    lengths = np.array(sizes[1:], np.int64)
    rest = np.frombuffer(data, np.uint8, offset=8 + 4 + sizes[0])
    starts = np.cumsum(lengths + 4) - lengths
    own = np.ones(len(rest), bool)
    own[(starts[:, None] - np.arange(1, 5)).ravel()] = False
    encoded = rest[own].astype(np.int64)
    entry = np.repeat(np.arange(len(lengths)), lengths)
    # Nothing but numbers: seven bits in each byte, of which the last has no eighth one.
    last = np.flatnonzero(encoded < 0x80)
    first = np.concatenate([[0], last + 1])[: len(last)].astype(np.int64)
    within = np.arange(len(encoded)) - np.repeat(first, last - first + 1)
    parts = (encoded & 0x7F) << np.minimum(7 * within, 63)
    numbers = np.add.reduceat(parts, first) if len(first) else parts
    keys, values, owners = numbers[::2], numbers[1::2], entry[first[::2]]
    if len(keys) != len(values) or (keys & 7).any():
        raise ValueError("its entries are no numbers")
    found = np.zeros(len(lengths), _ENTRY)
    found["flags"] = _PRESENT
    # The second way to tell how many pages there are replaces the first.
    for number, name in ((1, "address"), (2, "pages"), (5, "pages"), (4, "flags")):
        mine = keys == number << 3
        found[name][owners[mine]] = values[mine]
        if name == "flags":
            where = 8 + 4 + sizes[0] + np.flatnonzero(own)[first[1::2]]
            found["flags_at"][owners[mine]] = where[mine]
    return int(dict(wire(data[12 : 12 + sizes[0]]))[1]), found


def mark_present(image: Path) -> None:
    """Say in a pagemap that what was left out is there, as a dump does that leaves nothing out."""
    data = image.read_bytes()
    _, found = _pagemap(data)
    changed = np.frombuffer(data, np.uint8).copy()
    changed[found["flags_at"][found["flags"] == _LAZY]] = _LAZY | _PRESENT
    temporary = image.with_suffix(".tmp")
    temporary.write_bytes(changed.tobytes())
    temporary.replace(image)


class SavedMemory(Struct, frozen=True):
    """A pagemap: whose memory is in which pages file, in the order of the file."""

    owner: str
    file: str
    entries: list[tuple[int, int, bool]]
    """Address and count, both in pages, and whether they may come later."""


def saved_memory(images: Path) -> Iterator[SavedMemory]:
    """The pagemaps among process images; those that make no sense are left out."""
    for image in sorted(images.glob("pagemap-*.img")):
        try:
            pages_id, found = _pagemap(image.read_bytes())
        except (ValueError, KeyError):
            continue
        present = found[found["flags"] & _PRESENT != 0]
        columns = (present["address"] // _PAGE, present["pages"], present["flags"] & _LAZY != 0)
        listed = list(zip(*(column.tolist() for column in columns), strict=True))
        yield SavedMemory(image.stem, f"pages-{pages_id}.img", listed)


def memory(images: Path) -> dict[str, list[Run]]:
    """Whose memory is in which pages file: handed to the store, which calls it for each save."""
    return {
        saved.file: [Run(saved.owner, address, pages) for address, pages, _ in saved.entries]
        for saved in saved_memory(images)
    }


def eager_pages(images: Path) -> Iterator[tuple[str, int, int]]:
    """(pages file, offset, size) of what CRIU reads itself, also where the rest comes later."""
    for saved in saved_memory(images):
        offset = 0
        for _, pages, lazy in saved.entries:
            if not lazy:
                yield saved.file, offset, pages * _PAGE
            offset += pages * _PAGE
