"""What CRIU is asked for at a dump, by its own protocol: what ``runc checkpoint`` would ask.

runc has CRIU tell everything it does, twenty thousand lines for each GiB of memory, while
processes stand still, and cannot be told otherwise. So CRIU gets the same request from here: it is
started as runc does it, by ``criu swrk``, and finds the request in the socket that it is given.
Restores are runc's, which sees no difference.

rpc.proto of CRIU has the numbers below; ``state.json`` is where runc keeps what it knows of a
container for its next call, whatever its version then is.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

_LOG = "dump.log"
_WARNINGS, _ALL = 2, 4
_DUMP = 1
_SOFT = 3
_NEW_NETWORK = 0x40000000
#: In the images, for the restore: which descriptors of the first process runc has made.
_DESCRIPTORS = "descriptors.json"
#: Field number, and an int, a bool, a text, or a message in the message.
_Field = tuple[int, int | str | bytes]
#: Symbolic links in one path, as the kernel has it.
_MOST_LINKS = 40


class _Mount(Struct):
    destination: str
    device: str = ""


class _Device(Struct):
    path: str


class _Namespace(Struct):
    type: str
    path: str = ""


class _Configuration(Struct):
    rootfs: str
    namespaces: list[_Namespace]
    mounts: list[_Mount]
    mask_paths: list[str] | None = None
    devices: list[_Device] | None = None


class _Container(Struct):
    """What runc knows of a container that runs; of its ``state.json``, what a dump needs."""

    init_process_pid: int
    config: _Configuration
    cgroup_paths: dict[str, str]
    external_descriptors: list[str] | None = None


class Request:
    """One dump's request, waiting for the CRIU that is started with :attr:`arguments`.

    With it, beside the images, the file is written that runc's restore looks for. Made and used by
    one save. The rest is in ``configuration``, see :func:`.criu.configuration`. Blocking.

    Parameters
    ----------
    state:
        The ``state.json`` of the container, which runs.
    images:
        Where the images go.
    configuration:
        CRIU's configuration file.
    empty_network:
        What is in the container's network namespace is not saved.
    lazy:
        Private memory is not written, but held for a :class:`~.window.Window`.
    in_detail:
        CRIU's log tells all that it does; otherwise what went wrong, see :func:`.criu.explain`.

    Raises
    ------
    OSError
        If the container has ended, or a file cannot be written.
    ValueError
        If what runc has written cannot be understood.
    """

    def __init__(
        self,
        state: Path,
        images: Path,
        configuration: Path,
        *,
        empty_network: bool,
        lazy: bool,
        in_detail: bool,
    ) -> None:
        container = msgspec.json.decode(state.read_bytes(), type=_Container)
        descriptors = images / _DESCRIPTORS
        descriptors.write_bytes(msgspec.json.encode(container.external_descriptors))
        descriptors.chmod(0o600)
        options: list[_Field] = [
            (1, -1),  # images_dir_fd: no descriptor, but
            (68, os.fspath(images)),  # images_dir
            (51, os.fspath(configuration)),  # config_file
            (38, _NEW_NETWORK if empty_network else 0),  # empty_ns
            (48, lazy),  # lazy_pages
            (9, _ALL if in_detail else _WARNINGS),  # log_level
            *_options(container),
        ]
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.arguments = ("swrk", str(self._theirs.fileno()))
        """Those of ``criu``."""
        self._ours.send(_message([(1, _DUMP), (2, _message(options))]))

    def give(self) -> int:
        """The descriptor that CRIU has to inherit; whoever starts it closes it here then."""
        return self._theirs.detach()

    def close(self) -> None:
        """Not before the dump has ended: it answers. Its status says as much."""
        self._ours.close()
        self._theirs.close()


def _options(container: _Container) -> Iterator[_Field]:
    """Those of every dump of a container."""
    config = container.config
    yield 2, container.init_process_pid  # pid
    yield 3, True  # leave_running
    yield 5, True  # tcp_established
    yield 8, True  # file_locks
    yield 10, _LOG  # log_file
    yield 13, config.rootfs  # root
    for path, name in _external(container):
        yield 23, _message([(1, path), (2, name)])  # ext_mnt
    yield 34, _SOFT  # manage_cgroups_mode
    for name in _namespaces(config):
        yield 37, name  # external
    groups = container.cgroup_paths
    # Where both versions are mounted, the first one's freezes.
    if freezer := groups.get("freezer", groups.get("", "") if len(groups) == 1 else ""):
        yield 44, freezer  # freeze_cgroup
    yield 50, True  # orphan_pts_master


def _external(container: _Container) -> Iterator[tuple[str, str]]:
    """Mounts that are not in the images, and what they are called there."""
    config = container.config
    for mount in config.mounts:
        if mount.device == "bind":
            path = _inside(config.rootfs, mount.destination)
            yield path, path
    for path in config.mask_paths or ():
        # A directory is hidden by a file system of its own, which is saved.
        hidden = Path(f"/proc/{container.init_process_pid}/root{path}")
        if hidden.exists() and not hidden.is_dir():
            yield path, "/dev/null"
    for device in config.devices or ():
        path = _inside(config.rootfs, device.path)
        yield path, path


def _namespaces(config: _Configuration) -> Iterator[str]:
    """Namespaces that were there before the container, and are not in the images."""
    for kind, name, key in (("NEWNET", "net", "Net"), ("NEWPID", "pid", "Pid")):
        for namespace in config.namespaces:
            if namespace.type == kind and namespace.path:
                yield f"{name}[{os.stat(namespace.path).st_ino}]:extRoot{key}NS"


def _inside(root: str, path: str) -> str:
    """Where a path leads whose symbolic links all stay below ``root``."""
    found: list[str] = []
    left = path.split("/")[::-1]
    links = 0
    while left:
        part = left.pop()
        if part in ("", "."):
            continue
        if part == "..":
            del found[-1:]
            continue
        here = os.path.join(root, *found, part)
        if not os.path.islink(here):
            found.append(part)
            continue
        links += 1
        if links > _MOST_LINKS:
            raise ValueError(f"{path}: too many symbolic links")
        target = os.readlink(here)
        if target.startswith("/"):
            found = []
        left += target.split("/")[::-1]
    return "/" + "/".join(found)


def _message(fields: list[_Field]) -> bytes:
    """A protobuf message."""
    encoded = bytearray()
    for number, value in fields:
        if isinstance(value, int):
            encoded += _number(number << 3) + _number(value)
        else:
            content = value.encode() if isinstance(value, str) else value
            encoded += _number(number << 3 | 2) + _number(len(content)) + content
    return bytes(encoded)


def _number(value: int) -> bytes:
    """Seven bits in each byte; negative ones as if they had 64."""
    value &= 2**64 - 1
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
