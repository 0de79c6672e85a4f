"""Specifications of images: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from jupyter_checkpoints.agent.image_spec import read_spec, shipped, shipped_spec
from jupyter_checkpoints.errors import InvalidRequest, NotFound


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "image.toml"
    path.write_text(text)
    return path


def test_a_whole_specification(tmp_path: Path) -> None:
    spec = read_spec(
        write(
            tmp_path,
            """
            suite = "trixie"
            packages = ["libstdc++6", "gcc:arm64", "r-base-core/trixie-backports"]
            python = ["ipykernel>=7", "jax[cpu]", "thing @ https://example.org/thing.whl"]
            mirrors = ["https://deb.example.org/debian"]
            run = ["true"]
            [env]
            OMP_NUM_THREADS = "2"
            [[kernels]]
            name = "mine"
            display_name = "Mine"
            language = "python"
            argv = ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            """,
        )
    )
    assert spec.env == {"OMP_NUM_THREADS": "2"}
    assert spec.kernels[0].mode == "process"


@pytest.mark.parametrize(
    "line",
    [
        "packages = ['--option']",
        "packages = ['a,b']",
        "python = ['--index-url=https://example.org']",
        'python = ["a\\nb"]',
        'packages = ["procps\\n"]',
        "suite = 'trixie --hook'",
        "mirrors = ['file:/etc']",
        "env = {'A=B' = 'x'}",
        "pakages = ['typing-error']",
        "suite = ",
    ],
)
def test_what_is_no_specification(tmp_path: Path, line: str) -> None:
    head = "" if line.startswith("suite") else "suite = 'trixie'\n"
    with pytest.raises(InvalidRequest) as caught:
        read_spec(write(tmp_path, f"{head}{line}\n"))
    assert caught.value.reason


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_spec(tmp_path / "absent.toml")


def test_those_that_come_along() -> None:
    assert shipped() == ["python3", "r"]
    for name in shipped():
        assert shipped_spec(name).suite
    with pytest.raises(NotFound):
        shipped_spec("../python3")
