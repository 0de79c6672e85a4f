"""``run``: a notebook without a page."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from traitlets import Bool, Unicode

from ..errors import CheckpointsError
from .base import Command


class RunApp(Command):
    name = "jupyter-checkpoints run"
    synopsis = "NOTEBOOK"
    arguments = (1, 1)
    description = """Run a notebook from the first cell to the last; outputs go into the notebook.

    Its kernel is saved after the cells with the tag `checkpoint` and those that are named. If the
    run is broken off, or a cell raises, the same command goes on after the last cell that was
    saved, as long as the cells before it are the same.

    Exits with 1 if a cell raises.

    With --json: {"cells", "ran", "resumed_from", "checkpoints"}."""
    examples = """\
jupyter checkpoints run training.ipynb
jupyter checkpoints run training.ipynb --checkpoint-cells 3,7
jupyter checkpoints run training.ipynb --checkpoint-cells all --fresh"""

    checkpoint_cells = Unicode(
        "", help="Save after these code cells: numbers from 1 with commas, or `all`."
    ).tag(config=True)
    fresh = Bool(False, help="Begin with the first cell, whatever was saved.").tag(config=True)

    aliases = {**Command.aliases, "checkpoint-cells": "RunApp.checkpoint_cells"}
    flags = {
        **Command.flags,
        "fresh": ({"RunApp": {"fresh": True}}, "Begin with the first cell, whatever was saved."),
    }

    def run(self) -> None:
        from ..headless import Step, run_notebook

        def tell(step: Step) -> None:
            if self.json:
                return
            if step.resumed:
                text = f"Going on after cell {step.cell}, from {step.checkpoint}"
            else:
                text = f"Cell {step.cell} of {step.of}"
                text += f", saved: {step.checkpoint}" if step.checkpoint else ""
            print(text, file=sys.stderr, flush=True)

        try:
            outcome = asyncio.run(
                run_notebook(
                    Path(self.extra_args[0]),
                    wanted=self.checkpoint_cells,
                    fresh=self.fresh,
                    tell=tell,
                )
            )
        except Exception as error:
            if type(error).__name__ != "CellExecutionError":
                raise
            raise CheckpointsError(
                "A cell raised an error; the notebook has its output.",
                reason=str(error).strip().splitlines()[-1],
                hint="The same command goes on after the last cell that was saved.",
            ) from error
        self.print_result(outcome, lambda: print(self.extra_args[0]))
