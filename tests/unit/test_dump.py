"""What CRIU is asked for at a dump; that it does it is tested with real kernels."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_checkpoints.agent.criu import wire
from jupyter_checkpoints.agent.dump import Request

EXTERNAL_MOUNT, EXTERNAL, FREEZER = 23, 37, 44


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A container's files, with links that lead out of it, and to each other."""
    root = tmp_path / "rootfs"
    (root / "run/secrets").mkdir(parents=True)
    (root / "var").mkdir()
    (root / "var/run").symlink_to("/run")
    (root / "up").symlink_to("../../../run/./secrets")
    (root / "round").symlink_to("round")
    return root


def asked(tmp_path: Path, root: Path, **state: Any) -> list[tuple[int, Any]]:
    """The options in a request for a dump of a container with this ``state.json``."""
    config = {"rootfs": str(root), "mounts": [], "namespaces": [], **state.pop("config", {})}
    found = {"init_process_pid": os.getpid(), "config": config, "cgroup_paths": {}, **state}
    file = tmp_path / "state.json"
    file.write_text(json.dumps(found))
    request = Request(
        *(file, tmp_path, tmp_path / "criu.conf"),
        empty_network=False,
        lazy=True,
        in_detail=False,
    )
    try:
        program, fd = request.arguments
        given = request.give()
        assert (program, int(fd)) == ("swrk", given)
        with socket.socket(fileno=given) as criu:
            message = dict(wire(criu.recv(1 << 20)))
    finally:
        request.close()
    assert message[1] == 1  # DUMP
    options = message[2]
    assert isinstance(options, bytes)
    return list(wire(options))


def mounts(options: list[tuple[int, Any]]) -> Iterator[tuple[str, str]]:
    for number, value in options:
        if number == EXTERNAL_MOUNT:
            fields = dict(wire(value))
            key, name = fields[1], fields[2]
            assert isinstance(key, bytes)
            assert isinstance(name, bytes)
            yield key.decode(), name.decode()


def test_what_every_dump_is_asked(tmp_path: Path, root: Path) -> None:
    options = dict(asked(tmp_path, root, external_descriptors=["/dev/null", "pipe:[7]"]))
    assert options[2] == os.getpid()
    assert options[1] == 2**64 - 1
    assert options[68] == os.fsencode(tmp_path)
    assert options[51] == os.fsencode(tmp_path / "criu.conf")
    assert options[13] == os.fsencode(root)
    assert [options[n] for n in (3, 5, 8, 48, 50)] == [1] * 5
    assert options[9] == 2
    assert FREEZER not in options
    assert json.loads((tmp_path / "descriptors.json").read_text()) == ["/dev/null", "pipe:[7]"]


def test_mounts_are_named_by_where_they_are(tmp_path: Path, root: Path) -> None:
    config = {
        "mounts": [
            {"destination": "/var/run/x", "device": "bind"},
            {"destination": "/up/y", "device": "bind"},
            {"destination": "/proc", "device": "proc"},
        ],
        "devices": [{"path": "/dev/null"}],
        # A file, a directory, and nothing.
        "mask_paths": [str(tmp_path / "state.json"), str(tmp_path), str(tmp_path / "none")],
    }
    assert list(mounts(asked(tmp_path, root, config=config))) == [
        ("/run/x", "/run/x"),
        ("/run/secrets/y", "/run/secrets/y"),
        (str(tmp_path / "state.json"), "/dev/null"),
        ("/dev/null", "/dev/null"),
    ]


def test_links_that_lead_nowhere(tmp_path: Path, root: Path) -> None:
    config = {"mounts": [{"destination": "/round/x", "device": "bind"}]}
    with pytest.raises(ValueError, match="too many symbolic links"):
        asked(tmp_path, root, config=config)


def test_namespaces_that_stay(tmp_path: Path, root: Path) -> None:
    path = "/proc/self/ns/net"
    config = {"namespaces": [{"type": "NEWNET", "path": path}, {"type": "NEWPID", "path": ""}]}
    options = asked(tmp_path, root, config=config)
    inode = os.stat(path).st_ino
    assert [v for n, v in options if n == EXTERNAL] == [b"net[%d]:extRootNetNS" % inode]


@pytest.mark.parametrize(
    ("groups", "freezer"),
    [
        ({"freezer": "/f", "": "/u", "memory": "/m"}, b"/f"),
        ({"": "/u"}, b"/u"),
        ({"": "/u", "memory": "/m"}, None),
    ],
)
def test_what_freezes(
    tmp_path: Path, root: Path, groups: dict[str, str], freezer: bytes | None
) -> None:
    assert dict(asked(tmp_path, root, cgroup_paths=groups)).get(FREEZER) == freezer


def test_a_state_that_cannot_be_understood(tmp_path: Path, root: Path) -> None:
    with pytest.raises(ValueError, match="init_process_pid"):
        asked(tmp_path, root, init_process_pid="1")
