"""The report for people: ratios first, because seconds say as much about the machine."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from .results import ChangeResult, Report, RivalResult, SizeResult


def show(report: Report, console: Console) -> None:
    """Print the whole report. Fits 80 columns."""
    host = report.host
    console.print(
        f"[bold]Runtime checkpoints {host.version}[/]: {host.engine} engine, {host.pool} pool, "
        f"CRIU {host.criu}, runc {host.runc}; Linux {host.kernel}, {host.processors} processors\n"
    )
    if report.results:
        console.print(_sizes(report.results))
        console.print(
            "Resume: to the reply to the first cell in a new kernel; all: to that of a cell that "
            "reads all of its memory. Floor: writing (with fsync) "
            "or reading as many bytes, and nothing else, at best; "
            + ("all is read from the disk.\n" if report.cold else "all is read from memory.\n")
        )
    if report.changes:
        console.print(_changes(report.changes))
    if (start := report.start) is not None:
        console.print(
            f"[bold]Starting a kernel[/] takes {start.container_s / start.plain_s:.2f} times as "
            f"long as a plain one: {start.container_s * 1000:.0f} ms against "
            f"{start.plain_s * 1000:.0f} ms, {start.extra_s * 1000:.0f} ms more "
            f"(medians of {start.repeats}, alternating).\n"
        )
    if report.rivals:
        console.print(_rivals(report.rivals, {result.gib: result for result in report.results}))
        for one in report.rivals:
            if one.unavailable:
                size = "" if one.gib is None else f", {one.gib:g} GiB"
                console.print(f"{one.tool}{size} is not available: {one.unavailable}")


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _sizes(results: list[SizeResult]) -> Table:
    table = _table(
        "Saving and resuming a kernel with random numbers",
        *("data\nGiB", "pause\n/floor", "save\n/floor", "resume\n/floor", "held\n/data"),
        *(" pause\ns", " save\ns", "resume\ns", " all\ns", "held\nMiB"),
        *("floor:\nwrite s", "\nread s"),
    )
    for one in results:
        table.add_row(
            f"{one.gib:g}",
            *map(_ratio, (one.pause_over_floor, one.save_over_floor, one.resume_over_floor)),
            _ratio(one.held_over_data),
            *map(_seconds, (one.pause_s, one.save_s, one.resume_first_cell_s)),
            _seconds(one.resume_all_touched_s),
            _mebibytes(one.bytes_held),
            *map(_seconds, (one.floor_write_s, one.floor_read_s)),
        )
    return table


def _changes(changes: list[ChangeResult]) -> Table:
    table = _table(
        "Saving it again after a share of its pages has changed",
        *("data\nGiB", "changed\n%", " pause\ns", " save\ns", "added\nMiB"),
    )
    for one in changes:
        table.add_row(
            f"{one.gib:g}",
            f"{one.changed * 100:g}",
            _seconds(one.pause_s),
            _seconds(one.save_s),
            f"{one.bytes_added / 2**20:.1f}",
        )
    return table


def _rivals(rivals: list[RivalResult], ours: dict[float, SizeResult]) -> Table:
    table = _table(
        "Other tools: how many times as long as here, and how long",
        *("\ntool", "data\nGiB", "pause\n/ours", "save\n/ours", "resume\n/ours", "held\n/ours"),
        *(" pause\ns", " save\ns", "resume\ns", "held\nMiB"),
    )
    for one in rivals:
        table.add_row(
            f"{one.tool} {one.version.partition('+')[0]}".strip(),
            "" if one.gib is None else f"{one.gib:g}",
            *map(_ratio, _times(one, None if one.gib is None else ours.get(one.gib))),
            *map(_seconds, (one.pause_s, one.save_s, one.resume_s)),
            _mebibytes(one.bytes_held),
        )
    return table


def _times(theirs: RivalResult, ours: SizeResult | None) -> list[float | None]:
    """Their pause, save, resume and bytes by ours."""
    if ours is None:
        return [None] * 4
    pairs = [
        (theirs.pause_s, ours.pause_s),
        (theirs.save_s, ours.save_s),
        (theirs.resume_s, ours.resume_first_cell_s),
        (theirs.bytes_held, ours.bytes_held),
    ]
    return [None if value is None else value / own for value, own in pairs]


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _mebibytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**20:.0f}"
