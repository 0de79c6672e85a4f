"""What a pager brings next while somebody goes through memory in order."""

import socket
from collections.abc import Iterator

import pytest

from jupyter_checkpoints.agent.pager.journal import Journal
from jupyter_checkpoints.agent.pager.missing import Extent, Missing
from jupyter_checkpoints.agent.pager.server import _AHEAD, _READ, AROUND, Server, Task
from jupyter_checkpoints.store.plain import PlainPages

BASE = 0x7F0000000000
SIZE = 4 * _AHEAD


@pytest.fixture
def server() -> Iterator[Server]:
    ours, theirs = socket.socketpair()
    with ours, theirs, PlainPages(checkpoint="", directory="", files={}).open() as pages:
        yield Server(ours, {}, pages, Journal(), {})


@pytest.fixture
def task(server: Server) -> Task:
    task = Task(0, -1, 1, Missing([Extent(BASE, BASE + SIZE, "pages-1.img", 0)]))
    server._tasks.append(task)
    server._plan.append((task, BASE + SIZE - _READ, BASE + SIZE))
    return task


def _fault(server: Server, task: Task, address: int) -> None:
    task.missing.drop(address, address + AROUND)
    server._look_ahead(task, address, address + AROUND)


def _next(server: Server) -> int:
    found = server._next()
    assert found is not None
    return found[1] - BASE


def test_the_plan_is_kept_to_while_faults_are_scattered(server: Server, task: Task) -> None:
    for at in (0, 64 * _READ, 8 * _READ):
        _fault(server, task, BASE + at)
    assert _next(server) == SIZE - _READ


def test_fillers_go_ahead_of_a_reader_and_no_further(server: Server, task: Task) -> None:
    _fault(server, task, BASE)
    _fault(server, task, BASE + AROUND)
    places = [_next(server) for _ in range(_AHEAD // _READ)]
    assert places == list(range(2 * AROUND, 2 * AROUND + _AHEAD, _READ))
    assert _next(server) == SIZE - _READ


def test_a_reader_that_catches_up_is_served_on(server: Server, task: Task) -> None:
    _fault(server, task, BASE)
    _fault(server, task, BASE + AROUND)
    first = [_next(server) for _ in range(3)]
    _fault(server, task, BASE + first[1])
    assert _next(server) == first[-1] + _READ


def test_what_is_there_already_is_passed_over(server: Server, task: Task) -> None:
    task.missing.drop(BASE + 2 * AROUND, BASE + 20 * _READ)
    _fault(server, task, BASE)
    _fault(server, task, BASE + AROUND)
    assert _next(server) == 20 * _READ


def test_a_reader_that_has_ended_is_forgotten(server: Server, task: Task) -> None:
    _fault(server, task, BASE)
    _fault(server, task, BASE + AROUND)
    task.ended = True
    assert _next(server) == SIZE - _READ
