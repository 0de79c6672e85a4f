"""Kernels' addresses: the host keeps its own ones, and nobody gets at what is another's."""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from jupyter_checkpoints.models import KernelModel, SaveRequest

from .agents import Agent
from .callers import OTHER, ROOT, for_all_callers
from .launch import Launch
from .launch import launch as launch

pytestmark = [pytest.mark.anyio, for_all_callers]

#: linux/rtnetlink.h: groups LINK, IPV4_IFADDR and IPV6_IFADDR; message types
_GROUPS = 0x1 | 0x10 | 0x100
_NEWLINK, _NEWADDR, _DELADDR = 16, 20, 21
_IFNAME = 3


class Watch:
    """Changes of the host's addresses since it began, by interface."""

    def __init__(self, route: socket.socket) -> None:
        self.route = route
        self.names: dict[int, str] = {}
        self.changes: list[int] = []

    def of(self, prefix: str) -> list[str]:
        while True:
            try:
                self._read(self.route.recv(2**20))
            except BlockingIOError:
                return [n for i in self.changes if (n := self.names.get(i, "")).startswith(prefix)]

    def _read(self, data: bytes) -> None:
        while data:
            size, kind = struct.unpack_from("=IH", data)
            index = struct.unpack_from("=i", data, 20)[0]
            if kind in (_NEWADDR, _DELADDR):
                self.changes.append(index)
            elif kind == _NEWLINK:
                at = 32
                while at < size:
                    length, attribute = struct.unpack_from("=HH", data, at)
                    if attribute == _IFNAME:
                        self.names[index] = data[at + 4 : at + length - 1].decode()
                    at += (length + 3) & ~3
            data = data[(size + 3) & ~3 :]


@contextmanager
def watching_addresses() -> Iterator[Watch]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as route:
        route.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
        route.bind((0, _GROUPS))
        route.setblocking(False)
        yield Watch(route)


def _address(model: KernelModel) -> str:
    assert model.connection is not None
    return model.connection.ip


def test_a_change_of_an_address_is_seen(agent: Agent) -> None:
    """The test below would see one."""
    name = f"jrc{agent.layout.instance}ffff"
    with watching_addresses() as watch:
        subprocess.run(["ip", "link", "add", name, "type", "veth"], check=True)
        subprocess.run(["ip", "addr", "add", "192.0.2.201/32", "dev", name], check=True)
        subprocess.run(["ip", "link", "del", name], check=True)
        assert watch.of(name)


async def test_kernels_change_no_address_of_the_host(agent: Agent, launch: Launch) -> None:
    """A browser on the host gives up its requests whenever an address comes or goes."""
    with watching_addresses() as watch:
        kernel = await launch.start()
        older = await kernel.save()
        saved = await kernel.save(SaveRequest(stop=True))
        await launch.agent.resume(kernel.model.id, saved.id)
        await launch.agent.resume(kernel.model.id, older.id)
        clone = await launch.resume(saved)
        await clone.run("1")
        await clone.end()
        await kernel.end()
        assert watch.of(f"jrc{agent.layout.instance}") == []
        assert any(n.startswith(f"jrc{agent.layout.instance}") for n in watch.names.values())


async def test_no_kernel_has_an_address_that_it_was_not_given(launch: Launch) -> None:
    """Before and after a resume; the link's other end takes no IPv6 either."""
    kernel = await launch.start()
    clone = await launch.resume(await kernel.save())
    for side in (kernel, clone):
        text = await side.run(
            "print([line.split()[-1] for line in open('/proc/net/if_inet6')], "
            "[line.split()[1] for line in open('/proc/net/fib_trie') if '|--' in line])"
        )
        assert "eth0" not in text and _address(side.model) in text


async def test_no_kernel_reaches_another(launch: Launch) -> None:
    one, other = await launch.start(), await launch.start()
    attempt = (
        "import socket\ntry:\n"
        f"    socket.create_connection(({_address(other.model)!r}, 5001), 2)\n"
        "    print('reached')\n"
        "except OSError as error:\n    print(type(error).__name__)"
    )
    assert await one.run(attempt) == "TimeoutError"


SPOOF = """
import socket, struct
def send(source, target, port, text):
    data = struct.pack("!HHHH", 4000, port, 8 + len(text), 0) + text
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(data), 0, 0, 64, 17, 0,
                         socket.inet_aton(source), socket.inet_aton(target))
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(header + data, (target, 0))
"""


async def test_no_kernel_takes_anothers_address(launch: Launch) -> None:
    one, other = await launch.start(), await launch.start()
    await one.run(SPOOF)
    gateway = await one.run(
        "print(next(socket.inet_ntoa(bytes.fromhex(line.split()[2])[::-1])"
        " for line in open('/proc/net/route') if line.split()[1] == '00000000'))"
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((gateway, 0))
        server.settimeout(30)
        port = server.getsockname()[1]
        for source in (_address(other.model), "192.0.2.77", _address(one.model)):
            await one.run(f"send({source!r}, {gateway!r}, {port}, {source!r}.encode())")
        assert server.recv(100).decode() == _address(one.model)


async def test_other_users_of_the_host_do_not_reach_it(launch: Launch, caller: int) -> None:
    """Whoever subscribes to a kernel's output channel is sent all of it, asked for no key."""
    kernel = await launch.start()
    program = (
        "import os, socket\n"
        "try:\n"
        f"    os.setresuid(UID, UID, UID); socket.socket().connect(({_address(kernel.model)!r},"
        f" {kernel.channels.iopub_port}))\n"
        "    print('reached')\n"
        "except OSError as error:\n    print(type(error).__name__)"
    )

    async def as_user(uid: int) -> bytes:
        command = [sys.executable, "-c", program.replace("UID", str(uid))]
        return await asyncio.to_thread(subprocess.check_output, command)

    assert await as_user(ROOT) == b"reached\n"
    assert await as_user(caller) == b"reached\n"
    assert await as_user(OTHER) == b"ConnectionRefusedError\n"
