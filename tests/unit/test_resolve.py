"""What users write for a kernel, and which one they mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from jupyter_checkpoints.cli import resolve
from jupyter_checkpoints.errors import InvalidRequest, NotFound
from jupyter_checkpoints.models import ConnectionInfo, KernelModel


def kernel(identifier: str, ip: str) -> KernelModel:
    return KernelModel(
        id=identifier,
        state="running",
        image="python3",
        image_digest="00",
        argv=[],
        mode="process",
        created="",
        uid=0,
        connection=ConnectionInfo(
            ip=ip,
            shell_port=1,
            iopub_port=2,
            stdin_port=3,
            control_port=4,
            hb_port=5,
            key="k",
        ),
    )


KERNELS = [kernel("abc", "10.0.0.1"), kernel("abcd", "10.0.0.2"), kernel("b", "10.0.0.3")]


def find(text: str) -> str:
    return resolve.one(KERNELS, text, "kernel", "jupyter checkpoints ps").id


def test_a_whole_id_is_meant_even_if_others_begin_with_it() -> None:
    assert find("abc") == "abc"


def test_a_unique_beginning() -> None:
    assert find("abcd") == "abcd"
    assert find("b") == "b"


def test_a_beginning_of_several() -> None:
    with pytest.raises(InvalidRequest, match="beginning of 2 kernels"):
        find("ab")


@pytest.mark.parametrize("text", ["", "x", "bc"])
def test_nobody(text: str) -> None:
    with pytest.raises(NotFound, match="jupyter checkpoints ps"):
        find(text)


def test_a_connection_file_is_known_by_what_it_says(tmp_path: Path) -> None:
    file = tmp_path / "kernel-9999.json"
    file.write_text(json.dumps({"ip": "10.0.0.2", "shell_port": 1, "key": "k"}))
    assert resolve.kernel_of_file(KERNELS, file).id == "abcd"
    without_address = [replace(KERNELS[1], connection=None)]
    with pytest.raises(NotFound, match="does not run in a container"):
        resolve.kernel_of_file(without_address, file)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        resolve.kernel_of_file(KERNELS, tmp_path / "nothing.json")
    for content in ("", "[]", "{}", "\0"):
        file = tmp_path / "kernel.json"
        file.write_text(content)
        with pytest.raises(InvalidRequest, match="no connection file"):
            resolve.kernel_of_file(KERNELS, file)
