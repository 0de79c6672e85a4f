"""``create`` of one container of the agent's; run by ``runtime.sh``, below Docker, as root.

The agent has left a request under the container's id before it let Docker start it. The request
is used once. It names a directory of the agent's, the *bundle*, with the container's OCI
configuration; from the bundle that Docker prepared come the root file system, the cgroup and the
limits. Then runc creates the container, or restores it, in Docker's bundle.

The root file system is put together anew: what Docker has mounted is unmounted, for files must
never be changed under a mounted overlay; the image's layers become the lower ones, and the agent's
own layer is the upper one. Docker's two layers of the container itself are left out: an overlay
that is to be saved insists on the same lower layers at its resume. (They hold an empty working
directory and empty files to mount on, which runc makes too.)

Where the configuration has a user namespace, everything is mounted with its ids mapped, in a place
of the agent's that root of the container may pass; what Docker takes for its root file system is
the same mount.

Only the standard library, and little of it: it runs isolated (``python -I -S``), and at every
start of a kernel. Where anything is not as it has to be, nothing is created.
"""

import contextlib
import ctypes
import errno
import json
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from .. import mounting

_LARGEST = 64 * 1024
#: Global options of runc that take a value.
_VALUED = frozenset({"--root", "--log", "--log-format", "--criu", "--rootless"})
_MS_PRIVATE, _MS_SHARED = 1 << 18, 1 << 20
_PAGE = os.sysconf("SC_PAGE_SIZE")


#: The agent's layer lay over other directories before. The agent knows what to do then.
STALE = "the layer belongs to another copy of the image"


class Refused(Exception):
    """Why nothing is created."""


class Arguments:
    """What Docker's shim asks of runc: options, ``create``, its options, the container's id."""

    def __init__(self, words: list[str]) -> None:
        at = 0
        self.log = ""
        while at < len(words) and words[at].startswith("-"):
            name, equals, value = words[at].partition("=")
            if not equals and name in _VALUED:
                at += 1
                value = words[at]
            if name == "--log":
                self.log = value
            if name == "--root":
                self.root = value
            at += 1
        if words[at : at + 1] != ["create"]:
            raise Refused("the verb is not `create`")
        self.options, self.rest = words[:at], words[at + 1 : -1]
        self.container = words[-1]
        if re.fullmatch(r"[0-9a-f]{64}", self.container) is None:
            raise Refused("the container's id is not one of Docker's")
        self.bundle = os.getcwd()
        for here, following in zip(self.rest, [*self.rest[1:], ""], strict=True):
            name, equals, value = here.partition("=")
            if name in ("--bundle", "-b"):
                self.bundle = value if equals else following
            elif name == "--console-socket":
                raise Refused("a terminal cannot be saved: create the container without one")


def take_request(directory: str, container: str) -> dict[str, str]:
    """The request, checked; it is gone then, whatever comes of it.

    Root alone may have written it, in a directory where nobody else can write: so it is as
    trustworthy as whoever runs this. Paths in it are checked all the same.
    """
    _require_private(directory)
    path = os.path.join(directory, container)
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.unlink(path)
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != 0 or facts.st_mode & 0o077:
            raise Refused("the request is not root's alone")
        text = os.read(fd, _LARGEST + 1)
    finally:
        os.close(fd)
    try:
        found = json.loads(text)
    except ValueError:
        raise Refused("the request is not JSON") from None
    fields = {"instance", "operation", "bundle", "layer", "images", "lazily"}
    if (
        not isinstance(found, dict)
        or set(found) != fields
        or not all(isinstance(v, str) and "\0" not in v for v in found.values())
    ):
        raise Refused("the request does not have the fields it should")
    for name in ("bundle", "layer", "images"):
        if found[name] or name != "images":
            _require_private(found[name])
    return found


def _require_private(path: str) -> None:
    """A directory of root's, by its real name, in which nobody else can write."""
    try:
        facts = os.lstat(path)
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}") from None
    if not os.path.isabs(path) or os.path.realpath(path) != path:
        raise Refused(f"{path} is not the real name of a directory")
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != 0 or facts.st_mode & 0o022:
        raise Refused(f"{path} is not a directory that root alone can change")


def merged(ours: dict[str, Any], theirs: dict[str, Any], root: str) -> dict[str, Any]:
    """The agent's configuration with the root, cgroup, limits and hooks of Docker's."""
    linux = dict(ours["linux"])
    for name in ("cgroupsPath", "resources"):
        linux[name] = theirs["linux"][name]
    found = {**ours, "root": {"path": root, "readonly": False}, "linux": linux}
    found["annotations"] = {**theirs.get("annotations", {}), **ours["annotations"]}
    hooks: dict[str, list[Any]] = {}
    for more in (theirs.get("hooks") or {}, ours.get("hooks") or {}):
        for moment, commands in more.items():
            hooks[moment] = [*hooks.get(moment, []), *(commands or [])]
    if hooks:
        found["hooks"] = hooks
    return found


class Root:
    """A container's root file system: where it is mounted, and what its ids are outside."""

    def __init__(self, ours: dict[str, Any], docker_s: str) -> None:
        self.docker_s = docker_s
        """Where Docker has mounted one, and looks for it."""
        linux = ours["linux"]
        self._mappings = linux.get("uidMappings", []), linux.get("gidMappings", [])
        self.mapped = bool(self._mappings[0])
        self.path = ours["root"]["path"] if self.mapped else docker_s

    @property
    def owner(self) -> tuple[int, int]:
        """Uid and gid outside of root inside."""
        uid, gid = (next(m["hostID"] for m in ms if m["containerID"] == 0) for ms in self._mappings)
        return int(uid), int(gid)

    def user_namespace(self) -> int:
        """A descriptor of one with the container's mappings."""
        uids, gids = (
            "".join(f"{m['containerID']} {m['hostID']} {m['size']}\n" for m in ms)
            for ms in self._mappings
        )
        return mounting.user_namespace(uids, gids)


def relay_root(root: Root, layer: str, bundle: str) -> None:
    """Replace Docker's mount by one of the same files, below the agent's layer.

    Its propagation is what a mount in the agent's ``bundle`` would have: it is part of what is
    saved, and the embedded engine mounts there.
    """
    base, lowers = _image_layers(root.docker_s)
    libc = ctypes.CDLL(None, use_errno=True)
    target = os.fsencode(root.docker_s)
    if libc.umount2(target, 0) != 0:
        raise OSError(ctypes.get_errno(), "umount", root.docker_s)
    try:
        if root.mapped:
            _mount_mapped(root, base, lowers, layer)
        else:
            os.chdir(base)
            mounting.overlay(root.path, _options(lowers, layer))
    except OSError as error:
        if error.errno == errno.ESTALE:
            raise Refused(STALE) from None
        raise
    finally:
        os.chdir("/")
    propagation = _MS_SHARED if _is_shared(bundle) else _MS_PRIVATE
    if libc.mount(None, os.fsencode(root.path), None, propagation, None) != 0:
        raise OSError(ctypes.get_errno(), "mount", root.path)
    if root.mapped:
        # Docker copies files from and to it, and unmounts it at the end.
        descriptor = os.open(root.path, os.O_PATH | os.O_CLOEXEC)
        mounting.bind(descriptor, root.path, root.docker_s, mounting.NOSUID | mounting.NODEV)
        os.close(descriptor)


def _mount_mapped(root: Root, base: str, lowers: list[str], layer: str) -> None:
    stage = os.path.dirname(root.path)
    below, above = os.path.join(stage, "lower"), os.path.join(stage, "layer")
    namespace = root.user_namespace()
    # One mount for all of the image's layers: they are named from here.
    with mounting.attached({below: base, above: layer}, namespace):
        os.chdir(below)
        mounting.mapped_overlay(root.path, _options(lowers, above), root.owner)
        os.chdir("/")
    os.close(namespace)


def _options(lowers: list[str], layer: str) -> str:
    found = (
        f"lowerdir={':'.join(lowers)},upperdir={layer}/upper,workdir={layer}/work,"
        "index=on,nfs_export=on"
    )
    if len(os.fsencode(found)) >= _PAGE:
        raise Refused(f"the image has too many layers ({len(lowers)})")
    return found


def _image_layers(root: str) -> tuple[str, list[str]]:
    """The directory that an image's layers are in, and their names from there, top first."""
    options = _overlay_at(root)
    if options is None:
        raise Refused(
            "the storage driver is not overlay2 or overlayfs, the only ones that are supported"
        )
    home = os.path.dirname(os.path.dirname(root))  # relative names are below Docker's own
    upper = os.path.join(home, options["upperdir"])
    lowers = options["lowerdir"].split(":")
    if not all(map(os.path.isabs, lowers)):
        for base in (home, os.path.dirname(os.path.dirname(upper))):
            if all(os.path.isdir(os.path.join(base, lower)) for lower in lowers):
                lowers = [os.path.join(base, lower) for lower in lowers]
                break
        else:
            raise Refused("the layers of the image were not found")
    first = os.path.realpath(lowers.pop(0))
    if not lowers or (first.startswith(home) and not first.endswith("-init/diff")):
        raise Refused(f"{first} is not the layer that Docker lays over an image")
    # Docker names layers by short links; a mount that maps ids has to hold both ends of them.
    base = os.path.commonpath([*lowers, *map(os.path.realpath, lowers)])
    return base, [os.path.relpath(lower, base) for lower in lowers]


def _is_shared(path: str) -> bool:
    """Whether the mount that ``path`` lies in passes mounts on to its peers."""
    at, shared = "", False
    for mount, _, _, marks in _mounts():
        if len(mount) >= len(at) and (path + "/").startswith(mount.rstrip("/") + "/"):
            at, shared = mount, any(mark.startswith("shared:") for mark in marks)
    return shared


def _overlay_at(root: str) -> dict[str, str] | None:
    found = None
    for mount, kind, options, _ in _mounts():
        if mount == root:
            found = options if kind == "overlay" else None
    if found is None:
        return None
    pairs = (option.partition("=") for option in found.split(","))
    return {name: value for name, _, value in pairs}


def _mounts() -> Iterator[tuple[str, str, str, list[str]]]:
    """(where, file system, its options, propagation) of all that is mounted, in order."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.rstrip("\n").partition(" - ")
            kind, _, options = after.split(" ", 2)
            fields = before.split(" ")
            yield _plain(fields[4]), kind, _plain(options), fields[6:]


def _plain(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)


def run(requests: str, runc: str, path: str, arguments: Arguments) -> NoReturn:
    request = take_request(requests, arguments.container)
    bundle = request["bundle"]
    with open(os.path.join(bundle, "config.json"), encoding="utf-8") as file:
        ours = json.load(file)
    configuration = os.path.join(arguments.bundle, "config.json")
    with open(configuration, encoding="utf-8") as file:
        theirs = json.load(file)
    if theirs["process"].get("terminal"):
        raise Refused("a terminal cannot be saved: create the container without one")
    root = Root(ours, os.path.realpath(os.path.join(arguments.bundle, theirs["root"]["path"])))
    relay_root(root, request["layer"], bundle)
    with open(configuration, "w", encoding="utf-8") as file:
        json.dump(merged(ours, theirs, root.path), file)
    if root.mapped:
        _give_pipes(*root.owner)
    # Where the agent finds the container when it saves it, or ends it.
    for name, text in (("runc-root", arguments.root), ("cgroup", theirs["linux"]["cgroupsPath"])):
        with open(os.path.join(bundle, name), "w", encoding="utf-8") as file:
            file.write(text)
    environment = {
        "PATH": path,
        "LANG": "C.UTF-8",
        "GOGC": "off",
        # By this the agent ends what hangs.
        "JUPYTER_CHECKPOINTS_OPERATION": request["operation"],
    }
    if not request["images"]:
        command = [*arguments.options, "create", *arguments.rest, arguments.container]
        os.execve(runc, [runc, *command], environment)
    # Docker's next word is `start`, and only if this succeeds.
    marker = os.open(
        os.path.join(requests, f"{arguments.container}.restored"),
        os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
        0o600,
    )
    os.write(marker, json.dumps({"instance": request["instance"]}).encode())
    restore = [
        *("restore", "--detach", *arguments.rest),
        *("--image-path", request["images"], "--work-path", os.path.join(bundle, "work")),
        *("--tcp-established", "--file-locks"),
        *(["--lazy-pages"] if request["lazily"] else []),
        # Its network is made by a hook then.
        *(["--empty-ns", "network"] if root.mapped else []),
        arguments.container,
    ]
    os.execve(runc, [runc, *arguments.options, *restore], environment)


def _give_pipes(uid: int, gid: int) -> None:
    """Let the container open its output again by name, as ``/dev/stdout``."""
    for fd in range(3):
        if stat.S_ISFIFO(os.fstat(fd).st_mode):
            os.fchown(fd, uid, gid)


def main(argv: list[str]) -> int:
    requests, runc, path, *words = argv
    log = ""
    try:
        arguments = Arguments(words)
        log = arguments.log
        run(requests, runc, path, arguments)
    except (Refused, OSError, ValueError, KeyError, IndexError) as error:
        message = f"jupyter-checkpoints: {error}"
        sys.stderr.write(message + "\n")
        if log:
            # Docker tells its client the last error in here.
            moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            line = json.dumps({"level": "error", "msg": message, "time": moment})
            with contextlib.suppress(OSError), open(log, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        return 1
