"""Reading the files of Docker's json-file driver while they grow and are renamed."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_checkpoints.agent.docker_log import DockerLog

FILES = 3


class Driver:
    """Writes and renames as the driver does."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "c0ffee-json.log"
        self.path.touch()

    def write(self, text: str) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"log": text, "stream": "stdout", "time": "t"}) + "\n")

    def rotate(self) -> None:
        for n in range(FILES - 1, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{n - 1}") if n > 1 else self.path
            if older.exists():
                older.replace(self.path.with_name(f"{self.path.name}.{n}"))
        self.path.touch()


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return Driver(tmp_path)


@pytest.fixture
def log(driver: Driver) -> Iterator[DockerLog]:
    log = DockerLog(driver.path, FILES)
    yield log
    log.close()


def _all(log: DockerLog) -> str:
    return b"".join(iter(log.read, b"")).decode()


def test_lines_and_parts_of_lines(driver: Driver, log: DockerLog) -> None:
    assert _all(log) == ""
    driver.write("grüße\n")
    driver.write("a part")
    assert _all(log) == "grüße\na part"
    driver.write(" and the rest\n")
    assert _all(log) == " and the rest\n"


def test_half_an_entry_waits_for_its_other_half(driver: Driver, log: DockerLog) -> None:
    driver.write("one\n")
    with driver.path.open("a") as file:
        file.write('{"log":"two')
    assert _all(log) == "one\n"
    with driver.path.open("a") as file:
        file.write('\\n"}\n')
    assert _all(log) == "two\n"


def test_a_damaged_line_costs_only_itself(driver: Driver, log: DockerLog) -> None:
    driver.write("one\n")
    with driver.path.open("a") as file:
        file.write('{"log":"tw\n[]\n')
    driver.write("three\n")
    assert _all(log) == "one\nthree\n"


def test_rotations_that_overtake_cost_only_what_was_thrown_away(
    driver: Driver, log: DockerLog
) -> None:
    driver.write("0\n")
    assert _all(log) == "0\n"
    for n in range(1, 7):
        driver.write(f"{n}\n")
        driver.rotate()
    driver.write("the end\n")
    # The first file is held open, so its last line is not lost; of the others two are left.
    assert _all(log) == "1\n5\n6\nthe end\n"


def test_a_moment_without_a_newest_file(driver: Driver, log: DockerLog) -> None:
    driver.write("one\n")
    assert _all(log) == "one\n"
    driver.path.rename(driver.path.with_name(f"{driver.path.name}.1"))
    assert _all(log) == ""
    driver.write("two\n")
    assert _all(log) == "two\n"


def test_a_position_of_another_file_is_not_believed(driver: Driver) -> None:
    driver.write("one\n")
    inode = driver.path.stat().st_ino
    for position in (f"{inode} 5", f"{inode + 1} 0", f"{inode} 4000"):
        log = DockerLog(driver.path, FILES, position)
        assert _all(log) == "one\n"
        log.close()


@given(steps=st.lists(st.sampled_from(["write", "read", "rotate", "restart"]), max_size=40))
def test_nothing_twice_and_nothing_lost(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    driver = Driver(tmp_path_factory.mktemp("log"))
    log = DockerLog(driver.path, FILES)
    written, seen, behind = 0, "", 0
    for step in [*steps, "read"]:
        if step == "write":
            driver.write(f"{written}\n")
            written += 1
        elif step == "rotate" and behind < FILES - 1:
            driver.rotate()
            behind += 1
        elif step == "read":
            seen += _all(log)
            behind = 0
        elif step == "restart":
            position = log.position
            log.close()
            log = DockerLog(driver.path, FILES, position)
    log.close()
    assert seen == "".join(f"{n}\n" for n in range(written))
