"""The report for people, as tables in Markdown: on a terminal, and in the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from . import goals
from .results import ChangeResult, PrecopyResult, Report, RivalResult

_MIB = 2**20
_GIB = 2**30


def markdown(report: Report) -> str:
    """All tables of a report."""
    parts = [
        _host(report),
        _goals(report),
        _saving(report),
        _resuming(report),
        _many(report),
        _loops(report),
        _start(report),
        _rivals(report),
        _missing(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def headline(report: Report) -> str:
    """What a kernel with 1 GiB, or the largest that was measured below, is told of in README."""
    one = max((one for one in report.sizes if one.gib <= 1), key=lambda one: one.gib, default=None)
    if one is None:
        return ""
    lines = [
        f"On a machine with {report.host.processors} processors, a kernel with {_gib(one.gib)} of "
        "random numbers:\n",
        f"- stands still for {_seconds(one.pause_s)} when it is saved for the first time; the "
        f"checkpoint is on the disk after {_seconds(one.save_s)} (writing as many bytes takes "
        f"{_seconds(one.floor_write_s)})",
    ]
    lines += [
        f"- is saved again in {_seconds(again.save_s)} after 1 % has changed, and stands still "
        f"for {_seconds(again.pause_s)}"
        for again in report.changes
        if again.gib == one.gib and again.changed == 0.01
    ]
    lines.append(
        f"- answers its first cell {_seconds(one.lazy.first_cell_s)} after it was asked to resume; "
        f"a fresh kernel takes {_seconds(one.cold_start_s)}"
    )
    return "\n".join(lines) + "\n"


def _host(report: Report) -> str:
    host = report.host
    return (
        f"Version {host.version}, {host.engine} engine, {host.pool} pool, CRIU {host.criu}, "
        f"runc {host.runc}, Linux {host.kernel}, {host.processors} processors "
        f"({host.processor}), {host.memory / _GIB:.0f} GiB of memory. "
        + ("Resumed from the disk." if report.cold else "Resumed from the page cache.")
    )


def _goals(report: Report) -> str:
    rows = [
        [goal.text, goal.limit, goal.measured, "yes" if goal.met else "**no**"]
        for goal in goals.of(report)
    ]
    return _table("Goals", ["goal", "at most", "measured", "met"], rows, left=1)


def _saving(report: Report) -> str:
    rows = []
    for one in report.sizes:
        rows.append(
            [
                _gib(one.gib),
                "whole",
                _seconds(one.pause_s),
                _seconds(one.save_s),
                _seconds(one.floor_write_s),
                f"{one.save_over_floor:.2f}",
                _mib(one.bytes_held),
            ]
        )
        rows += [
            _later_save("after a pre-copy", ahead)
            for ahead in report.precopies
            if ahead.gib == one.gib
        ]
        rows += [
            _later_save(f"{again.changed * 100:g} % changed", again)
            for again in report.changes
            if again.gib == one.gib
        ]
    headings = ["memory", "save", "pause", "whole save", "write + fsync", "ratio", "bytes added"]
    return _table("Saving", headings, rows)


def _later_save(text: str, one: ChangeResult | PrecopyResult) -> list[str]:
    """A row for a save that had not to write everything."""
    floor = ratio = ""
    return [
        *(_gib(one.gib), text, _seconds(one.pause_s), _seconds(one.save_s)),
        *(floor, ratio, _mib(one.bytes_added)),
    ]


def _resuming(report: Report) -> str:
    by_rest = {one.gib: one.first_cell_s for one in report.servers}
    rows = [
        [
            _gib(one.gib),
            _seconds(one.cold_start_s),
            _seconds(one.lazy.engine_first_cell_s),
            _seconds(one.lazy.first_cell_s),
            _seconds(by_rest.get(one.gib)),
            _seconds(one.eager.first_cell_s),
            _seconds(one.lazy.all_touched_s),
            _seconds(one.eager.all_touched_s),
            f"{one.touched_over_eager:.2f}",
            _seconds(one.floor_read_s),
        ]
        for one in report.sizes
    ]
    headings = [
        "memory",
        "cold start",
        "first cell, from the engine's call",
        "from the client's",
        "from REST",
        "eager",
        "all touched, lazy",
        "eager",
        "ratio",
        "read",
    ]
    return _table("Resuming", headings, rows)


def _many(report: Report) -> str:
    rows = [
        [
            _gib(one.gib),
            "ten checkpoints, 1 % changed each",
            _mib(one.bytes_one),
            _mib(one.bytes_ten),
            f"{one.bytes_ten / one.bytes_one:.2f}",
        ]
        for one in report.tens
    ]
    rows += [
        [
            _gib(one.gib),
            "memory of ten remixes",
            _mib(one.bytes_one),
            _mib(one.bytes_ten),
            f"{one.bytes_ten / one.bytes_one:.2f}",
        ]
        for one in report.remixes
    ]
    return _table("Ten of one kernel", ["memory", "what", "one", "ten", "ratio"], rows)


def _loops(report: Report) -> str:
    rows = [
        [
            _gib(server.gib),
            f"{loop.loop}, {loop.during}",
            "" if loop.held_s is None else _milliseconds(loop.held_s),
            _milliseconds(loop.worst_s),
            _milliseconds(loop.p99_s),
            str(loop.requests),
        ]
        for server in report.servers
        for loop in server.loops
    ]
    headings = ["memory", "event loop", "held at most", "longest wait", "99 % below", "requests"]
    return _table("Event loops", headings, rows)


def _start(report: Report) -> str:
    if (start := report.start) is None:
        return ""
    return (
        f"Starting a kernel in a container takes {_milliseconds(start.container_s)}, a plain one "
        f"{_milliseconds(start.plain_s)} (medians of {start.repeats}, alternating)."
    )


def _rivals(report: Report) -> str:
    ours = [
        RivalResult(
            tool="this project",
            version=report.host.version,
            gib=one.gib,
            pause_s=one.pause_s,
            save_s=one.save_s,
            resume_s=one.lazy.first_cell_s,
            bytes_held=one.bytes_held,
        )
        for one in report.sizes
    ]
    measured = [one for one in report.rivals if one.gib is not None and not one.unavailable]
    if not measured:
        return ""
    rows = [
        [
            _gib(one.gib or 0),
            f"{one.tool} {one.version}".strip(),
            _seconds(one.pause_s),
            _seconds(one.save_s),
            _seconds(one.resume_s),
            _mib(one.bytes_held),
        ]
        for one in sorted([*ours, *measured], key=lambda one: one.gib or 0)
    ]
    headings = ["memory", "tool", "pause", "whole save", "resume", "bytes held"]
    return _table("Beside other tools", headings, rows)


def _missing(report: Report) -> str:
    lines = [f"- {one.what}: {one.why}" for one in report.missing]
    lines += [
        f"- {one.tool}{'' if one.gib is None else f', {_gib(one.gib)}'}: {one.unavailable}"
        for one in report.rivals
        if one.unavailable
    ]
    return "\n".join(["### Not measured\n", *lines]) if lines else ""


def _table(
    title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], left: int = 2
) -> str:
    """``left``: so many columns are words, and the others numbers."""
    lines = [" | ".join(row) for row in rows]
    if not lines:
        return ""
    rule = ["---"] * left + ["---:"] * (len(headings) - left)
    return "\n".join(
        [f"### {title}\n", *(f"| {line} |" for line in [" | ".join(headings), " | ".join(rule)])]
        + [f"| {line} |" for line in lines]
    )


def _gib(size: float) -> str:
    return f"{size:g} GiB"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def _milliseconds(value: float) -> str:
    return f"{value * 1000:.0f} ms"


def _mib(value: int | None) -> str:
    return "-" if value is None else f"{value / _MIB:,.1f} MiB"
