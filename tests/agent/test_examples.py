"""The notebook that newcomers see does what it says."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from .agents import Agent
from .kernelspecs import jupyter_dirs as jupyter_dirs
from .kernelspecs import nothing_left as nothing_left

EXAMPLE = Path(__file__).parents[2] / "examples" / "runtime-checkpoints.ipynb"


def terminal(command: str) -> str:
    """What a reader who types ``command`` gets."""
    program, checkpoints, *arguments = shlex.split(command)
    assert (program, checkpoints) == ("jupyter", "checkpoints")
    return subprocess.run(
        [sys.executable, "-m", "jupyter_checkpoints.cli.app", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout.strip()


@pytest.mark.usefixtures("jupyter_dirs", "nothing_left")
def test_the_example_from_top_to_bottom(agent: Agent, tmp_path: Path) -> None:
    notebook = nbformat.read(EXAMPLE, as_version=4)  # type: ignore[no-untyped-call]
    cells = [(i, cell) for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    assert not any(cell.outputs for _, cell in cells), "the example is kept without outputs"
    runner = NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}})

    def run(number: int) -> str:
        index, cell = cells[number]
        runner.execute_cell(cell, index)
        return "".join(output.text for output in cell.outputs)

    with runner.setup_kernel():
        run(0)
        before = run(1)
        checkpoint = terminal(run(2))
        lost = run(3)
        terminal(f"jupyter checkpoints resume {checkpoint} --in-place")
        after = run(4)
    for shown in (before, after):
        assert "numbers: [1, 2, 3]" in shown
        assert "thread:  works" in shown
        assert "diary:   open" in shown
    assert "numbers: None" in lost
    assert "diary:   closed" in lost
    terminal(f"jupyter checkpoints delete {checkpoint}")
