"""What cannot be saved is seen in what processes have open."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from jupyter_checkpoints.agent import presave


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/dev/nvidia0", "gpu"),
        ("/dev/nvidiactl", "gpu"),
        ("/dev/dri/renderD128", "gpu"),
        ("/dev/kfd", "gpu"),
        ("/dev/fuse", "device"),
        ("/dev/kvm", "device"),
        ("anon_inode:[io_uring]", "io-uring"),
        ("anon_inode:[userfaultfd]", "userfaultfd"),
        ("anon_inode:bpf-map", "bpf"),
        ("anon_inode:[perf_event]", "perf-event"),
        ("/secretmem (deleted)", "secretmem"),
    ],
)
def test_files_that_cannot_be_saved(path: str, code: str) -> None:
    [finding] = presave.of_file(path, "process 7 (python)")
    assert (finding.code, finding.severity) == (code, "block")
    assert "process 7 (python)" in finding.message and finding.hint


@pytest.mark.parametrize(
    "path",
    [
        "/dev/null",
        "/dev/pts/0",
        "/dev/shm/sem.x",
        "/dev/urandom",
        "anon_inode:[eventpoll]",
        "anon_inode:[eventfd]",
        "anon_inode:inotify",
        "/home/dev/nvidia0",
        "socket:[1]",
    ],
)
def test_files_that_can(path: str) -> None:
    assert list(presave.of_file(path, "process 7 (python)")) == []


CHILD = """
import mmap
devices = open("/dev/kmsg"), open("/dev/zero", "r+b")
mapped = mmap.mmap(devices[1].fileno(), mmap.PAGESIZE)
print(flush=True)
input()
"""


@pytest.mark.skipif(not os.path.exists("/dev/kmsg"), reason="this host has no /dev/kmsg")
def test_a_device_that_a_process_has_open() -> None:
    """Of a real process: every host has this device, and no container may keep it."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    try:
        [finding] = presave.findings([child.pid])
    finally:
        child.communicate(b"\n")
    assert finding.code == "device" and "/dev/kmsg" in finding.message


def test_a_process_that_has_ended_is_left_out() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert presave.findings([child.pid]) == []
