"""``jupyter checkpoints``: the list of commands, and where every error ends."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from ..errors import CheckpointsError, InvalidRequest
from .base import Command, report, wants_json

_HERE = "jupyter_checkpoints.cli"


class CheckpointsApp(Command):
    """The command without a subcommand: it only helps."""

    name = "jupyter-checkpoints"
    synopsis = "COMMAND"
    arguments = (0, None)
    description = "Save running Jupyter kernels, whole, and continue from them later."
    examples = """\
jupyter checkpoints doctor
jupyter checkpoints ps
jupyter checkpoints save 3f0c --name "before the long fit"
jupyter checkpoints resume 8a1e
"""
    # Modules are named, not imported: each command pays for its own imports only.
    subcommands: dict[str, Any] = {
        "doctor": (f"{_HERE}.doctor.DoctorApp", "Save and resume a kernel for real; tell the rest"),
        "ps": (f"{_HERE}.kernels.PsApp", "List kernels"),
        "save": (f"{_HERE}.checkpoints.SaveApp", "Save a kernel"),
        "list": (f"{_HERE}.checkpoints.ListApp", "List runtime checkpoints"),
        "show": (f"{_HERE}.checkpoints.ShowApp", "Show all that is known of one checkpoint"),
        "resume": (f"{_HERE}.checkpoints.ResumeApp", "Continue from a checkpoint"),
        "verify": (f"{_HERE}.checkpoints.VerifyApp", "Read checkpoints again and compare"),
        "repair": (f"{_HERE}.checkpoints.RepairApp", "Repair the store (root)"),
        "delete": (f"{_HERE}.checkpoints.DeleteApp", "Delete checkpoints"),
        "share": (f"{_HERE}.sharing.ShareApp", "Let other users go on from a checkpoint"),
        "enable": (f"{_HERE}.notebooks.EnableApp", "Switch it on for notebooks"),
        "disable": (f"{_HERE}.notebooks.DisableApp", "Switch it off for notebooks"),
        "remix": (f"{_HERE}.notebooks.RemixApp", "Copy a notebook together with its state"),
        "run": (f"{_HERE}.run.RunApp", "Run a notebook, and go on where a run was broken off"),
        "export": (f"{_HERE}.archives.ExportApp", "Write a checkpoint to a file"),
        "import": (f"{_HERE}.archives.ImportApp", "Make a checkpoint of a file"),
        "prune": (f"{_HERE}.prune.PruneApp", "Delete what need not be kept"),
        "kill": (f"{_HERE}.kernels.KillApp", "End kernels and remove their containers"),
        "logs": (f"{_HERE}.kernels.LogsApp", "Show what a kernel wrote outside of its cells"),
        "kernelspec": (f"{_HERE}.kernelspec.KernelSpecApp", "Add, list, remove kernelspecs"),
        "image": (f"{_HERE}.image.ImageApp", "Build, import, list, remove images"),
        "setup": (f"{_HERE}.setup.SetupApp", "Prepare this host (root)"),
        "agent": (f"{_HERE}.agent.AgentForward", "Run the agent in the foreground (root)"),
    }

    def run(self) -> None:
        if not self.extra_args:
            self.print_help()
            return
        raise InvalidRequest(
            f"There is no command {self.extra_args[0]!r}.",
            hint="jupyter checkpoints --help lists the commands.",
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit. Console script ``jupyter-checkpoints``."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        CheckpointsApp.launch_instance(args)
    except CheckpointsError as error:
        sys.exit(report(error, as_json=wants_json(args)))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # `jupyter checkpoints list | head`: the reader has enough.
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    main()
