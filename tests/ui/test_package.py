"""The wheel brings the JupyterLab part along, and needs no Node where it is installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jupyter_checkpoints

ROOT = Path(__file__).parents[2]
LABEXTENSION = ROOT / "labextension"


def test_versions_agree() -> None:
    package = json.loads((LABEXTENSION / "package.json").read_text())
    page = re.search(r"VERSION = '(.*)'", (LABEXTENSION / "src" / "version.ts").read_text())
    assert page is not None
    assert package["version"] == page[1] == jupyter_checkpoints.__version__


@pytest.mark.timeout(600)
def test_wheel_is_complete(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", f"--wheel-dir={tmp_path}", ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    prefix = tmp_path / "prefix"
    subprocess.run(
        [*pip, "install", "--no-deps", f"--prefix={prefix}", "--ignore-installed", wheel],
        check=True,
    )

    (no_node := tmp_path / "bin").mkdir()
    environment = {
        **os.environ,
        "PATH": str(no_node),
        "PYTHONPATH": str(next(prefix.glob("lib/*/site-packages"))),
        "JUPYTER_PATH": str(prefix / "share" / "jupyter"),
        "JUPYTER_CONFIG_PATH": str(prefix / "etc" / "jupyter"),
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
    }

    def listed(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        )
        return re.sub(r"\x1b\[\d+m", "", done.stdout)

    extensions = listed("jupyterlab.labextensions", "list")
    assert str(prefix) in extensions
    assert re.search(r"jupyter-runtime-checkpoints v[\d.]+ enabled OK \(python", extensions)
    extensions = listed("jupyter_server.extension.serverextension", "list")
    assert re.search(r"jupyter_checkpoints [\d.]+ OK", extensions)
