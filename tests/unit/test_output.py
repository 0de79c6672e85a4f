"""How the command line shows things to people."""

from __future__ import annotations

import os
import pty
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from jupyter_checkpoints.cli import output
from jupyter_checkpoints.models import Event


@contextmanager
def terminal() -> Iterator[int]:
    """Standard output and error are a terminal; yields the descriptor of its other end.

    Not a fixture: pytest puts its own streams in place between set-up and test.
    """
    master, slave = pty.openpty()
    try:
        with (
            os.fdopen(slave, "w") as stream,
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(sys, "stdout", stream)
            patch.setattr(sys, "stderr", stream)
            patch.setenv("TERM", "xterm")
            yield master
    finally:
        os.close(master)


def everything(other_end: int) -> str:
    """What has been written to a terminal: it gives that in pieces."""
    pieces = []
    while select.select([other_end], [], [], 0)[0]:
        pieces.append(os.read(other_end, 65536))
    return b"".join(pieces).decode()


@pytest.mark.parametrize(
    ("duration", "text"), [(0.0851, "85 ms"), (0.9, "900 ms"), (1.234, "1.23 s")]
)
def test_durations(duration: float, text: str) -> None:
    assert output.seconds(duration) == text


def test_moments_that_cannot_be_read_are_shown_as_they_are() -> None:
    assert output.moment("soon") == "soon"


def test_programs_get_whole_ids(capsys: pytest.CaptureFixture[str]) -> None:
    assert output.short_ids(["0123456789"]) == {"0123456789": "0123456789"}


def test_people_get_as_much_of_an_id_as_tells_them_apart() -> None:
    alike = ["0123456789-a", "0123456789-b", "f", ""]
    with terminal():
        assert output.short_ids(alike) == {name: name for name in alike}
        assert output.short_ids(["0123456789", "9876543210"]) == {
            "0123456789": "01234567",
            "9876543210": "98765432",
        }


def test_a_table_for_programs_is_never_folded(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["A", "B"], [("x" * 200, "[bold]y")], empty="Nothing.")
    assert f"{'x' * 200}  [bold]y" in capsys.readouterr().out


def test_an_empty_table_says_so_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["A"], [], empty="Nothing.")
    assert capsys.readouterr() == ("", "Nothing.\n")


def test_facts_without_the_empty_ones(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_facts([("name", ""), ("kernel", "one")])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["kernel", "one"]]


def events(label: str, *, quiet: bool = False) -> None:
    with output.progress(label, quiet=quiet) as show:
        show(Event(event="progress", stage="dump"))
        show(Event(event="progress", stage="dump"))
        show(Event(event="progress", stage="pack", done=500_000, total=2_000_000))
        show(Event(event="progress", message="a line of a log"))


def test_progress_is_one_line_for_each_stage(capsys: pytest.CaptureFixture[str]) -> None:
    events("Saving")
    assert capsys.readouterr() == ("", "Saving: dump\nSaving: pack\nSaving: a line of a log\n")


def test_progress_for_programs_is_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    events("Saving", quiet=True)
    assert capsys.readouterr() == ("", "")


def test_progress_on_a_terminal_is_a_bar() -> None:
    with terminal() as other_end:
        events("Saving")
        shown = everything(other_end)
    assert "a line of a log" in shown
    assert "━" in shown
