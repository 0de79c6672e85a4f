"""The report as a picture: seconds by size, of this project and of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, NullFormatter

from .results import ChangeResult, Report, RivalResult

#: By whom it is; the same in all panels.
_COLOURS = {
    "this project": "#1b6ca8",
    "1 % changed": "#5fa8d3",
    "nothing changed": "#a9d6e5",
    "eager": "#5fa8d3",
    "cold start": "#9a9a9a",
    "write + fsync": "#9a9a9a",
    "runc + CRIU": "#e0a458",
    "docker": "#c8553d",
    "podman": "#7d4f9e",
    "dill": "#4f8f5b",
}

#: Seconds by size in GiB, by what they are of.
_Series = Mapping[str, Mapping[float, float]]


def draw(report: Report, path: Path) -> None:
    """Write the picture of a report, as SVG. The same report gives the same file."""
    panels = {
        "Pause of a save": _pauses(report),
        "Whole save": _saves(report),
        "Resume, to the first cell": _resumes(report),
    }
    sizes = sorted({one.gib for one in report.sizes})
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "benchmark", "font.size": 9}):
        figure = Figure(figsize=(9, 10), layout="constrained")
        for axes, (title, series) in zip(
            figure.subplots(len(panels), 1), panels.items(), strict=True
        ):
            _panel(axes, title, series, sizes)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _pauses(report: Report) -> _Series:
    return {
        "this project": {one.gib: one.pause_s for one in report.sizes},
        "1 % changed": {one.gib: one.pause_s for one in report.changes if one.changed == 0.01},
        **_rivals(report, lambda rival: rival.pause_s),
    }


def _saves(report: Report) -> _Series:
    def again(share: float) -> dict[float, float]:
        chosen: list[ChangeResult] = [one for one in report.changes if one.changed == share]
        return {one.gib: one.save_s for one in chosen}

    return {
        "this project": {one.gib: one.save_s for one in report.sizes},
        "1 % changed": again(0.01),
        "nothing changed": again(0),
        "write + fsync": {one.gib: one.floor_write_s for one in report.sizes},
        **_rivals(report, lambda rival: rival.save_s),
    }


def _resumes(report: Report) -> _Series:
    return {
        "this project": {one.gib: one.lazy.first_cell_s for one in report.sizes},
        "eager": {one.gib: one.eager.first_cell_s for one in report.sizes},
        "cold start": {one.gib: one.cold_start_s for one in report.sizes},
        **_rivals(report, lambda rival: rival.resume_s),
    }


def _rivals(
    report: Report, seconds: Callable[[RivalResult], float | None]
) -> dict[str, dict[float, float]]:
    found: dict[str, dict[float, float]] = {}
    for one in report.rivals:
        value = seconds(one)
        if one.gib is not None and value is not None:
            found.setdefault(one.tool, {})[one.gib] = value
    return found


def _panel(axes: Axes, title: str, series: _Series, sizes: Sequence[float]) -> None:
    width = 0.85 / len(series)
    for number, (name, seconds) in enumerate(series.items()):
        shown = [(place, seconds[size]) for place, size in enumerate(sizes) if size in seconds]
        offset = (number - (len(series) - 1) / 2) * width
        bars = axes.bar(
            [place + offset for place, _ in shown],
            [value for _, value in shown],
            width,
            label=name,
            color=_COLOURS[name],
        )
        axes.bar_label(bars, fmt=_label, fontsize=6.5, padding=1)
    axes.set_title(f"{title}, in seconds", loc="left", fontweight="bold")
    axes.set_xticks(range(len(sizes)), [f"{size:g} GiB" for size in sizes])
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.02)
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        ncols=len(series),
        fontsize=8,
        frameon=False,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.1),
        columnspacing=1.2,
        handlelength=1.2,
    )


def _label(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"
