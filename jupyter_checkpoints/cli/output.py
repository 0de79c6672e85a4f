"""How commands show things to people: tables, sizes, moments, progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from ..models import Event


def size(count: int) -> str:
    """Bytes as people read them: ``1.2 GB``."""
    return decimal(count)


def seconds(duration: float) -> str:
    """A duration with the digits that matter: ``85 ms``, ``1.23 s``."""
    return f"{duration * 1000:.0f} ms" if duration < 1 else f"{duration:.2f} s"


def moment(iso: str) -> str:
    """An ISO moment in the user's own time zone."""
    try:
        return datetime.fromisoformat(iso).astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return iso


def short_ids(ids: Iterable[str]) -> dict[str, str]:
    """What tables call each of these ids: whole for programs, a unique beginning on a terminal.

    Commands take such a beginning for the id.
    """
    known = set(ids)
    if not sys.stdout.isatty():
        return {identifier: identifier for identifier in known}
    length = 8
    while len({identifier[:length] for identifier in known}) < len(known):
        length += 1
    return {identifier: identifier[:length] for identifier in known}


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str) -> None:
    """A table on standard output; the sentence ``empty`` on standard error if it has no rows.

    Cells are printed whole where the output is not a terminal, so that it can be searched.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    count = 0
    for row in rows:
        table.add_row(*row)
        count += 1
    if not count:
        print(empty, file=sys.stderr)
        return
    width = None if sys.stdout.isatty() else 10_000
    Console(width=width, highlight=False, markup=False, soft_wrap=False).print(table)


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """``name: value`` lines, values aligned, without the empty ones."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        if value:
            table.add_row(name, value)
    width = None if sys.stdout.isatty() else 10_000
    Console(width=width, highlight=False, markup=False).print(table)


@contextmanager
def progress(label: str, *, quiet: bool = False) -> Iterator[Callable[[Event], None]]:
    """Show the progress of one operation on standard error while the context lasts."""
    if quiet:
        yield lambda _event: None
    elif sys.stderr.isatty():
        with _bar(label) as show:
            yield show
    else:
        yield _lines(label)


@contextmanager
def _bar(label: str) -> Iterator[Callable[[Event], None]]:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True, highlight=False),
        transient=True,
    )
    with bar:
        task = bar.add_task(label, total=None, amount="")

        def show(event: Event) -> None:
            if event.message:
                bar.console.print(event.message, markup=False)
            bar.update(
                task,
                description=f"{label}: {event.stage}" if event.stage else label,
                completed=event.done,
                total=event.total or None,
                amount=f"{size(event.done)} of {size(event.total)}" if event.total else "",
            )

        yield show


def _lines(label: str) -> Callable[[Event], None]:
    last = ""

    def show(event: Event) -> None:
        nonlocal last
        line = event.message or event.stage
        if line and line != last:
            print(f"{label}: {line}", file=sys.stderr, flush=True)
            last = line

    return show
