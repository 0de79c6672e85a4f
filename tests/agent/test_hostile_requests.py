"""Requests that are made to break the agent, from processes of an ordinary user."""

from __future__ import annotations

import subprocess
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from ..users import User, Users
from .agents import Agent, wait_until
from .attacks import ask, refusals
from .conftest import running_agent
from .kernels import KEY

#: Connections that one user may have in these tests.
MOST = 40


@pytest.fixture(scope="module")
def shared(default_image: None, users: Users) -> Iterator[Agent]:
    """An agent that serves both users."""
    options = [f"--AgentApp.allowed_groups={users.group}", f"--AgentApp.max_connections={MOST}"]
    with running_agent(*options) as agent:
        yield agent


def _start(**changes: Any) -> tuple[str, str, Any]:
    wanted = {"kernel_id": str(uuid.uuid4()), "argv": ["true"], "key": KEY, **changes}
    return "POST", "/v1/kernels", wanted


BAD_NAMES = {
    "dots": "..",
    "dot": ".",
    "slash": "a/b",
    "up": "../../etc/passwd",
    "nul": "a\0b",
    "newline": "a\nb",
    "newline at the end": "a\n",
    "long": "x" * 300,
    "very long": "x" * 100_000,
    "empty": "",
    "space": "a b",
    "option": "--root",
    "terminal": "\x1b[31mred",
    "letter": "é",
    "half a pair": "\ud800",
}


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
def test_bad_names_in_requests(shared: Agent, users: Users, name: str) -> None:
    """A clear 400 for each, whatever field it is in; and a line in the audit log."""
    before = len(refusals(shared, users.alice))
    wishes = [
        _start(kernel_id=name),
        _start(mounts=[{"source": name, "target": "/data"}]),
        _start(mounts=[{"source": "/tmp", "target": name}]),
        _start(mounts=[{"source": f"/tmp/{name}", "target": f"/data/{name}/"}]),
        _start(image=name or "../python3"),
        _start(env={name: "x"} if name in ("", "a\0b", "\ud800") else {"=" + name: "x"}),
        ("POST", "/v1/kernels/none/resume", {"checkpoint": name}),
        ("POST", "/v1/checkpoints/none/copy", {"runtime": name}),
    ]
    if name:
        wishes += [_start(runtime=name), _start(checkpoint=name)]
    answers = ask(users.alice, shared, *wishes)
    for wish, answer in zip(wishes, answers, strict=True):
        assert answer.status in (400, 404), (wish[2], answer)
        assert answer.code in ("InvalidRequest", "NotFound"), (wish[2], answer)
    assert len(refusals(shared, users.alice)) == before + len(wishes)


def test_lines_that_would_forge_output(shared: Agent, users: Users) -> None:
    """Names for people's eyes are one line; the audit log's lines are too."""
    for name in ("a\nb", "a\0b", "\x1b[2J", "x" * 201, "\x7f"):
        wishes = [
            _start(kernel_name=name),
            ("POST", "/v1/kernels/none/checkpoints", {"name": name}),
            ("PATCH", "/v1/checkpoints/none", {"name": name}),
        ]
        assert [a.code for a in ask(users.alice, shared, *wishes)] == ["InvalidRequest"] * 3


@pytest.mark.parametrize(
    "path",
    [
        "/v1/kernels/..%2f..%2fetc",
        "/v1/kernels/%2e%2e",
        "/v1/kernels/a%00b",
        "/v1/kernels/a%0ab",
        "/v1/kernels/%ff%fe",
        "/v1/kernels/" + "x" * 20_000,
        "/v1/checkpoints/..%2fx/archive",
        "/v1/checkpoints/%ff/preflight",
        "/v1/kernels/../../etc/passwd",
        "/v1/checkpoints/a/shares/%00",
        "/v1/kernels/x/logs?tail=-1",
    ],
)
def test_bad_names_in_paths(shared: Agent, users: Users, path: str) -> None:
    before = len(refusals(shared, users.alice))
    (answer,) = ask(users.alice, shared, ("GET", path, None))
    assert answer.status in (400, 404, 405), answer
    assert answer.status == 405 or answer.code in ("InvalidRequest", "NotFound"), answer
    assert answer.status == 405 or len(refusals(shared, users.alice)) == before + 1


def test_bytes_that_are_no_text(shared: Agent, users: Users) -> None:
    before = len(refusals(shared, users.alice))
    bodies = [
        '{"kernel_id": "\xff\xfe", "argv": ["true"], "key": "k"}',
        '{"kernel_id": "a", "argv": ["\xc3\x28"], "key": "k"}',
        '{"kernel_id": "a", "argv": ["true"], "key": "k", "cwd": "/\xff"}',
        "\xff" * 100,
        "[" * 100_000,
        '{"kernel_id": "a", "kernel_id": "b"',
        '{"kernel_id": "a", "argv": ["true"], "key": "k", "capabilities": ["CAP_SYS_ADMIN"]}',
        '{"kernel_id": "a", "argv": ["true"], "key": "k", "uid": 0}',
        '{"kernel_id": "a", "argv": ["true"], "key": "k", "limits": {"memory": 1e400}}',
        '{"kernel_id": "a", "argv": ["true"], "key": "k", "limits": {"pids": -1}}',
    ]
    answers = ask(users.alice, shared, *[("POST", "/v1/kernels", body) for body in bodies])
    assert [answer.code for answer in answers] == ["InvalidRequest"] * len(bodies), answers
    assert len(refusals(shared, users.alice)) == before + len(bodies)


def test_what_is_too_much(shared: Agent, users: Users) -> None:
    wishes = [
        _start(argv=["x" * 65_000] * 4),
        _start(argv=["x"] * 257),
        _start(argv=["a\0b"]),
        _start(env={f"v{n}": "x" * 60_000 for n in range(10)}),
        _start(env={"x": "y\0"}),
        _start(mounts=[{"source": "/tmp", "target": f"/t{n}"} for n in range(65)]),
        _start(mounts=[{"source": "/tmp", "target": "/t"}] * 2),
        _start(cwd="x"),
        _start(cwd="/a\nb"),
    ]
    answers = ask(users.alice, shared, *wishes)
    assert [answer.code for answer in answers] == ["InvalidRequest"] * len(wishes), answers


# -- keeping the agent busy --------------------------------------------------------------------


def _others_are_served(agent: Agent, users: Users) -> None:
    """Bob gets his answer, soon."""
    began = time.monotonic()
    (answer,) = ask(users.bob, agent, ("GET", "/v1/status", None))
    assert answer.status == 200, answer
    assert time.monotonic() - began < 10


_CONNECT = """
import socket, sys, time
path, count, sent = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode().decode("unicode_escape")
connections, refused = [], 0
for _ in range(count):
    one = socket.socket(socket.AF_UNIX)
    one.settimeout(30)
    one.connect(path)
    one.sendall(sent.encode("latin-1"))
    connections.append(one)
for one in connections:
    one.settimeout(0.01)
    try:
        refused += b"QuotaExceeded" in one.recv(4096)
    except TimeoutError:
        pass
print(refused, flush=True)
sys.stdin.read()
"""


def _hold(user: User, agent: Agent, count: int, sent: str) -> tuple[subprocess.Popen[bytes], int]:
    """Open connections, send the same on each, and keep them; how many were turned away."""
    process = user.popen(
        *(user.python, "-c", _CONNECT, str(agent.socket), str(count), sent),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "GET /v1/sta",
        "POST /v1/kernels HTTP/1.1\\r\\nHost: agent\\r\\nContent-Length: 1000\\r\\n\\r\\n{",
        "POST /v1/archives HTTP/1.1\\r\\nHost: agent\\r\\nContent-Length: 100000\\r\\n\\r\\nx",
    ],
    ids=["idle", "headers", "body", "archive"],
)
def test_a_thousand_connections(shared: Agent, users: Users, sent: str) -> None:
    """A user has as many as he may have; all others are served as before."""
    process, refused = _hold(users.alice, shared, 1000, sent)
    try:
        assert refused == 1000 - MOST
        _others_are_served(shared, users)
        assert any(line["action"] == "connect" for line in refusals(shared, users.alice))
    finally:
        process.communicate()

    def is_served() -> bool:
        (answer,) = ask(users.alice, shared, ("GET", "/v1/status", None))
        return answer.status == 200

    wait_until(is_served, what="connections are counted down")


def test_a_body_that_does_not_come(shared: Agent, users: Users) -> None:
    """The agent hangs up after some seconds, and notes it."""
    before = len(refusals(shared, users.alice))
    head = "POST /v1/kernels HTTP/1.1\\r\\nHost: agent\\r\\nContent-Length: 1000\\r\\n\\r\\n{"
    process, _ = _hold(users.alice, shared, 1, head)
    try:
        wait_until(lambda: len(refusals(shared, users.alice)) > before, seconds=60)
        assert "in time" in refusals(shared, users.alice)[-1]["reason"]
    finally:
        process.communicate()


def test_huge_bodies(shared: Agent, users: Users) -> None:
    """Nobody waits for them, and they are not kept anywhere."""
    before = len(refusals(shared, users.alice))
    huge = "x" * (5 * 2**20)
    code = """
import socket, sys
one = socket.socket(socket.AF_UNIX)
one.settimeout(60)
one.connect(sys.argv[1])
head = f"POST {sys.argv[2]} HTTP/1.1\\r\\nHost: agent\\r\\n"
head += f"Content-Length: {sys.argv[3]}\\r\\n\\r\\n"
one.sendall(head.encode())
sent = 0
try:
    while sent < min(int(sys.argv[3]), 64 * 2**20):
        sent += one.send(b"x" * 65536)
    said = one.recv(65536)
except OSError:
    said = b""
print(sent)
"""
    sent = int(users.alice.run(code, str(shared.socket), "/v1/kernels", str(len(huge))))
    assert sent < 5 * 2**20
    sent = int(users.alice.run(code, str(shared.socket), "/v1/kernels", str(10**15)))
    assert sent < 5 * 2**20
    sent = int(users.alice.run(code, str(shared.socket), "/v1/archives", str(10**15)))
    assert sent < 5 * 2**20
    assert len(refusals(shared, users.alice)) >= before + 2
    incoming = shared.layout.incoming
    assert not incoming.exists() or not list(incoming.iterdir())
    _others_are_served(shared, users)


_HAMMER = """
import http.client, socket, sys, threading, time

class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(100)
        self.sock.connect(sys.argv[1])

counts = []

def ask():
    connection = Connection("agent")
    while not over.is_set():
        connection.request("GET", "/v1/checkpoints")
        connection.getresponse().read()
        counts.append(1)

over = threading.Event()
threads = [threading.Thread(target=ask) for _ in range(30)]
for thread in threads:
    thread.start()
while len(counts) < 100:
    time.sleep(0.01)
print(flush=True)
sys.stdin.read()
over.set()
for thread in threads:
    thread.join()
print(len(counts))
"""


def test_a_user_who_never_stops_asking(shared: Agent, users: Users) -> None:
    """Thirty threads of his ask as fast as they can, and others are served between them."""
    alice = users.alice
    process = alice.popen(
        *(alice.python, "-c", _HAMMER, str(shared.socket)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    for _ in range(3):
        _others_are_served(shared, users)
    said, _ = process.communicate()
    assert int(said) > 100


def test_long_operations_of_one_user_keep_nobody_waiting(shared: Agent, users: Users) -> None:
    """Whoever follows a hundred logs that do not exist, or asks for everything at once."""
    wishes = [("GET", f"/v1/kernels/{n}/logs?follow=1", None) for n in range(100)]
    assert {a.status for a in ask(users.alice, shared, *wishes)} == {404}
    _others_are_served(shared, users)


def test_the_log_is_not_flooded(shared: Agent, users: Users) -> None:
    """So many lines in so many seconds, and one that says how many more there were."""
    wishes = [("GET", "/v1/kernels/none", None)] * 700
    before = len(refusals(shared, users.bob))
    assert {a.status for a in ask(users.bob, shared, *wishes)} == {404}
    noted = len(refusals(shared, users.bob)) - before
    assert 200 <= noted < 700
    text = shared.log.read_text()
    assert text.count("GET /v1/kernels/none") < 3 * 700
