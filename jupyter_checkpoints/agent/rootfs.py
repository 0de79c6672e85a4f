"""Root file systems: a read-only image below, a writable layer above, snapshots of the layer.

The writable layers live in a *pool* that can snapshot one layer while its kernel is frozen, in
milliseconds and with every inode number kept: an SQLite connection that is open across a resume
refuses to write if its file's inode number changed, and IPython's history is one.

Which pool serves a host is measured, not assumed (:func:`open_pool`): btrfs (the host's own, or
one sparse file mounted by loop), else one sparse ext4 image per kernel cloned by reflink, else a
plain copy, which cannot keep inode numbers.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shlex
import shutil
import struct
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import HostNotReady, InsufficientResources
from ..layout import Layout
from . import mounting

log = logging.getLogger(__name__)

_PATH = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


def command(*argv: str | os.PathLike[str], timeout: float = 60) -> str:
    """Run a short host command to its end (blocking); raises ``OSError`` with what it said."""
    try:
        done = subprocess.run(
            argv, env=_PATH, capture_output=True, text=True, timeout=timeout, check=False
        )
    except FileNotFoundError as error:
        raise HostNotReady(
            f"{argv[0]} is not installed on this host.",
            reason=str(error),
            hint="Run `sudo jupyter checkpoints setup`.",
        ) from error
    if done.returncode:
        raise OSError(f"{argv[0]}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def mounts_below(path: Path) -> list[Path]:
    """Mount points at or below ``path``, deepest first."""
    found = []
    prefix = os.fspath(path)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        target = line.split()[4].encode().decode("unicode_escape")
        if target == prefix or target.startswith(prefix + "/"):
            found.append(Path(target))
    return sorted(found, key=lambda p: len(p.parts), reverse=True)


def unmount_below(path: Path) -> None:
    """Unmount everything at or below ``path``; never fails for what is not mounted."""
    for target in mounts_below(path):
        try:
            command("umount", target)
        except OSError as error:
            if target in mounts_below(target):
                # Something still has it open: detach it, the kernel frees it with the last user.
                log.debug("Detaching %s: %s", target, error)
                command("umount", "-l", target)


class Pool(ABC):
    """Writable layers and their snapshots. All methods block: call them in a thread.

    A layer is a directory with ``upper`` and ``work`` in it, named by its container; a snapshot
    is read-only and named by its checkpoint.
    """

    name: str
    keeps_inodes: bool
    at_once = False
    """Whether :meth:`snapshot` works: by one call that leaves nothing half done."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def layers(self) -> Path:
        return self.root / "layers"

    @property
    def snapshots(self) -> Path:
        return self.root / "snapshots"

    def open(self) -> None:
        """Make the pool usable; called once, at the agent's start."""
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.layers.mkdir(mode=0o700, exist_ok=True)
        self.snapshots.mkdir(mode=0o700, exist_ok=True)

    def close(self) -> None:
        """Let the pool go; called at the agent's end if no kernel is left."""
        unmount_below(self.root)

    def layer(self, container: str) -> Path:
        return self.layers / container

    def snapshot_upper(self, checkpoint: str) -> Path:
        """The ``upper`` of a snapshot, readable as plain files."""
        return self.snapshots / checkpoint / "upper"

    @abstractmethod
    def create(self, container: str, checkpoint: str | None = None) -> Path:
        """A new layer, empty or with the content of a snapshot, with a fresh ``work``."""

    @abstractmethod
    def snapshot_script(self, container: str, checkpoint: str) -> str:
        """Shell commands that take the snapshot; run by CRIU while the kernel is frozen."""

    def snapshot(self, container: str, checkpoint: str) -> None:
        """The same from here, which takes less time. ``OSError`` if it fails."""
        raise NotImplementedError

    @abstractmethod
    def copy_snapshot(self, source: str, target: str) -> None:
        """A further snapshot with the same content, for another checkpoint."""

    @abstractmethod
    def delete_layer(self, container: str) -> None:
        """Remove a layer; nothing happens if it is gone."""

    @abstractmethod
    def delete_snapshot(self, checkpoint: str) -> None:
        """Remove a snapshot; nothing happens if it is gone."""

    def list_layers(self) -> set[str]:
        return {p.name for p in self.layers.iterdir()}

    def list_snapshots(self) -> set[str]:
        return {p.name for p in self.snapshots.iterdir()}

    def sync(self, checkpoint: str) -> None:
        """Make a snapshot durable, before the manifest that names it is committed."""
        fd = os.open(self.snapshots, os.O_RDONLY)
        try:
            command("sync", "-f", self.snapshots / checkpoint)
            os.fsync(fd)
        finally:
            os.close(fd)

    def _prepare(self, layer: Path) -> Path:
        # A work directory that has served another overlay is refused (index=on), so: a fresh one.
        work = layer / "work"
        if work.exists():
            shutil.rmtree(work)
        work.mkdir(mode=0o755)
        upper = layer / "upper"
        if not upper.exists():
            upper.mkdir()
            upper.chmod(0o755)  # the container's root directory, which all pass
        # One from a checkpoint keeps its mode: CRIU insists on it where the directory was open.
        return layer


# ioctl numbers and structures of linux/btrfs.h
_SUBVOL_CREATE = 0x5000940E
_SNAP_DESTROY = 0x5000940F
_SNAP_CREATE_V2 = 0x50009417
_READ_ONLY = 1 << 1


class BtrfsPool(Pool):
    """One subvolume per layer, one read-only snapshot per checkpoint: 5-8 ms, no copy."""

    name = "btrfs"
    keeps_inodes = True
    at_once = True

    def __init__(self, root: Path, file: Path | None) -> None:
        super().__init__(root)
        self.file = file

    def open(self) -> None:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.file is not None and not os.path.ismount(self.root):
            if not self.file.exists():
                self._make(self.file)
            command("mount", "-o", "loop,nosuid,nodev,noatime", self.file, self.root)
            os.chmod(self.root, 0o700)
            device = command("findmnt", "-no", "SOURCE", self.root).strip()
            try:
                # Without a second copy of everything in the page cache; not all hosts can.
                command("losetup", "--direct-io=on", device)
            except OSError as error:
                log.info("Pool %s goes through the page cache: %s", device, error)
        super().open()

    @staticmethod
    def _make(file: Path) -> None:
        temporary = file.with_suffix(".tmp")
        disk = os.statvfs(file.parent)
        with open(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            # Sparse: it holds what is written, and can grow as large as the disk it is on.
            out.truncate(max(disk.f_blocks * disk.f_frsize, 512 * 2**20) // 4096 * 4096)
        command("mkfs.btrfs", "-q", temporary)
        os.rename(temporary, file)

    def create(self, container: str, checkpoint: str | None = None) -> Path:
        if checkpoint is None:
            args = struct.pack("=q4088s", 0, os.fsencode(container))
            self._ioctl(self.layers, _SUBVOL_CREATE, args)
        else:
            self._copy(self.snapshots / checkpoint, self.layers, container, 0)
        return self._prepare(self.layer(container))

    def copy_snapshot(self, source: str, target: str) -> None:
        self._copy(self.snapshots / source, self.snapshots, target, _READ_ONLY)

    def snapshot(self, container: str, checkpoint: str) -> None:
        self._copy(self.layer(container), self.snapshots, checkpoint, _READ_ONLY)

    def _copy(self, subvolume: Path, parent: Path, name: str, flags: int) -> None:
        source = os.open(subvolume, os.O_RDONLY | os.O_DIRECTORY)
        try:
            args = struct.pack("=qQQ32x4040s", source, 0, flags, os.fsencode(name))
            self._ioctl(parent, _SNAP_CREATE_V2, args)
        finally:
            os.close(source)

    def snapshot_script(self, container: str, checkpoint: str) -> str:
        source, target = self.layer(container), self.snapshots / checkpoint
        return shlex.join(
            ["btrfs", "subvolume", "snapshot", "-r", os.fspath(source), os.fspath(target)]
        )

    def delete_layer(self, container: str) -> None:
        self._destroy(self.layers, container)

    def delete_snapshot(self, checkpoint: str) -> None:
        self._destroy(self.snapshots, checkpoint)

    def sync(self, checkpoint: str) -> None:
        # A btrfs snapshot commits its transaction when it is made asynchronously; wait for it.
        command("btrfs", "filesystem", "sync", self.snapshots / checkpoint)

    def _destroy(self, parent: Path, name: str) -> None:
        if not (parent / name).exists():
            return
        try:
            self._ioctl(parent, _SNAP_DESTROY, struct.pack("=q4088s", 0, os.fsencode(name)))
        except OSError:
            # Not a subvolume (a crash between mkdir and more), or one with subvolumes inside.
            command("btrfs", "property", "set", "-f", parent / name, "ro", "false")
            shutil.rmtree(parent / name)

    @staticmethod
    def _ioctl(directory: Path, request: int, args: bytes) -> None:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # A mutable buffer: immutable ones may have 1024 bytes, and these have 4096.
            fcntl.ioctl(fd, request, bytearray(args))
        finally:
            os.close(fd)


class ReflinkPool(Pool):
    """One sparse ext4 image per layer, cloned by FICLONE while frozen: 34-50 ms, no copy.

    For XFS with reflink, where RHEL-like kernels have no btrfs.
    """

    name = "reflink"
    keeps_inodes = True
    size = 1 << 40

    def create(self, container: str, checkpoint: str | None = None) -> Path:
        image = self.root / f"{container}.layer"
        source = self.root / "template.img"
        if checkpoint is not None:
            source = self.snapshots / checkpoint / "layer.img"
        elif not source.exists():
            temporary = self.root / "template.tmp"
            with open(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
                out.truncate(self.size)
            command("mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=1", temporary)
            os.rename(temporary, source)
        command("cp", "--reflink=always", "--sparse=auto", source, image)
        os.chmod(image, 0o600)
        layer = self.layer(container)
        layer.mkdir(mode=0o700)
        command("mount", "-o", "loop,nosuid,nodev,noatime,discard", image, layer)
        return self._prepare(layer)

    def snapshot_script(self, container: str, checkpoint: str) -> str:
        layer = shlex.quote(os.fspath(self.layer(container)))
        image = shlex.quote(os.fspath(self.root / f"{container}.layer"))
        target = shlex.quote(os.fspath(self.snapshots / checkpoint))
        return (
            f"mkdir -m 700 {target} && fsfreeze -f {layer} || exit 1\n"
            f"cp --reflink=always {image} {target}/layer.img; status=$?\n"
            f"fsfreeze -u {layer} && exit $status"
        )

    def snapshot_upper(self, checkpoint: str) -> Path:
        """Mounts the snapshot read-only beside its image, where it stays until it is deleted."""
        directory = self.snapshots / checkpoint
        view = directory / "view"
        if not os.path.ismount(view):
            view.mkdir(exist_ok=True)
            # norecovery: a frozen image has an empty journal, and the snapshot is never written.
            command("mount", "-o", "loop,ro,norecovery", directory / "layer.img", view)
        return view / "upper"

    def copy_snapshot(self, source: str, target: str) -> None:
        (self.snapshots / target).mkdir(mode=0o700)
        image = self.snapshots / source / "layer.img"
        command("cp", "--reflink=always", image, self.snapshots / target / "layer.img")

    def delete_layer(self, container: str) -> None:
        layer = self.layer(container)
        unmount_below(layer)
        if layer.exists():
            layer.rmdir()
        (self.root / f"{container}.layer").unlink(missing_ok=True)

    def delete_snapshot(self, checkpoint: str) -> None:
        directory = self.snapshots / checkpoint
        unmount_below(directory)
        if directory.exists():
            shutil.rmtree(directory)

    def list_layers(self) -> set[str]:
        return super().list_layers() | {p.stem for p in self.root.glob("*.layer")}


class CopyPool(Pool):
    """A plain ``cp -a``: works everywhere, takes its time, and gives files new inode numbers."""

    name = "copy"
    keeps_inodes = False

    def create(self, container: str, checkpoint: str | None = None) -> Path:
        layer = self.layer(container)
        layer.mkdir(mode=0o700)
        if checkpoint is not None:
            command("cp", "-a", self.snapshots / checkpoint / "upper", layer, timeout=3600)
        return self._prepare(layer)

    def snapshot_script(self, container: str, checkpoint: str) -> str:
        source = shlex.quote(os.fspath(self.layer(container) / "upper"))
        target = shlex.quote(os.fspath(self.snapshots / checkpoint))
        return f"mkdir -m 700 {target} && cp -a --reflink=auto {source} {target}/"

    def copy_snapshot(self, source: str, target: str) -> None:
        (self.snapshots / target).mkdir(mode=0o700)
        upper = self.snapshots / source / "upper"
        command("cp", "-a", "--reflink=auto", upper, self.snapshots / target, timeout=3600)

    def delete_layer(self, container: str) -> None:
        shutil.rmtree(self.layer(container), ignore_errors=True)

    def delete_snapshot(self, checkpoint: str) -> None:
        shutil.rmtree(self.snapshots / checkpoint, ignore_errors=True)


def _filesystem(path: Path) -> str:
    return command("stat", "-f", "-c", "%T", path).strip()


def _can_reflink(directory: Path) -> bool:
    probe = directory / ".reflink-probe"
    try:
        probe.write_bytes(b"x" * 4096)
        command("cp", "--reflink=always", probe, directory / ".reflink-probe-2")
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)
        (directory / ".reflink-probe-2").unlink(missing_ok=True)
    return True


def _has_btrfs() -> bool:
    if "btrfs" not in Path("/proc/filesystems").read_text().split():
        try:
            command("modprobe", "btrfs")
        except (OSError, HostNotReady):
            return False
    return shutil.which("mkfs.btrfs", path=_PATH["PATH"]) is not None


def open_pool(layout: Layout, choice: str = "auto") -> Pool:
    """The pool for this host, opened. Called by the agent at its start (blocking).

    Parameters
    ----------
    choice:
        ``auto`` or the name of a pool. What was chosen first stays: snapshots cannot move.

    Raises
    ------
    HostNotReady
        If ``choice`` names a pool that this host cannot have.
    """
    layout.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    remembered = layout.data_dir / "pool.kind"
    if choice == "auto" and remembered.exists():
        choice = remembered.read_text().strip()
    if choice == "auto":
        if _filesystem(layout.data_dir) == "btrfs" or _has_btrfs():
            choice = "btrfs"
        elif _can_reflink(layout.data_dir):
            choice = "reflink"
        else:
            choice = "copy"
    pool: Pool
    if choice == "btrfs":
        on_btrfs = _filesystem(layout.data_dir) == "btrfs"
        pool = BtrfsPool(layout.pool, None if on_btrfs else layout.pool_file)
    elif choice == "reflink":
        pool = ReflinkPool(layout.pool)
    else:
        pool = CopyPool(layout.pool)
    try:
        pool.open()
    except OSError as error:
        raise HostNotReady(
            f"The {choice} pool for the kernels' files could not be opened.",
            reason=str(error),
            hint="Set `pool` in the agent's configuration to `copy`, or mend what is named above.",
        ) from error
    temporary = remembered.with_suffix(".tmp")
    temporary.write_text(choice + "\n")
    os.rename(temporary, remembered)
    return pool


def forget_origins(layer: Path) -> None:
    """Let a layer be laid over another copy of its image. Blocking; it looks at every file.

    An overlay remembers which directory each of its own was copied from, to the inode, and refuses
    any other.
    """
    for directory, names, files in os.walk(layer / "upper"):
        for path in (directory, *(os.path.join(directory, n) for n in (*names, *files))):
            try:
                os.removexattr(path, "trusted.overlay.origin", follow_symlinks=False)
            except OSError as error:
                if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM):
                    raise


def mount_overlay(lower: Path, layer: Path, target: Path) -> None:
    """Mount one kernel's root file system: ``lower`` below, the layer's ``upper`` above.

    Raises :class:`InsufficientResources` if the disk is full.
    """
    target.mkdir(mode=0o755, parents=True, exist_ok=True)
    with _told(target):
        _laid_over(layer, lambda: mounting.overlay(str(target), _options(lower, layer)))


def mount_mapped_overlay(
    lower: Path, layer: Path, target: Path, namespace: int, root: tuple[int, int]
) -> None:
    """The same with all ids mapped by a user namespace, in which ``root`` is root.

    Set-uid bits and device nodes mean nothing in it. Raises ``OSError`` with ``EINVAL`` where a
    file system cannot map ids.
    """
    target.mkdir(mode=0o755, parents=True, exist_ok=True)
    below, above = target.with_name("lower"), target.with_name("layer")
    places = {str(below): str(lower), str(above): str(layer)}
    # The overlay has clones of them.
    with _told(target), mounting.attached(places, namespace):
        options = _options(below, above)
        _laid_over(layer, lambda: mounting.mapped_overlay(str(target), options, root))


def _options(lower: Path, layer: Path) -> str:
    # With index and nfs_export every file has a handle, which makes inotify watches dumpable.
    return (
        f"lowerdir={lower},upperdir={layer / 'upper'},workdir={layer / 'work'},"
        "index=on,nfs_export=on"
    )


def _laid_over(layer: Path, mount: Callable[[], None]) -> None:
    try:
        mount()
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        # The layer comes from the other engine, or the image was removed and made again.
        forget_origins(layer)
        mount()


@contextlib.contextmanager
def _told(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InsufficientResources(
                "The disk is full.",
                reason=f"{target} could not be mounted",
                hint="Free some space, or delete checkpoints.",
            ) from error
        raise
