"""What this project wants to reach, and whether a report shows it."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from .results import Report

_MB = 1e6


class Goal(Struct, frozen=True):
    """One goal. ``limit`` and ``measured`` are for people."""

    text: str
    limit: str
    measured: str
    met: bool


def of(report: Report) -> list[Goal]:
    """The goals that were measured."""
    return [
        *_pauses(report),
        *_saves(report),
        *_resumes(report),
        *_again(report),
        *_ten(report),
        *_loops(report),
    ]


def _pauses(report: Report) -> Iterator[Goal]:
    for one in report.sizes:
        if one.gib == 0:
            yield _seconds("pause of a save, empty kernel", 0.10, one.pause_s)
    for again in report.changes:
        if again.changed == 0.01 and again.gib in (1, 4):
            yield _seconds(f"pause of a save, {again.gib:g} GiB, 1 % dirty", 0.15, again.pause_s)


def _saves(report: Report) -> Iterator[Goal]:
    for one in report.sizes:
        if one.gib == 1:
            yield _ratio("whole save of 1 GiB, by write + fsync", 1.5, one.save_over_floor)


def _resumes(report: Report) -> Iterator[Goal]:
    by_rest = {one.gib: one.first_cell_s for one in report.servers}
    for one in report.sizes:
        size = f"{one.gib:g} GiB"
        engine = one.lazy.engine_first_cell_s
        yield _seconds(f"first cell from the engine's call, {size}", 0.25, engine)
        if one.gib in by_rest:
            yield _seconds(f"first cell from the REST call, {size}", 0.40, by_rest[one.gib])
        slower = one.lazy.first_cell_s / one.cold_start_s
        yield _ratio(f"first cell by a cold start, {size}", 1.0, slower)
    for one in report.sizes:
        if one.gib == 1:
            yield _ratio("all of 1 GiB touched, lazy by eager", 1.3, one.touched_over_eager)


def _again(report: Report) -> Iterator[Goal]:
    for one in report.changes:
        if one.changed == 0 and one.gib == 0:
            yield _seconds("second save of an idle kernel", 0.3, one.save_s)
            size = one.bytes_added / _MB
            text = "bytes of a second save of an idle kernel"
            yield Goal(text, "1 MB", f"{size:.2f} MB", size < 1)


def _ten(report: Report) -> Iterator[Goal]:
    for one in report.tens:
        if one.gib:
            text = f"ten checkpoints of {one.gib:g} GiB, 1 % changed each, by one"
            yield _ratio(text, 1.2, one.bytes_ten / one.bytes_one)


def _loops(report: Report) -> Iterator[Goal]:
    for loop in ("agent", "server"):
        worst = [
            found.held_s
            for server in report.servers
            for found in server.loops
            if found.loop == loop and found.during != "idle" and found.held_s is not None
        ]
        if worst:
            longest = max(worst)
            text = f"longest time that something held the {loop}'s event loop"
            yield Goal(text, "50 ms", f"{longest * 1000:.0f} ms", longest <= 0.05)


def _seconds(text: str, limit: float, measured: float) -> Goal:
    return Goal(text, f"{limit:.2f} s", f"{measured:.2f} s", measured <= limit)


def _ratio(text: str, limit: float, measured: float) -> Goal:
    return Goal(text, f"{limit:.1f} times", f"{measured:.2f} times", measured <= limit)
