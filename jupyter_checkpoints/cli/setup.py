"""``setup``: make this host ready, or see that it is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from traitlets import Bool, Enum

from ..agent.setup import Step, set_up, undo_docker
from ..errors import HostNotReady, InvalidRequest
from .base import Command


class SetupApp(Command):
    name = "jupyter-checkpoints setup"
    description = """Install what kernels in containers need, and build the default image. Run it
    as root; it may be run again at any time, and then takes a second.

    packages: runc and a few others, from the distribution. criu: 4.2 or newer, in a prefix of its
    own if the distribution's is older. kernel: what this kernel offers. image: Python 3 and Bash.
    kernelspecs: for this Python environment. docker: with --engine docker only; an OCI runtime for
    Docker Engine, which then holds kernels' containers. It is added to daemon.json (a copy of which
    is kept) and Docker is told to read that again; nothing is restarted. --undo takes it back.
    service: a systemd socket, where there is systemd.

    With --json: an array of {"step", "status": "ok"|"done"|"failed", "detail", "seconds"}. Exits
    with 6 if a step failed; its detail says what to do."""
    examples = """\
sudo jupyter checkpoints setup
sudo jupyter checkpoints setup --engine docker
sudo jupyter checkpoints setup --engine docker --undo"""

    engine = Enum(
        ["embedded", "docker"], "embedded", help="What is to hold kernels' containers."
    ).tag(config=True)
    undo = Bool(False, help="Take back what `--engine docker` has done to Docker.").tag(config=True)

    aliases = {**Command.aliases, "engine": "SetupApp.engine"}
    flags = {**Command.flags, "undo": ({"SetupApp": {"undo": True}}, undo.help)}

    def run(self) -> None:
        with self._told() as (on_step, tell):
            if self.undo:
                if self.engine != "docker":
                    raise InvalidRequest("Only `setup --engine docker` can be undone.")
                steps = undo_docker(on_step, tell)
            else:
                steps = set_up(on_step, tell, docker=self.engine == "docker")
        self.print_result(steps, lambda: None)
        if steps[-1].status == "failed":
            self.exit(HostNotReady.exit_code)

    @contextmanager
    def _told(self) -> Iterator[tuple[Callable[[Step], None], Callable[[str, str], None]]]:
        """Steps as they end; in between what goes on, in one changing line on a terminal."""
        if self.json:
            yield (lambda _step: None), (lambda _step, _line: None)
        elif sys.stderr.isatty():
            from rich.console import Console

            with Console(stderr=True).status("setup") as shown:
                yield _print, lambda step, line: shown.update(f"{step}: {line[:100]}")
        else:
            yield _print, lambda step, line: print(f"{step}: {line}", file=sys.stderr, flush=True)


def _print(step: Step) -> None:
    from .output import seconds

    mark = {"ok": "ok    ", "done": "done  ", "failed": "FAILED"}[step.status]
    first, *rest = step.detail.splitlines()
    print(f"{mark} {step.step}: {first} ({seconds(step.seconds)})", flush=True)
    for line in rest:
        print(f"       {line}", flush=True)
