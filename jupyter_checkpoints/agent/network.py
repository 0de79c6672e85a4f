"""One network namespace per container, one address per kernel.

A kernel keeps its address for as long as the agent knows it; each of its containers gets a
namespace of its own. A container that is being restored sits in its new namespace with the
address already there (TCP sockets are restored bound to it) but with the host's end of the veth
pair down, so that no packet of a client can meet the address before its sockets are back:
:meth:`Network.activate` brings it up. Other namespaces on the host are never touched: every
global name starts with a prefix that holds the agent's instance.

No kernel changes an address of the host: browsers there give up their requests whenever one comes
or goes. All kernels have one gateway, whose address is on the loopback device as long as the
agent is, and each is reached by a route of its own to its end of the pair. Both ends are without
IPv6, which would give itself addresses.

A kernel is reached by its owner and by root. It reaches no other kernel, and cannot take another's
address: packets count only where the address they come from is routed to (``rp_filter``).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from ..errors import HostNotReady, InsufficientResources
from . import process, subnets
from .process import CommandFailed

log = logging.getLogger(__name__)

_ENV = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
_TIMEOUT = 20.0

#: What a SUB socket has sent before its subscription: ZMTP greeting (64) and READY (27 bytes).
_SUBSCRIBED = 64 + 27 + 1


class Link(Struct, frozen=True, kw_only=True):
    """The network of one container."""

    index: int
    """Which four addresses of the agent's subnet: the kernel's, through all its containers."""
    namespace: str
    veth: str
    address: str


class Network:
    """Creates, activates and removes links; all methods are coroutines and never block."""

    def __init__(self, instance: str, subnet: str, nat: bool) -> None:
        self.prefix = f"jrc{instance}"
        self.subnet = ipaddress.IPv4Network(subnet)
        self.gateway = str(self.subnet.network_address + 1)
        self.nat = nat
        self._open = False
        self._in_docker_s_chain = False
        self._docker_subnets: list[str] = []
        self._ipv6 = True
        #: An index whose first link is there already, so that a kernel's start need not wait.
        self._spare: int | None = None
        self._making: int | None = None
        self.table = f"jupyter_checkpoints_{instance}"

    @property
    def capacity(self) -> int:
        return self.subnet.num_addresses // 4

    def allocate(self, used: set[int]) -> int:
        """An index that is not used; the caller keeps it."""
        for index in range(self.capacity):
            if index not in used and index not in (self._making, self._spare):
                return index
        raise InsufficientResources(
            "There is no free address for another kernel.",
            reason=f"All {self.capacity} addresses of {self.subnet} are in use.",
            hint="Delete kernels, or give the agent a larger `subnet`.",
        )

    def allocate_ready(self, used: set[int]) -> tuple[int, bool]:
        """An index for a new kernel, and whether its first link is there already."""
        if self._spare is not None:
            index, self._spare = self._spare, None
            return index, True
        return self.allocate(used), False

    async def keep_spare(self, used: set[int]) -> None:
        """Have a link ready for the next new kernel. Never called twice at once."""
        if self._spare is None:
            self._making = self.allocate(used)
            try:
                await self.create(self.link(self._making, 0), active=True)
                self._spare = self._making
            finally:
                self._making = None

    async def drop_spare(self) -> None:
        """Remove what :meth:`keep_spare` has made; called at the agent's end."""
        if self._spare is not None:
            await self.remove(self.link(self._spare, 0))
            self._spare = None

    def link(self, index: int, generation: int) -> Link:
        """The names and addresses of one container's network; pure arithmetic."""
        base = self.subnet.network_address + index * 4
        return Link(
            index=index,
            namespace=f"{self.prefix}-{index:x}-{generation:x}",
            # 15 characters are all that an interface name may have.
            veth=f"{self.prefix}{index:04x}{generation % 256:02x}",
            address=str(base + 2),
        )

    async def open(self) -> None:
        """Firewall and forwarding for all kernels; called once, at the agent's start.

        Kernels never reach each other, and only :meth:`admit` lets anybody but root reach one.
        They reach the outside if ``nat`` is on and the host can; where it cannot, that is logged
        and they do not.
        """
        await self._require_free()
        self._open = True
        self._ipv6 = await asyncio.to_thread(Path("/proc/sys/net/ipv6").exists)
        rules = (
            f"table inet {self.table} {{}}\ndelete table inet {self.table}\n"
            f"table inet {self.table} {{\n"
            "  set owners { type ipv4_addr . uid; }\n"
            "  chain forward { type filter hook forward priority -10; policy accept;\n"
            f"    ip saddr {self.subnet} ip daddr {self.subnet} drop\n"
            f"    ip daddr {self.subnet} ct state new drop\n  }}\n"
            "  chain output { type filter hook output priority -10; policy accept;\n"
            f"    ip daddr {self.subnet} ip daddr != {self.gateway} meta skuid != 0 ct state new"
            " ip daddr . meta skuid != @owners reject\n  }\n"
        )
        if self.nat:
            rules += (
                "  chain postrouting { type nat hook postrouting priority srcnat;\n"
                f"    ip saddr {self.subnet} ip daddr != {self.subnet} masquerade\n  }}\n"
            )
        try:
            await self._nft(rules + "}\n")
        except CommandFailed as error:
            raise HostNotReady(
                "The firewall rules that keep kernels apart could not be set.",
                reason=error.output.strip(),
                hint="The kernel needs nftables (nf_tables, nft_masq); or set `outbound_nat` off.",
            ) from error
        # A packet to a kernel that is down must not follow the default route to some host that
        # answers it: that would end the connection which the kernel is about to come back with.
        await self._ip("route", "replace", "unreachable", str(self.subnet), "metric", "4000")
        await self._ip("addr", "replace", f"{self.gateway}/32", "dev", "lo")
        if self.nat:
            try:
                await asyncio.to_thread(
                    Path("/proc/sys/net/ipv4/ip_forward").write_text, "1\n", encoding="ascii"
                )
            except OSError as error:
                log.warning("Kernels cannot reach the outside: IP forwarding: %s", error)

    async def _require_free(self) -> None:
        """The subnet is nobody else's: packets to a kernel must not go astray."""
        for route in subnets.routes(await self._ip("-4", "-j", "route")):
            if route.kind == "unreachable" or route.device.startswith(self.prefix):
                continue
            if route.to.overlaps(self.subnet):
                raise HostNotReady(
                    f"The addresses {self.subnet} for kernels are in use on this host.",
                    reason=f"{route.to} is routed to {route.device or route.kind}",
                    hint="Give the agent another `subnet`.",
                )

    async def pass_firewall_of_docker(self, to: Sequence[str] = ()) -> None:
        """Let kernels' packets through where Docker drops whatever it does not know itself.

        Docker gives others a chain of its own for that, and keeps what is in it. ``to``: subnets of
        Docker's that kernels reach in any case: since version 28 it drops early what comes
        to its containers from elsewhere.
        """
        self._docker_subnets = list(to)
        try:
            if not await self._quietly("iptables", "--wait", "--list-rules", "DOCKER-USER"):
                return
        except HostNotReady:  # there is no iptables: nor does Docker use it
            return
        self._in_docker_s_chain = True
        for rule in self._docker_rules():
            try:
                await process.run("iptables", "--wait", "-C", *rule, env=_ENV, timeout=_TIMEOUT)
            except CommandFailed:
                await self._quietly("iptables", "--wait", "-I", *rule)

    def _docker_rules(self) -> list[tuple[str, ...]]:
        own, accept = str(self.subnet), ("--jump", "ACCEPT")
        early = ("PREROUTING", "--table", "raw", "--source", own)
        return [
            *(("DOCKER-USER", side, own, *accept) for side in ("--source", "--destination")),
            *((*early, "--destination", to, *accept) for to in self._docker_subnets),
        ]

    async def close(self) -> None:
        """Remove the rules; called at the agent's end if no kernel is left."""
        if not self._open:
            return
        await self._quietly("nft", "delete", "table", "inet", self.table)
        if self._in_docker_s_chain:
            for rule in self._docker_rules():
                await self._quietly("iptables", "--wait", "-D", *rule)
        await self._quietly("ip", "route", "del", "unreachable", str(self.subnet))
        await self._quietly("ip", "addr", "del", f"{self.gateway}/32", "dev", "lo")

    async def create(self, link: Link, *, active: bool) -> None:
        """Make the namespace with its address; ``active`` also connects it to the host."""
        script = self._script(link, f"netns add {link.namespace}", active)
        await process.run("sh", "-e", "-s", env=_ENV, timeout=_TIMEOUT, stdin=script)

    def hook(self, link: Link, *, active: bool) -> str:
        """The same as :meth:`create`, for a namespace that runc has made.

        A shell script to be run as an OCI hook ``createRuntime``: when the container's namespaces
        are there, and before anything in it runs or is restored.
        """
        # The container's state is one line of JSON on the standard input.
        find = "read -r state || :\npid=${state##*'\"pid\":'}\npid=${pid%%[,\\}]*}\n"
        return f"set -e\n{find}" + self._script(link, f"netns attach {link.namespace} $pid", active)

    def _script(self, link: Link, make: str, active: bool) -> str:
        """Few programs: each takes milliseconds, at every start."""
        host = [make, f"link add {link.veth} type veth peer name eth0 netns {link.namespace}"]
        inside = ["link set lo up", f"addr add {link.address}/32 dev eth0"]
        settings = f"echo 1 > /proc/sys/net/ipv4/conf/{link.veth}/rp_filter\n"
        if self._ipv6:
            # An address of its own comes as soon as a link is up.
            host.append(f"link set {link.veth} addrgenmode none")
            inside.append("link set eth0 addrgenmode none")
            settings += f"echo 1 > /proc/sys/net/ipv6/conf/{link.veth}/disable_ipv6\n"
        if active:
            host += self._connect(link)
        inside += ["link set eth0 up", f"route add default via {self.gateway} dev eth0 onlink"]
        return (
            "ip -batch - <<END\n"
            + "\n".join(host)
            + "\nEND\n"
            + settings
            + f"exec ip -n {link.namespace} -batch - <<END\n"
            + "\n".join(inside)
            + "\nEND\n"
        )

    def _connect(self, link: Link) -> list[str]:
        return [
            f"link set {link.veth} up",
            # It is gone whenever the link is down: then the route of the whole subnet counts.
            f"route replace {link.address}/32 dev {link.veth} src {self.gateway}",
        ]

    async def activate(self, link: Link, replaces: Link | None = None) -> None:
        """Connect a namespace to the host; the link that had its address before is cut off."""
        commands = self._connect(link)
        if replaces is not None and replaces.veth in await _interfaces():
            commands.insert(0, f"link del {replaces.veth}")
        await self._ip("-batch", "-", stdin="\n".join(commands) + "\n")

    async def admit(self, link: Link, uid: int) -> None:
        """Let a user reach a kernel's address, which root alone does otherwise."""
        if uid:
            await self._nft(f"add {self._owner(link, uid)}")

    async def expel(self, link: Link, uid: int) -> None:
        """Take back what :meth:`admit` gave, before the address goes to somebody else."""
        if uid:
            await self._quietly("nft", f"delete {self._owner(link, uid)}")

    def _owner(self, link: Link, uid: int) -> str:
        return f"element inet {self.table} owners {{ {link.address} . {uid} }}"

    async def disconnect(self, link: Link) -> None:
        """Drop all packets between host and namespace; :meth:`activate` lets them pass again."""
        await self._ip("link", "set", link.veth, "down")

    async def remove(self, link: Link) -> None:
        """Remove the link; nothing happens if it is gone."""
        if link.veth in await _interfaces():
            await self._quietly("ip", "link", "del", link.veth)
        if link.namespace in await _namespaces():
            await self._quietly("ip", "netns", "del", link.namespace)

    async def sweep(self, keep: set[str]) -> list[str]:
        """Remove namespaces and interfaces of this agent that no kernel in ``keep`` has.

        ``keep`` holds the names of namespaces and interfaces. Called at the agent's start.
        """
        namespaces = [n for n in await _namespaces() if n.startswith(f"{self.prefix}-")]
        interfaces = [n for n in await _interfaces() if n.startswith(self.prefix)]
        gone = [n for n in namespaces + interfaces if n not in keep]
        for name in gone:
            kind = ("netns",) if name in namespaces else ("link",)
            await self._quietly("ip", *kind, "del", name)
        return gone

    async def unlock(self, link: Link) -> None:
        """Remove what an unfinished CRIU left locked in a namespace."""
        listing = await self._quietly(
            "ip", "netns", "exec", link.namespace, "nft", "list", "tables"
        )
        for family, table in re.findall(r"^table (\S+) (CRIU-\S+)", listing, re.MULTILINE):
            await self._quietly(
                "ip", "netns", "exec", link.namespace, "nft", "delete", "table", family, table
            )

    async def subscribers(self, link: Link, iopub_port: int) -> int:
        """How many clients are connected to a kernel's iopub port."""
        return len(await self._connections(link, iopub_port))

    async def cut(self, link: Link) -> None:
        """End every connection of this host to a kernel's address.

        For a resume that cannot keep connections: a client whose socket stays half open would
        lose its next request, and a SUB socket would stay deaf for ever, since it never writes.
        """
        await self._quietly("ss", "-K", "dst", link.address)

    async def gate(self, link: Link, ports: list[int]) -> None:
        """Refuse new connections to ``ports`` until :meth:`open_gate`.

        After a resume every channel of a client reconnects by its own random clock. A request
        that arrives on shell before the same client's iopub has subscribed loses its output, so
        iopub is let in first. Refused connections are tried again by ZeroMQ, and requests wait in
        the client meanwhile.
        """
        listed = ", ".join(str(p) for p in ports)
        rules = (
            "table inet jupyter_gate {\n  chain input { type filter hook input priority 0;\n"
            f'  iifname != "lo" tcp dport {{ {listed} }} reject with tcp reset\n  }}\n}}\n'
        )
        await self._nft(rules, link.namespace)

    async def open_gate(self, link: Link, iopub_port: int, expected: int, timeout: float) -> bool:
        """Let everybody in as soon as ``expected`` clients have subscribed, or time is up.

        Returns whether all had subscribed. A client that went away meanwhile costs the timeout.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        complete = False
        while not complete and asyncio.get_running_loop().time() < deadline:
            ready = [
                c
                for c in await self._connections(link, iopub_port)
                if c[0] == 0 and c[1] >= _SUBSCRIBED
            ]
            complete = len(ready) >= expected
            if not complete:
                await asyncio.sleep(0.01)
        await self._quietly(
            "ip", "netns", "exec", link.namespace, "nft", "delete", "table", "inet", "jupyter_gate"
        )
        return complete

    async def _connections(self, link: Link, port: int) -> list[tuple[int, int]]:
        """(bytes not read yet, bytes received) of each established connection to ``port``."""
        text = await self._quietly(
            *("ip", "netns", "exec", link.namespace),
            *("ss", "-HtinO", "state", "established", f"( sport = :{port} )"),
        )
        found = []
        for line in text.splitlines():
            if line.strip():
                received = re.search(r"bytes_received:(\d+)", line)
                found.append((int(line.split()[0]), int(received.group(1)) if received else 0))
        return found

    async def _ip(self, *argv: str, stdin: str | None = None) -> str:
        return await process.run("ip", *argv, env=_ENV, timeout=_TIMEOUT, stdin=stdin)

    async def _nft(self, rules: str, namespace: str = "") -> None:
        prefix = ("ip", "netns", "exec", namespace) if namespace else ()
        await process.run(*prefix, "nft", "-f", "-", env=_ENV, timeout=_TIMEOUT, stdin=rules)

    async def _quietly(self, *argv: str) -> str:
        try:
            return await process.run(*argv, env=_ENV, timeout=_TIMEOUT)
        except CommandFailed as error:
            log.debug("%s", error)
            return ""


async def _interfaces() -> list[str]:
    return await asyncio.to_thread(os.listdir, "/sys/class/net")


async def _namespaces() -> list[str]:
    try:
        return await asyncio.to_thread(os.listdir, "/run/netns")
    except FileNotFoundError:  # ip makes it with the first namespace
        return []
