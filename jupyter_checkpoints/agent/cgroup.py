"""The control group of one container, on cgroup v1, v2 and hybrid hosts alike.

runc makes and removes it; what is here is for the moments when runc is not there to ask: after a
crash, and for numbers.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_REAPED_SECONDS = 5.0
_LOOK_SECONDS = 0.0005


def _hierarchies() -> list[Path]:
    if (ROOT / "cgroup.controllers").exists():
        return [ROOT]
    return [p for p in ROOT.iterdir() if p.is_dir() and not p.is_symlink()]


def link_hierarchies(directory: Path) -> bool:
    """Make a directory with a link to each hierarchy, as CRIU names them; whether all were found.

    Raises ``OSError`` if it cannot be made.
    """
    mounts: dict[str, str] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, filesystem = line.partition(" - ")
        kind, _, options = filesystem.split(maxsplit=2)
        root, target = fields.split()[3:5]
        if root == "/" and kind == "cgroup2":
            mounts.setdefault("", target)
        elif root == "/" and kind == "cgroup":
            for option in options.split(","):
                mounts.setdefault(option, target)
    directory.mkdir(mode=0o700, exist_ok=True)
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, _ = line.split(":", 2)
        place = mounts.get(controllers.split(",")[0])
        if place is None:
            return False
        link = directory / (controllers.removeprefix("name=") or "unified")
        link.unlink(missing_ok=True)
        link.symlink_to(place)
    return True


class Cgroup:
    """``path`` is the group's path below each hierarchy's root, as OCI's ``cgroupsPath``."""

    def __init__(self, path: str) -> None:
        self.path = path

    @classmethod
    def of(cls, pid: int) -> Cgroup:
        """That of a process: its freezer's where there is one (v1), else that of v2.

        Raises ``OSError`` if the process is gone.
        """
        found = {}
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            found[controllers] = path
        return cls(found.get("freezer", found.get("", "/")))

    @classmethod
    def of_configuration(cls, path: str) -> Cgroup:
        """That of OCI's ``cgroupsPath``; systemd's are written ``SLICE:PREFIX:NAME``."""
        if ":" not in path:
            return cls(path)
        inside, prefix, name = path.split(":", 2)
        parts = inside.removesuffix(".slice").split("-")
        slices = ["-".join(parts[: n + 1]) + ".slice" for n in range(len(parts))]
        return cls("/" + "/".join([*slices, f"{prefix}-{name}.scope"]))

    def directories(self) -> list[Path]:
        """Where the group exists now."""
        return [d for h in _hierarchies() if (d := h / self.path.lstrip("/")).is_dir()]

    def processes(self) -> list[int]:
        found: set[int] = set()
        for directory in self.directories():
            try:
                found.update(int(p) for p in (directory / "cgroup.procs").read_text().split())
            except OSError:
                continue
        return sorted(found)

    def freeze(self) -> None:
        """Have the processes stand still, soon; nothing happens if they do, or are gone."""
        with contextlib.suppress(OSError):
            state, freezer = self._freezer()
            freezer.write_text(state)

    def thaw(self) -> None:
        """Let the processes run; nothing happens if they do."""
        for directory in self.directories():
            for name, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
                try:
                    if (directory / name).exists():
                        (directory / name).write_text(value)
                except OSError:
                    continue

    def thaw_again(self, too_late: Callable[[], bool]) -> bool:
        """Wait until the processes are being frozen and let them run; whether that came. Blocking.

        CRIU puts the group back to what it was before it, which is frozen, when it has done with
        the processes; to hear of that from its end takes several milliseconds longer.
        """
        try:
            state, freezer = self._freezer()
            running = "THAWED" if state == "FROZEN" else "0"
            while not too_late():
                if freezer.read_text().strip() != running:
                    freezer.write_text(running)
                    return True
                time.sleep(_LOOK_SECONDS)
        except OSError:
            pass  # they have ended
        return False

    def freeze_script(self) -> str:
        """A shell script that freezes the processes, and waits a while until all stand still.

        CRIU freezes them as well, but looks again only after a tenth of a second.
        """
        state, freezer = self._freezer()
        stop_again = ""
        if state == "FROZEN":
            wait = f'read state < {freezer} && [ "$state" = FROZEN ]'
            # To seize a process that was stopped (SIGSTOP) before it was frozen CRIU would wait
            # for ever. One that is about to be stopped it can save, and so it stays.
            if stopped := " ".join(str(pid) for pid in self.processes() if _is_stopped(pid)):
                stop_again = f"\nkill -s CONT {stopped}\nkill -s STOP {stopped}\n:"
        else:
            wait = f"grep -q 'frozen 1' {freezer.with_name('cgroup.events')}"
        return f"""echo {state} > {freezer}
tries=0
until {wait} || [ $tries -ge 1000 ]; do
    tries=$((tries + 1))
    [ $tries -lt 200 ] || sleep 0.01
done{stop_again}"""

    def thaw_script(self) -> str:
        """A shell script that does what :meth:`thaw` does."""
        state, freezer = self._freezer()
        return f"echo {'THAWED' if state == 'FROZEN' else 0} > {freezer}"

    def _freezer(self) -> tuple[str, Path]:
        """What freezes the group when it is written, and to where: as runc has it."""
        for state, name in (("FROZEN", "freezer.state"), ("1", "cgroup.freeze")):
            for directory in self.directories():
                if (directory / name).exists():
                    return state, directory / name
        raise FileNotFoundError(f"{self.path}: it cannot be frozen")

    def frozen(self) -> bool:
        for directory in self.directories():
            for name, running in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
                try:
                    if (directory / name).read_text().strip() != running:
                        return True
                except OSError:
                    continue
        return False

    def kill(self) -> None:
        """End every process in it, frozen ones too.

        Raises ``ValueError`` for the caller's own group: that is no container's.
        """
        deadline = time.monotonic() + _REAPED_SECONDS
        while pids := self.processes():
            if os.getpid() in pids:
                raise ValueError(f"{self.path} is this process's own control group")
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self.thaw()
            # A killed process leaves the group when it has been reaped: that is its parent's part.
            if all(_is_zombie(pid) for pid in self.processes()):
                break
            if time.monotonic() > deadline:
                break
            time.sleep(0.001)

    def memory(self) -> int:
        """Bytes of anonymous and shared memory: what a save has to write. 0 if not known."""
        wanted = {"anon", "shmem", "total_rss", "total_shmem"}
        for directory in self.directories():
            try:
                stat = dict(
                    line.split() for line in (directory / "memory.stat").read_text().splitlines()
                )
            except OSError:
                continue
            return sum(int(value) for name, value in stat.items() if name in wanted)
        return 0

    def cpu_file(self) -> Path | None:
        """The file that tells what processor time was used; see :func:`cpu_seconds`."""
        for directory in self.directories():
            for name in ("cpuacct.usage", "cpu.stat"):
                if (directory / name).exists() and (
                    name == "cpuacct.usage" or "usage_usec" in (directory / name).read_text()
                ):
                    return directory / name
        return None

    def remove(self) -> None:
        """Remove the group once its killed processes have been reaped, which takes a moment."""
        deadline = time.monotonic() + _REAPED_SECONDS
        while directories := self.directories():
            for directory in directories:
                with contextlib.suppress(OSError):
                    directory.rmdir()
            if time.monotonic() > deadline:
                return
            time.sleep(0.002)


def cpu_seconds(file: Path | None) -> float | None:
    """Processor time, from a file as :meth:`Cgroup.cpu_file` or a copy of it; None if unknown."""
    try:
        text = file.read_text() if file is not None else ""
        if text.startswith("usage_usec"):
            return int(text.split()[1]) / 1e6
        return int(text) / 1e9 if text else None
    except (OSError, ValueError):
        return None


def _is_zombie(pid: int) -> bool:
    return _state(pid) in "ZX"


def _is_stopped(pid: int) -> bool:
    if (state := _state(pid)) != "D":
        return state == "T"
    try:
        # Frozen, as well.
        return Path(f"/proc/{pid}/wchan").read_text() == "do_signal_stop"
    except OSError:
        return False


def _state(pid: int) -> str:
    """As ``ps`` has it; X if the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"
