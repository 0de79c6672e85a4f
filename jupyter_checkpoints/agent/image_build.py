"""Build an image's root file system from its specification, without any registry of images."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from msgspec import Struct

from ..errors import HostNotReady, InsufficientResources, InvalidRequest, OperationTimeout
from . import debian
from .image_spec import ImageSpec

#: Called with (stage, message): ``packages``, ``python``, ``run``…, and one line for a person.
Progress = Callable[[str, str], None]

VENV = "/opt/kernel"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: What every image has, whatever its specification says.
_BASE_PACKAGES = ("bash", "ca-certificates", "passwd")
_PYTHON_PACKAGES = ("python3", "python3-venv")
_BOOTSTRAP_OPTIONS = (
    "--dpkgopt=force-unsafe-io",  # the finished tree is synced as a whole
    *(
        f"--dpkgopt={line}"
        for line in (
            "path-exclude=/usr/share/man/*",
            "path-exclude=/usr/share/info/*",
            "path-exclude=/usr/share/locale/*",
            "path-exclude=/usr/share/doc/*",
            "path-include=/usr/share/doc/*/copyright",
        )
    ),
)
_BUILD_SECONDS = 3600
_SYSTEM_CA = "/etc/ssl/certs/ca-certificates.crt"

_LIST_PACKAGES = """
import importlib.metadata, json
print(json.dumps({d.name: d.version for d in importlib.metadata.distributions()}))
"""

# Everything is mounted in a namespace of the command's own: whatever becomes of it, the tree on
# disk has no mount in it and nothing of the host's.
_ENTER = """
inside=$PATH; PATH=/usr/sbin:/usr/bin:/sbin:/bin
root=$1 ca=$2; shift 2
mount -t proc proc "$root/proc"
for place in run tmp dev; do mount -t tmpfs tmpfs "$root/$place"; done
chmod 0755 "$root/run" "$root/dev"
for node in null zero full random urandom tty; do
    : > "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
mkdir -m 1777 "$root/dev/shm"
ln -s /proc/self/fd "$root/dev/fd"
if [ -n "$ca" ]; then cp "$ca" "$root/run/ca.pem"; chmod 0644 "$root/run/ca.pem"; fi
if [ -e /etc/resolv.conf ]; then mount --bind /etc/resolv.conf "$root/etc/resolv.conf"; fi
chroot=$(command -v chroot)
PATH=$inside
exec "$chroot" "$root" "$@"
"""


class Built(Struct, frozen=True, kw_only=True):
    """What is known of a tree beside its files."""

    env: dict[str, str]
    cwd: str
    packages: dict[str, str]


def build_rootfs(spec: ImageSpec, rootfs: Path, progress: Progress) -> Built:
    """Make the tree that ``spec`` describes at ``rootfs``, which must not exist. Blocking, root.

    Called by :meth:`~jupyter_checkpoints.agent.images.ImageStore.build`. It takes a minute for
    the default image.

    Raises
    ------
    HostNotReady, InsufficientResources, OperationTimeout
        If the Debian packages cannot be installed.
    InvalidRequest
        If pip refuses the Python packages or a command of ``run`` fails; the reason is the last
        of what was printed.
    """
    env = {
        "PATH": f"{VENV}/bin:{_PATH}" if spec.python else _PATH,
        "LANG": "C.UTF-8",
        "HOME": "/root",
        "SHELL": "/bin/bash",
    } | spec.env
    progress("packages", f"installing Debian {spec.suite} packages")
    debian.bootstrap(
        rootfs,
        suite=spec.suite,
        include=list(
            dict.fromkeys(
                [*_BASE_PACKAGES, *(_PYTHON_PACKAGES if spec.python else ()), *spec.packages]
            )
        ),
        variant="apt",
        mirrors=spec.mirrors,
        options=_BOOTSTRAP_OPTIONS,
        tell=lambda line: progress("packages", line),
        timeout=_BUILD_SECONDS,
    )
    rootfs.chmod(0o755)
    _forget_host(rootfs)
    inside = _Inside(rootfs, env, progress)
    inside.run(
        "user", "/usr/sbin/useradd", "--create-home", "--uid=1000", "--shell=/bin/bash", "jovyan"
    )
    packages: dict[str, str] = {}
    if spec.python:
        progress("python", f"installing {', '.join(spec.python)}")
        python = f"{VENV}/bin/python"
        inside.run("python", "/usr/bin/python3", "-m", "venv", VENV)
        inside.run("python", python, "-m", "pip", "install", "--no-input", *spec.python)
        packages = json.loads(inside.run("python", python, "-I", "-c", _LIST_PACKAGES))
    for command in spec.run:
        progress("run", command)
        inside.run("run", "/bin/sh", "-euc", command)
    _clean(rootfs)
    return Built(env=env, cwd="/", packages=packages)


class _Inside:
    """Runs commands inside a tree that is being built."""

    def __init__(self, rootfs: Path, env: Mapping[str, str], progress: Progress) -> None:
        self._rootfs = rootfs
        self._progress = progress
        settings, self._ca = pip_settings()
        self._env = {**env, **settings}
        if self._ca:
            for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
                self._env[name] = "/run/ca.pem"

    def run(self, stage: str, *command: str) -> str:
        """Run one command; what it prints on standard output is told and returned."""
        enter = [
            *("/usr/bin/timeout", "--kill-after=10", str(_BUILD_SECONDS)),
            *("/usr/bin/unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"),
            *("/bin/sh", "-euc", _ENTER, "sh", str(self._rootfs), self._ca),
        ]
        output: list[str] = []
        last: deque[str] = deque(maxlen=15)
        with subprocess.Popen(
            [*enter, *command],
            env=self._env,  # not as arguments, which everybody sees: an index's URL has passwords
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            umask=0o022,
        ) as child:
            assert child.stdout is not None
            for line in child.stdout:
                output.append(line)
                last.append(line.rstrip())
                if told := _worth_telling(line):
                    self._progress(stage, told)
        if child.returncode in (124, 137):
            raise OperationTimeout(
                "Building the image took too long",
                reason=f"{command[0]} was ended after {_BUILD_SECONDS} s",
                hint="Check the connection to the package index.",
            )
        if child.returncode != 0 and "No space left on device" in "\n".join(last):
            raise InsufficientResources(
                "The disk is full",
                reason=f"while building the image, at: {' '.join(command)[:200]}",
                hint="Free some space, then build it again.",
            )
        if child.returncode != 0:
            raise InvalidRequest(
                f"Building the image failed at: {' '.join(command)[:200]}",
                reason=f"status {child.returncode}; last output:\n" + "\n".join(last),
                hint="Correct the specification, or check the connection to the package index.",
            )
        return "".join(output)


def _worth_telling(line: str) -> str:
    """Of pip's many lines, those on what was asked for; packages that come along are counted."""
    if line.startswith("Collecting ") and " (from " not in line:
        return line.strip()
    if line.startswith("Installing collected packages: "):
        return f"Installing {line.count(',') + 1} packages"
    return ""


def _forget_host(rootfs: Path) -> None:
    """What mmdebstrap left of the host's: its name, resolver, and our own settings of apt."""
    for leftover in (
        "etc/hostname",
        "etc/resolv.conf",
        "etc/apt/apt.conf.d/99mmdebstrap",
    ):
        (rootfs / leftover).unlink(missing_ok=True)
    (rootfs / "etc" / "resolv.conf").touch(mode=0o644)
    settings = rootfs / "etc" / "dpkg" / "dpkg.cfg.d" / "99mmdebstrap"
    if settings.exists():  # the excluded paths stay excluded, for what is installed later
        kept = [line for line in settings.read_text().splitlines() if "unsafe-io" not in line]
        settings.write_text("\n".join(kept) + "\n")


def _clean(rootfs: Path) -> None:
    """Remove what was needed for building only, and what must be every machine's own."""
    for pattern in (
        "dev/*",  # every container has a /dev of its own
        "etc/ssh/ssh_host_*",
        "root/.cache/pip",
        "tmp/*",
        "run/*",
        "var/cache/apt/*",
        "var/lib/apt/lists/*",
        "var/lib/dbus/machine-id",
        "var/log/**/*.log",
        "var/log/apt/*",
        "var/tmp/*",
    ):
        for path in rootfs.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    (rootfs / "etc" / "machine-id").write_text("")


def pip_settings() -> tuple[dict[str, str], str]:
    """How this host reaches a package index, for pip inside: variables, and a CA bundle's path.

    Directories and files of the host's own (``find-links``, ``file:`` indexes) are left out: they
    are not there inside.
    """
    settings = {
        name: os.environ[name]
        for name in os.environ
        if name.lower() in ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
    }
    configured = _pip_configuration()
    for key in ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries"):
        words = [
            word
            for word in configured.get(key, "").split()
            if not word.startswith(("file:", "/", "~", "."))
        ]
        if words:
            settings[f"PIP_{key.upper().replace('-', '_')}"] = " ".join(words)
    settings["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    settings["PIP_ROOT_USER_ACTION"] = "ignore"
    settings["PIP_NO_CACHE_DIR"] = "1"
    settings["PIP_PROGRESS_BAR"] = "off"
    bundles = (
        configured.get("cert", ""),
        os.environ.get("SSL_CERT_FILE", ""),
        os.environ.get("REQUESTS_CA_BUNDLE", ""),
        _SYSTEM_CA,
    )
    return settings, next((path for path in bundles if path and os.path.isfile(path)), "")


def _pip_configuration() -> dict[str, str]:
    """The host's pip settings, files and variables together, the more specific ones winning."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    found: dict[str, str] = {}
    for line in done.stdout.splitlines():
        key, separator, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if not separator or section not in ("global", "install", ":env:"):
            continue
        try:
            found["timeout" if name == "default-timeout" else name] = str(ast.literal_eval(value))
        except (SyntaxError, ValueError):
            continue
    return found


def require_root() -> None:
    """Raise :class:`HostNotReady` unless this process is root."""
    if os.geteuid() != 0:
        raise HostNotReady(
            "Images can only be made by root",
            reason="they hold files of several owners, and the programs inside are run by chroot",
            hint="Use `sudo`, or ask the agent: `jupyter checkpoints image build`.",
        )
