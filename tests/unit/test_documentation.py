"""What the documents say of settings is what is so, and what they refer to is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from jupyter_checkpoints.cli.base import EXIT_CODES
from jupyter_checkpoints.errors import CheckpointsError

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "jupyter_checkpoints"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

_CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FILE = re.compile(r"`([\w.-]+(?:/[\w.*-]+)+\.(?:md|py|sh|toml|yaml|json|ipynb))`")


def _anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", _CODE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path) -> None:
    dead = []
    for link in _LINK.findall(_CODE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            dead.append(link)
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_ours(page: Path) -> None:
    """Those that are named as they are seen from the top, or from the package."""
    named = _FILE.findall(page.read_text())
    ours = [n for n in named if any((p / n.split("/")[0]).is_dir() for p in (ROOT, PACKAGE))]
    assert [n for n in ours if not [*ROOT.glob(n), *PACKAGE.glob(n)]] == []


def test_exit_codes() -> None:
    errors = [CheckpointsError]
    errors += CheckpointsError.__subclasses__()
    known = {error.exit_code: error.__name__ for error in errors}
    page = (ROOT / "docs" / "cli.md").read_text()
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.MULTILINE)
    assert {int(code): name for code, name in rows} == known
    # Of these no class has the first, and none the last.
    assert {int(code) for code in re.findall(r"\b(\d+)  ", EXIT_CODES)} == {0, *known, 130}


def test_settings() -> None:
    """Names, defaults and meanings are those of the traits."""
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "configuration.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
