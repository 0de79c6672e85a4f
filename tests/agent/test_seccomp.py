"""What a kernel may ask of the host's kernel: tried in a real one."""

from __future__ import annotations

import json
import platform
from uuid import uuid4

import pytest

from jupyter_checkpoints.agent.seccomp import DEFAULT_CAPABILITIES
from jupyter_checkpoints.client import AgentClient

from .cells import run
from .kernels import connected, python_kernel

pytestmark = pytest.mark.anyio

NUMBERS = {
    "x86_64": {
        "add_key": 248,
        "bpf": 321,
        "clone3": 435,
        "io_uring_setup": 425,
        "keyctl": 250,
        "mount": 165,
        "perf_event_open": 298,
        "setns": 308,
        "unshare": 272,
        "userfaultfd": 323,
    },
    "aarch64": {
        "add_key": 217,
        "bpf": 280,
        "clone3": 435,
        "io_uring_setup": 425,
        "keyctl": 219,
        "mount": 40,
        "perf_event_open": 241,
        "setns": 268,
        "unshare": 97,
        "userfaultfd": 282,
    },
}[platform.machine()]

PROBE = f"""
import ctypes, errno, json, subprocess, threading
libc = ctypes.CDLL(None, use_errno=True)
def answer(number, first=0):
    ctypes.set_errno(0)
    libc.syscall(number, first, 0, 0, 0, 0)
    return errno.errorcode.get(ctypes.get_errno(), "")
answers = {{name: answer(number) for name, number in {NUMBERS!r}.items()}}
answers["new user namespace"] = answer({NUMBERS["unshare"]}, 0x10000000)
thread = threading.Thread(target=lambda: answers.update(thread="runs"))
thread.start(); thread.join()
answers["child"] = subprocess.run(["id", "-u"], capture_output=True, text=True).stdout.strip()
answers |= dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines()
                if line.startswith(("CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp:")))
print(json.dumps(answers))
"""


async def test_what_is_refused_and_what_is_not(client: AgentClient) -> None:
    kernel = await client.start_kernel(python_kernel(str(uuid4()), detached=True))
    async with connected(kernel) as cells:
        answers = json.loads(await run(cells, PROBE))
    await client.delete_kernel(kernel.id)
    # glibc takes ENOSYS for "use clone instead"
    assert answers.pop("clone3") == "ENOSYS"
    assert answers.pop("thread") == "runs"
    assert answers.pop("child") == "0"
    assert answers.pop("NoNewPrivs") == "1"
    assert answers.pop("Seccomp") == "2"
    assert int(answers.pop("CapAmb"), 16) == 0
    effective, bounding = (int(answers.pop(name), 16) for name in ("CapEff", "CapBnd"))
    assert effective == bounding
    assert effective.bit_count() == len(DEFAULT_CAPABILITIES)
    assert {name for name, said in answers.items() if said != "EPERM"} == set()
