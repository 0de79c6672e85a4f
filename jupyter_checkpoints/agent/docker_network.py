"""One network of Docker's that kernels see: who is in it, by name and address.

Kernels are no part of it: while one is resumed in place two of its containers live at once, and
Docker would give each an address of its own. They keep their own network, from which this one is
reached through the host, and its names are in their ``/etc/hosts``.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any

from ..errors import HostNotReady
from .docker_client import DockerFailed, DockerMissing, told

#: Docker's events that may mean that somebody has come or gone. Who is connected before he is
#: started has no address yet.
EVENTS = {"type": ["container", "network"], "event": ["start", "connect", "disconnect"]}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,252}")


class DockerNetwork:
    """See the module. All methods block; any number of threads may use them."""

    def __init__(self, api: Any, name: str) -> None:
        self._api = api
        self.name = name

    def subnets(self) -> list[str]:
        """Its IPv4 addresses.

        Raises
        ------
        HostNotReady
            If there is no such network, or it is not on this host.
        """
        try:
            with told():
                found = self._api.inspect_network(self.name)
        except DockerFailed as error:
            raise HostNotReady(
                f"There is no network {self.name!r} in Docker.",
                reason=str(error),
                hint=f"`docker network create {self.name}`, or another `network_name`.",
            ) from error
        if found["Driver"] != "bridge":
            raise HostNotReady(
                f"The network {self.name!r} is not one that kernels can reach.",
                reason=f"Its driver is {found['Driver']}; the host is part of bridges only.",
                hint="Make one with the driver `bridge`, and name that in `network_name`.",
            )
        configured = (found.get("IPAM") or {}).get("Config") or []
        subnets = [str(entry.get("Subnet", "")) for entry in configured]
        return [s for s in subnets if s and ipaddress.ip_network(s).version == 4]

    def hosts(self) -> str:
        """Lines for ``/etc/hosts``: the names and aliases of all containers in it.

        Raises as :func:`~.docker_client.told`.
        """
        lines = []
        with told():
            containers = self._api.containers(filters={"network": self.name})
        for container in containers:
            try:
                with told():
                    found = self._api.inspect_container(container["Id"])
            except DockerMissing:
                continue
            end = found["NetworkSettings"]["Networks"].get(self.name) or {}
            if address := end.get("IPAddress"):
                names = [found["Name"].lstrip("/"), *(end.get("Aliases") or [])]
                shown = dict.fromkeys(name for name in names if _NAME.fullmatch(name))
                lines.append(f"{address} {' '.join(shown)}\n")
        return "".join(sorted(lines))
