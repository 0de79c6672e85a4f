"""``save``, ``list``, ``show``, ``resume``, ``verify`` and ``delete``: runtime checkpoints."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path
from typing import cast

import msgspec
from traitlets import Bool, Enum, Unicode

from ..client import AgentClient
from ..errors import CheckpointDamaged, InvalidRequest
from ..models import (
    CheckpointModel,
    KernelModel,
    Mode,
    PreflightReport,
    SaveRequest,
    StartRequest,
    renewals,
)
from . import connections, resolve
from .base import AgentCommand


class SaveApp(AgentCommand):
    name = "jupyter-checkpoints save"
    synopsis = "KERNEL|NOTEBOOK"
    arguments = (1, 1)
    description = """Save a kernel: its memory and its container's files. It goes on, unless --stop.

    KERNEL is an id, a unique beginning of one, or a connection file; NOTEBOOK means its kernel.

    With --json: the checkpoint (see docs/cli.md), of which "id" is what `resume` wants."""
    examples = 'jupyter checkpoints save 3f0c --name "before the long fit"'

    checkpoint_name = Unicode("", help="A name for people.").tag(config=True)
    stop = Bool(False, help="Stop the kernel at exactly the saved state.").tag(config=True)
    mode = Enum(
        ["process", "filesystem"],
        None,
        allow_none=True,
        help="Keep memory and files, or files only. Default: as the kernel was started.",
    ).tag(config=True)

    aliases = {
        **AgentCommand.aliases,
        "name": "SaveApp.checkpoint_name",
        "mode": "SaveApp.mode",
    }
    flags = {
        **AgentCommand.flags,
        "stop": ({"SaveApp": {"stop": True}}, "Stop the kernel at exactly the saved state."),
    }

    async def work(self, agent: AgentClient) -> None:
        kernel = await resolve.kernel(agent, self.extra_args[0])
        request = SaveRequest(
            name=self.checkpoint_name, stop=self.stop, mode=cast("Mode | None", self.mode)
        )
        with self.progress("Saving") as progress:
            saved = await agent.save(kernel.id, request, progress)

        def show() -> None:
            from .output import seconds, size

            print(saved.id)
            print(
                f"Saved {size(saved.memory_size)} of memory and {size(saved.files_size)} of files "
                f"in {seconds(saved.save_seconds)}; "
                f"the kernel stood still for {seconds(saved.pause_seconds)}"
                f"{' and is stopped now' if self.stop else ''}.",
                file=sys.stderr,
            )

        self.print_result(saved, show)


class ListApp(AgentCommand):
    name = "jupyter-checkpoints list"
    description = """List runtime checkpoints, newest first.

    With --json: an array of checkpoints (see docs/cli.md)."""
    examples = "jupyter checkpoints list --kernel 3f0c"

    kernel = Unicode("", help="Only those of this kernel (id or unique beginning).").tag(
        config=True
    )
    runtime = Unicode("", help="Only those of this runtime.").tag(config=True)
    shared = Bool(False, help="Those that other users share with you, not yours.").tag(config=True)

    aliases = {
        **AgentCommand.aliases,
        "kernel": "ListApp.kernel",
        "runtime": "ListApp.runtime",
    }
    flags = {
        **AgentCommand.flags,
        "shared": ({"ListApp": {"shared": True}}, "Those that other users share with you."),
    }

    async def work(self, agent: AgentClient) -> None:
        found = await agent.checkpoints(runtime=self.runtime, shared=self.shared)
        if self.kernel:  # by its beginning, and also where the kernel itself is no more
            found = [model for model in found if model.kernel_id.startswith(self.kernel)]

        def show() -> None:
            from .output import moment, print_table, short_ids, size

            ids = short_ids(model.id for model in found)
            kernel_ids = short_ids(model.kernel_id for model in found)
            print_table(
                ["CHECKPOINT", "NAME", "CREATED", "KERNEL", "KERNELSPEC", "MODE", "SIZE"],
                [
                    (
                        ids[model.id],
                        model.name,
                        moment(model.created),
                        kernel_ids[model.kernel_id],
                        model.kernel_name,
                        model.mode,
                        size(model.memory_size + model.files_size),
                    )
                    for model in found
                ],
                empty="No runtime checkpoints.",
            )

        self.print_result(found, show)


class ShowApp(AgentCommand):
    name = "jupyter-checkpoints show"
    synopsis = "CHECKPOINT"
    arguments = (1, 1)
    description = """Show all that is known of a checkpoint, and whether it can be resumed here.

    With --json: the checkpoint, with "preflight" in it (see docs/cli.md)."""

    async def work(self, agent: AgentClient) -> None:
        model = await resolve.checkpoint(agent, self.extra_args[0])
        report = await agent.preflight(model.id)
        data = {**msgspec.to_builtins(model), "preflight": msgspec.to_builtins(report)}
        self.print_result(data, lambda: _show(model, report))


class ResumeApp(AgentCommand):
    name = "jupyter-checkpoints resume"
    synopsis = "CHECKPOINT|NOTEBOOK"
    arguments = (1, 1)
    description = """Continue from a runtime checkpoint, in a new kernel or in place.

    A new kernel runs beside the original, which is untouched, and goes on until it is shut down
    or killed. In place, the kernel itself goes back to the saved state; programs that are
    connected to it stay connected.

    A notebook stands for its newest checkpoint, or the one that --checkpoint says; in place it is
    the kernel that runs for it now.

    With --json: {"kernel_id": ..., "connection_file": ...}."""
    examples = """\
jupyter checkpoints resume 8a1e
jupyter checkpoints resume analysis.ipynb --checkpoint 8a1e
jupyter console --existing "$(jupyter checkpoints resume 8a1e)"
jupyter checkpoints resume 8a1e --in-place"""

    in_place = Bool(False, help="Put the kernel that was saved back to this state.").tag(
        config=True
    )
    kernel = Unicode("", help="Put this kernel back to this state.").tag(config=True)
    checkpoint = Unicode("", help="Of the notebook's checkpoints, this one.").tag(config=True)

    aliases = {
        **AgentCommand.aliases,
        "kernel": "ResumeApp.kernel",
        "checkpoint": "ResumeApp.checkpoint",
    }
    flags = {
        **AgentCommand.flags,
        "in-place": (
            {"ResumeApp": {"in_place": True}},
            "Put the kernel that was saved back to this state.",
        ),
    }

    async def work(self, agent: AgentClient) -> None:
        named = self.extra_args[0]
        if self.checkpoint:
            model = await resolve.checkpoint_of(agent, named, self.checkpoint)
        else:
            model = await resolve.checkpoint(agent, named)
        if not self.json:
            for finding in (await agent.preflight(model.id)).findings:
                if finding.severity == "warn":  # what blocks is in the agent's answer
                    print(f"Note: {finding.message} {finding.hint}".strip(), file=sys.stderr)
        with self.progress("Resuming") as progress:
            if self.in_place or self.kernel:
                its_own = named if named.endswith(".ipynb") else model.kernel_id
                target = await resolve.kernel(agent, self.kernel or its_own)
                kernel = await agent.resume(target.id, model.id, progress)
            else:
                request = StartRequest(
                    kernel_id=str(uuid.uuid4()),
                    checkpoint=model.id,
                    # The user asks for what the kernel had: its open files are there.
                    mounts=model.mounts,
                    limits=model.limits,
                    mode=model.mode,
                    kernel_name=model.kernel_name,
                    runtime=model.runtime,
                    renew=renewals(model),
                    detached=True,
                )
                kernel = await agent.start_kernel(request, progress)
        file = connections.write(Path(self.runtime_dir), kernel)
        self.print_result(
            {"kernel_id": kernel.id, "connection_file": str(file)}, lambda: _resumed(kernel, file)
        )


class VerifyApp(AgentCommand):
    name = "jupyter-checkpoints verify"
    synopsis = "[CHECKPOINT...]"
    arguments = (0, None)
    description = """Read every byte of runtime checkpoints again and compare.

    Exits with 13 if any is damaged.

    With --json: an array of {"id", "ok", "problems", "bytes_read"}."""
    examples = "jupyter checkpoints verify --all"

    all = Bool(False, help="Verify all of them.").tag(config=True)
    quick = Bool(False, help="Only look whether all is there.").tag(config=True)

    flags = {
        **AgentCommand.flags,
        "all": ({"VerifyApp": {"all": True}}, "Verify all of them."),
        "quick": ({"VerifyApp": {"quick": True}}, "Read no memory, only look whether it is there."),
    }

    async def work(self, agent: AgentClient) -> None:
        if bool(self.extra_args) == self.all:
            raise InvalidRequest("Name the checkpoints to verify, or say --all.")
        models = (
            await agent.checkpoints()
            if self.all
            else [await resolve.checkpoint(agent, text) for text in self.extra_args]
        )
        reports = []
        for model in models:
            with self.progress(f"Verifying {model.id}") as progress:
                reports.append(await agent.verify(model.id, progress, quick=self.quick))

        def show() -> None:
            from .output import print_table, size

            print_table(
                ["CHECKPOINT", "RESULT", "READ", "PROBLEMS"],
                [
                    (r.id, "ok" if r.ok else "damaged", size(r.bytes_read), "\n".join(r.problems))
                    for r in reports
                ],
                empty="No runtime checkpoints.",
            )

        self.print_result(reports, show)
        if not all(report.ok for report in reports):
            self.exit(CheckpointDamaged.exit_code)


class RepairApp(AgentCommand):
    name = "jupyter-checkpoints repair"
    description = """Repair the store of runtime checkpoints (root).

    Makes indexes anew that are missing or damaged, and names the checkpoints of which something
    is lost. Reads no memory: `verify --all` does. Exits with 13 if anything is lost.

    With --json: {"repaired": [text], "lost": {id: [text]}}."""

    async def work(self, agent: AgentClient) -> None:
        report = await agent.repair()

        def show() -> None:
            from .output import print_table

            for line in report.repaired:
                print(line)
            print_table(
                ["CHECKPOINT", "LOST"],
                [(name, "\n".join(problems)) for name, problems in report.lost.items()],
                empty="Nothing is lost.",
            )

        self.print_result(report, show)
        if report.lost:
            self.exit(CheckpointDamaged.exit_code)


class DeleteApp(AgentCommand):
    name = "jupyter-checkpoints delete"
    synopsis = "CHECKPOINT..."
    arguments = (1, None)
    description = """Delete runtime checkpoints. On a terminal it asks first, unless -y.

    With --json: {"deleted": [id, ...]}."""
    examples = "jupyter checkpoints delete 8a1e -y"

    async def work(self, agent: AgentClient) -> None:
        models = [await resolve.checkpoint(agent, text) for text in self.extra_args]
        if not self._agreed(models):
            raise InvalidRequest("Nothing was deleted.")
        for model in models:
            await agent.delete_checkpoint(model.id)
        self.print_result(
            {"deleted": [model.id for model in models]},
            lambda: print("\n".join(model.id for model in models)),
        )

    def _agreed(self, models: list[CheckpointModel]) -> bool:
        if self.answer_yes or self.json or not sys.stdin.isatty():
            return True
        for model in models:
            print(f"{model.id}  {model.name}", file=sys.stderr)
        return input("Delete for ever? [y/N] ").strip().lower() in {"y", "yes"}


def _resumed(kernel: KernelModel, file: Path) -> None:
    print(file)
    how = (
        f"Kernel {kernel.id} runs. Use it, for instance, with\n  jupyter console --existing {file}"
    )
    if kernel.detached:
        how += f"\nand end it with\n  jupyter checkpoints kill {kernel.id}"
    print(how, file=sys.stderr)


def _show(model: CheckpointModel, report: PreflightReport) -> None:
    from .output import moment, print_facts, seconds, size

    print_facts(
        [
            ("checkpoint", model.id),
            ("name", model.name),
            ("created", moment(model.created)),
            ("kernel", f"{model.kernel_id} ({model.kernel_name})"),
            ("runtime", model.runtime),
            ("after", model.parent),
            ("trigger", model.trigger),
            ("mode", model.mode),
            ("image", f"{model.image} ({model.image_digest})"),
            ("command", " ".join(model.argv)),
            ("memory", size(model.memory_size)),
            ("files", size(model.files_size)),
            ("paused", seconds(model.pause_seconds)),
            ("saved in", seconds(model.save_seconds)),
            *(
                ("mount", f"{m.source} at {m.target}{' (read-only)' if m.read_only else ''}")
                for m in model.mounts
            ),
            (
                "saved on",
                f"{model.host.cpu_model}, kernel {model.host.kernel_release}, "
                f"CRIU {model.host.criu_version}, runc {model.host.runc_version}",
            ),
            ("resumable here", "yes" if report.ok else "no"),
            *((f.severity, f"{f.message} {f.hint}".strip()) for f in report.findings),
        ]
    )
