"""Addresses for an agent that runs beside others, where the host has routes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from ipaddress import IPv4Network

import pytest

from jupyter_checkpoints.agent import subnets

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can give a network namespace routes"
)

_ASK = """
from jupyter_checkpoints.agent.subnets import free_subnet
from jupyter_checkpoints.errors import HostNotReady
try:
    print(free_subnet())
except HostNotReady as error:
    print(error)
"""
#: All of 10.0.0.0/8 but 10.77.0.0/16 and what an agent takes that is told nothing else.
_BUT_ONE = [
    "10.0.0.0/10 dev lo",  # wider than what is looked for
    "unreachable 10.64.0.0/13",
    "blackhole 10.72.0.0/14",
    *("10.76.3.0/24 dev lo", "10.78.1.2 dev lo"),  # a part of it
    *("10.79.0.0/16 dev lo table 77", "10.80.0.0/12 nexthop dev lo nexthop dev other"),
    *("prohibit 10.96.0.0/11", "10.128.0.0/10 dev lo", "10.192.0.0/12 dev lo"),
    *("10.208.0.0/14 dev lo", "10.212.0.0/16 dev lo", "10.214.0.0/15 dev lo"),
    *("10.216.0.0/13 dev lo", "10.224.0.0/11 dev lo"),
]


def _free(*routes: str) -> str:
    """What is found on a host with these routes."""
    commands = ["link set lo up", "link add other type veth", "link set other up"]
    commands += [f"route add {route}" for route in routes]
    return subprocess.run(
        [
            *("unshare", "--net", "sh", "-ec", 'ip -batch -\nexec "$@"', "sh"),
            *(sys.executable, "-c", _ASK),
        ],
        input="\n".join(commands) + "\n",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_without_routes() -> None:
    free = IPv4Network(_free())
    assert free.prefixlen == 16 and free.subnet_of(IPv4Network("10.0.0.0/8"))
    assert free != subnets.DEFAULT


def test_the_one_that_is_left() -> None:
    assert _free(*_BUT_ONE) == "10.77.0.0/16"


def test_an_address_of_the_host_s_is_taken() -> None:
    """Its route is in a table of its own, before there is one to other hosts."""
    assert IPv4Network(_free(*_BUT_ONE, "local 10.77.9.9 dev lo table local")).subnet_of(
        IPv4Network("172.16.0.0/12")
    )


@pytest.mark.parametrize(
    "everywhere", [["default dev lo"], ["0.0.0.0/1 dev lo", "128.0.0.0/1 dev lo"]]
)
def test_a_way_to_everywhere_takes_nothing(everywhere: list[str]) -> None:
    assert _free(*_BUT_ONE, *everywhere) == "10.77.0.0/16"


def test_other_private_addresses() -> None:
    company = ["10.0.0.0/8 dev lo"]
    assert IPv4Network(_free(*company)).subnet_of(IPv4Network("172.16.0.0/12"))
    company.append("172.16.0.0/12 dev lo")
    assert _free(*company) == "192.168.0.0/16"
    company.append("192.168.178.0/24 dev lo")
    assert IPv4Network(_free(*company)).subnet_of(IPv4Network("100.64.0.0/10"))
    company.append("100.64.0.0/10 dev lo")
    assert _free(*company).startswith("No addresses are free for kernels.")
