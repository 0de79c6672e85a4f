"""``doctor``: is this host fit, shown by doing it; and for each problem, what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from traitlets import List, Unicode

from ..client import AgentClient
from ..models import Status
from .base import AgentCommand
from .proof import Proof, prove


class DoctorApp(AgentCommand):
    name = "jupyter-checkpoints doctor"
    description = """Save and resume a kernel for real, and say what works, how fast, and what to do
    about what does not.

    Exits with 0 if all is well, else 1. Nothing is left behind.

    With --json: {"ok": ..., "status": {...}, "proofs": [...]} (see docs/cli.md)."""
    examples = """\
jupyter checkpoints doctor
jupyter checkpoints doctor --kernel checkpoints-bash --kernel r"""

    kernels = List(
        Unicode(), ["checkpoints-python3"], help="The kernelspecs to try; may be repeated."
    ).tag(config=True)

    aliases = {**AgentCommand.aliases, "kernel": "DoctorApp.kernels"}

    async def work(self, agent: AgentClient) -> None:
        status = await agent.status()
        proofs = []
        for kernel in self.kernels:
            with self._steps(kernel) as on_step:
                proofs.append(await prove(agent, kernel, on_step))
        blocked = any(problem.severity == "block" for problem in status.problems)
        ok = not blocked and all(proof.ok for proof in proofs)
        self.print_result(
            {"ok": ok, "status": status, "proofs": proofs},
            lambda: _show(status, proofs, ok),
        )
        self.exit(0 if ok else 1)

    @contextmanager
    def _steps(self, kernel: str) -> Iterator[Callable[[str], None]]:
        """Tell each step: in one line that changes on a terminal, line by line otherwise."""
        if self.json:
            yield lambda _step: None
        elif sys.stderr.isatty():
            from rich.console import Console

            with Console(stderr=True).status(kernel) as shown:
                yield lambda step: shown.update(f"{kernel}: {step}")
        else:
            yield lambda step: print(f"{kernel}: {step}", file=sys.stderr, flush=True)


def _show(status: Status, proofs: list[Proof], ok: bool) -> None:
    from .output import print_facts, print_table, seconds, size

    print_facts(
        [
            ("agent", f"{status.version}, process {status.pid}"),
            ("engine", f"{status.engine} (runc {status.runc_version})"),
            ("CRIU", status.criu_version),
            ("files are kept by", status.pool),
            ("kernels", str(status.kernels)),
            ("checkpoints", str(status.checkpoints)),
        ]
    )
    for proof in proofs:
        print(f"\n{proof.kernel}")
        if proof.timings:
            print_table(
                ["STEP", "TIME"],
                [(timing.step, seconds(timing.seconds)) for timing in proof.timings],
                empty="",
            )
        if proof.memory_size:
            print(f"checkpoint: {size(proof.memory_size)} of memory")
        for check in proof.checks:
            print(f"{'ok  ' if check.ok else 'BAD '} {check.name}")
            if check.detail:
                print(f"     the kernel says: {check.detail}")
        if proof.error is not None:
            _problem(proof.error["message"], proof.error["reason"], proof.error["hint"])
            for finding in proof.error.get("findings", []):
                _problem(finding.get("message", ""), "", finding.get("hint", ""))
    for finding in status.problems:
        _problem(finding.message, "", finding.hint)
    print("\nKernels can be saved and resumed on this host." if ok else "\nNot ready.")


def _problem(message: str, reason: str, hint: str) -> None:
    print(f"BAD  {message}")
    for line in reason.splitlines():
        print(f"     {line}")
    if hint:
        print(f"     What to do: {hint}")
