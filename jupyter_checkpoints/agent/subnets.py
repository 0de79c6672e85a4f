"""Which addresses this host has routes to, and which are free for the kernels of an agent."""

from __future__ import annotations

import json
import random
import subprocess
from ipaddress import IPv4Network

from msgspec import Struct

from ..errors import HostNotReady

#: What an agent takes that is told nothing else.
DEFAULT = IPv4Network("10.213.0.0/16")

#: Addresses that are nobody's on the Internet, in the order in which they are tried.
_PRIVATE = [
    IPv4Network(n) for n in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")
]
_PREFIX = 16


class Route(Struct, frozen=True, kw_only=True):
    """Where packets to some addresses go."""

    to: IPv4Network
    device: str
    """Empty if they go nowhere, or several ways."""
    kind: str
    """``unicast``, ``local``, ``unreachable``, ..."""


def routes(listing: str) -> list[Route]:
    """Those in what ``ip -4 -j route`` has printed, but for such as lead to everywhere.

    These are the default route, and the halves and quarters of it that VPNs take.
    """
    found = []
    for entry in json.loads(listing or "[]"):
        to = IPv4Network("0.0.0.0/0" if entry["dst"] == "default" else entry["dst"], strict=False)
        if to.prefixlen >= _PRIVATE[0].prefixlen:
            kind = entry.get("type", "unicast")
            found.append(Route(to=to, device=entry.get("dev", ""), kind=kind))
    return found


def free_subnet() -> IPv4Network:
    """A ``subnet`` for an agent that runs beside others. Called by tests and benchmarks. Blocking.

    No route leads to any part of it: neither another agent has it nor a VPN, a virtual machine or
    a company's network. It is one of many, at random, for agents that are started at a time.

    Raises
    ------
    HostNotReady
        If none is free.
    """
    command = ["ip", "-4", "-j", "route", "show", "table", "all"]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    taken = [DEFAULT, *(route.to for route in routes(listing))]
    for network in _PRIVATE:
        free = [
            subnet
            for subnet in network.subnets(new_prefix=_PREFIX)
            if not any(subnet.overlaps(theirs) for theirs in taken)
        ]
        if free:
            return random.choice(free)
    raise HostNotReady(
        "No addresses are free for kernels.",
        reason=f"This host has routes to parts of each /{_PREFIX} of all private networks: "
        + ", ".join(map(str, _PRIVATE))
        + ".",
        hint="Look at `ip route show table all`, and remove what nobody needs.",
    )
