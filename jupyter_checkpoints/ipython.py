"""An IPython extension for notebooks whose kernels are saved and resumed.

It is there in every kernel's container, whatever image that has::

    %load_ext jupyter_checkpoints.ipython

    %%on_resume
    connection = connect("database")

The cell is run now, and again after each resume, before anything else. Functions can be registered
as well::

    from jupyter_checkpoints.ipython import on_resume

    @on_resume
    def reconnect(): ...

This file is all that containers have of the package: it imports nothing but IPython, and runs on
any Python from 3.9 on.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from IPython.core.getipython import get_ipython

F = TypeVar("F", bound=Callable[[], Any])

#: What is run after a resume, in the order of its registration; part of the saved state.
_registered: dict[str, Callable[[], Any]] = {}


def on_resume(function: F) -> F:
    """Register a function without arguments; one of the same name takes the other's place."""
    _registered[f"{function.__module__}.{function.__qualname__}"] = function
    return function


def on_resume_magic(line: str, cell: str) -> None:
    """Run this cell now and after each resume.

    ``%%on_resume NAME`` takes the place of an earlier cell of that name. Without a name a cell
    takes its own place when it is run again.
    """
    shell: Any = get_ipython()
    name = line.strip() or _cell_id(shell) or cell
    _registered["cell " + name] = lambda: _run(cell)
    _run(cell)


def resumed() -> None:
    """Run what is registered. Called by Jupyter's side after a resume, before anybody's cell.

    Raises
    ------
    RuntimeError
        If something failed, which is named; all the rest was run.
    """
    failed = []
    for name, function in list(_registered.items()):
        try:
            function()
        except Exception as error:
            traceback.print_exc()
            failed.append(f"{name.splitlines()[0]}: {type(error).__name__}: {error}")
    if failed:
        raise RuntimeError("; ".join(failed))


def load_ipython_extension(shell: Any) -> None:
    """Called by ``%load_ext``."""
    shell.register_magic_function(on_resume_magic, magic_kind="cell", magic_name="on_resume")


def _run(cell: str) -> None:
    shell: Any = get_ipython()
    shell.run_cell(cell, store_history=False).raise_error()


def _cell_id(shell: Any) -> str:
    """What the page calls the cell that is run now; empty if it does not say."""
    parent = shell.get_parent() if hasattr(shell, "get_parent") else {}
    return str(parent.get("metadata", {}).get("cellId", ""))
