"""``docs/performance.md``, its picture, and README's numbers.

What stands between the marks of a page is written anew.
"""

from __future__ import annotations

from pathlib import Path

from . import picture, tables
from .results import Report

_ROOT = Path(__file__).parents[1]
PAGE = _ROOT / "docs" / "performance.md"
PICTURE = _ROOT / "docs" / "performance.svg"
README = _ROOT / "README.md"
_BEGIN = "<!-- measured: begin -->\n"
_END = "<!-- measured: end -->"


def write(report: Report) -> None:
    """Put a report into the documentation.

    Raises
    ------
    ValueError
        If a page has not both marks.
    """
    picture.draw(report, PICTURE)
    _fill(PAGE, tables.markdown(report))
    _fill(README, tables.headline(report))


def _fill(page: Path, text: str) -> None:
    before, begin, rest = page.read_text().partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{page} has no place for what was measured")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")
