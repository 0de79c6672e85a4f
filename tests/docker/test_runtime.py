"""The OCI runtime: runc for whoever asks, and nothing for requests that root may not have made."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from jupyter_checkpoints.agent.docker_runtime.create import Arguments, Refused, take_request
from jupyter_checkpoints.agent.docker_setup import install_runtime
from jupyter_checkpoints.agent.tools import find_tools

CONTAINER = "0123456789abcdef" * 4


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    directory = tmp_path / "requests"
    directory.mkdir(mode=0o700)
    return directory


def request(tmp_path: Path) -> dict[str, str]:
    for name in ("bundle", "layer", "images"):
        (tmp_path / name).mkdir(mode=0o700)
    paths = {name: str(tmp_path / name) for name in ("bundle", "layer", "images")}
    return {"instance": "/run/x", "operation": "abcd/kernel.0", **paths, "lazily": ""}


def place(requests: Path, content: object, mode: int = 0o600) -> Path:
    path = requests / CONTAINER
    path.write_text(json.dumps(content))
    path.chmod(mode)
    return path


def test_a_request_is_used_once(tmp_path: Path, requests: Path) -> None:
    wanted = request(tmp_path)
    path = place(requests, wanted)
    assert take_request(str(requests), CONTAINER) == wanted
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        take_request(str(requests), CONTAINER)


def test_a_fresh_container_needs_no_images(tmp_path: Path, requests: Path) -> None:
    place(requests, {**request(tmp_path), "images": ""})
    assert take_request(str(requests), CONTAINER)["images"] == ""


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda r: {**r, "more": "x"}, id="unknown field"),
        pytest.param(lambda r: {k: v for k, v in r.items() if k != "layer"}, id="missing field"),
        pytest.param(lambda r: {**r, "bundle": 7}, id="no string"),
        pytest.param(lambda r: {**r, "bundle": "bundle"}, id="relative"),
        pytest.param(lambda r: {**r, "bundle": f"{r['bundle']}/../bundle"}, id="dots"),
        pytest.param(lambda r: {**r, "images": "/no/such/place"}, id="not there"),
        pytest.param(lambda r: {**r, "layer": "/etc/passwd"}, id="no directory"),
        pytest.param(lambda r: {**r, "layer": "/tmp"}, id="everybody's"),
        pytest.param(lambda r: {**r, "layer": ""}, id="empty"),
        pytest.param(lambda r: {**r, "bundle": r["bundle"] + "\0"}, id="zero"),
        pytest.param(lambda r: [r], id="a list"),
        pytest.param(lambda r: {**r, "operation": "x" * 100_000}, id="too long"),
    ],
)
def test_what_is_refused(
    tmp_path: Path, requests: Path, spoil: Callable[[dict[str, str]], object]
) -> None:
    path = place(requests, spoil(request(tmp_path)))
    with pytest.raises(Refused):
        take_request(str(requests), CONTAINER)
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o640, 0o606, 0o666])
def test_others_might_have_written_it(tmp_path: Path, requests: Path, mode: int) -> None:
    place(requests, request(tmp_path), mode)
    with pytest.raises(Refused, match="root's alone"):
        take_request(str(requests), CONTAINER)


def test_others_own_it(tmp_path: Path, requests: Path) -> None:
    os.chown(place(requests, request(tmp_path)), 65534, 65534)
    with pytest.raises(Refused, match="root's alone"):
        take_request(str(requests), CONTAINER)


def test_a_link_is_not_followed(tmp_path: Path, requests: Path) -> None:
    elsewhere = place(tmp_path, request(tmp_path))
    (requests / CONTAINER).symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic links"):
        take_request(str(requests), CONTAINER)
    assert elsewhere.exists()


def test_a_directory_that_others_can_write_in(tmp_path: Path, requests: Path) -> None:
    place(requests, request(tmp_path))
    requests.chmod(0o777)
    with pytest.raises(Refused, match="root alone"):
        take_request(str(requests), CONTAINER)


def test_a_linked_layer(tmp_path: Path, requests: Path) -> None:
    wanted = request(tmp_path)
    (tmp_path / "link").symlink_to(wanted["layer"])
    place(requests, {**wanted, "layer": str(tmp_path / "link")})
    with pytest.raises(Refused, match="real name"):
        take_request(str(requests), CONTAINER)


def test_what_the_shim_says() -> None:
    words = ["--root", "/r", "--log", "/l", "--log-format", "json", "--systemd-cgroup", "create"]
    arguments = Arguments([*words, "--bundle", "/b", "--pid-file", "/b/pid", CONTAINER])
    assert (arguments.root, arguments.log, arguments.bundle) == ("/r", "/l", "/b")
    assert arguments.options == words[:-1]
    assert arguments.rest == ["--bundle", "/b", "--pid-file", "/b/pid"]
    with pytest.raises(Refused, match="verb"):
        Arguments([*words[:-1], "start", CONTAINER])
    with pytest.raises(Refused, match="id"):
        Arguments([*words, "--bundle", "/b", "../../etc"])
    with pytest.raises(Refused, match="terminal"):
        Arguments([*words, "--bundle", "/b", "--console-socket", "/s", CONTAINER])


def test_everything_else_is_runc(tmp_path: Path, requests: Path) -> None:
    """Also with a request at hand: its container is not the one that is asked for."""
    tools = find_tools()
    program, new = install_runtime(tools, tmp_path / "runtime", requests)
    assert new and not install_runtime(tools, tmp_path / "runtime", requests)[1]
    left = place(requests, request(tmp_path))
    root = ("--root", str(tmp_path / "runc"))
    for words in (("--version",), (*root, "list"), (*root, "state", "none"), ("--help",)):
        asked = [
            subprocess.run([one, *words], capture_output=True, text=True, env=tools.env)
            for one in (tools.runc, program)
        ]
        assert len({(a.returncode, a.stdout) for a in asked}) == 1, words
    # `state` of that very container is runc's as well.
    known = subprocess.run([program, *root, "state", CONTAINER], capture_output=True, text=True)
    assert "does not exist" in known.stderr
    assert left.exists()
    # A request that is no good ends the start, and says why where Docker looks.
    log = tmp_path / "log.json"
    place(requests, {})
    create = (*root, "--log", str(log), "create", "--bundle", str(tmp_path), CONTAINER)
    done = subprocess.run([program, *create], capture_output=True, text=True)
    assert done.returncode == 1
    assert "fields" in json.loads(log.read_text())["msg"]
    assert not left.exists()
