"""``extra_host_config``: what an administrator may set of kernels' containers besides.

The names are those of ``create_host_config`` of the Docker SDK, dockerspawner's vocabulary.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

#: Passed on to Docker: resources and logging.
HOST_CONFIG = frozenset(
    {
        "blkio_weight",
        "cgroup_parent",
        "cpu_shares",
        "cpuset_cpus",
        "cpuset_mems",
        "device_read_bps",
        "device_write_bps",
        "log_config",
        "mem_reservation",
        "mem_swappiness",
        "oom_kill_disable",
        "shm_size",
        "ulimits",
    }
)
#: Put into effect by the agent: the files for names of hosts are its own.
OWN_CONFIG = frozenset({"dns", "dns_opt", "dns_search", "extra_hosts"})

_OWN_NETWORK = "kernels have a network of their own, which keeps their address"
_CRIU = "what a device holds cannot be saved"
_CONFINED = "what a kernel may do is the same for all, and part of what is saved"
_MOUNTS = "mounts are named by each kernel's `volumes`, and checked against `allowed_volumes`"
_ENDED = "a kernel that was saved and ended has to stay ended"
_REFUSED = {
    "auto_remove": "how it ended would be lost",
    "binds": _MOUNTS,
    "cap_add": _CONFINED,
    "cap_drop": _CONFINED,
    "device_cgroup_rules": _CRIU,
    "device_requests": _CRIU,
    "devices": _CRIU,
    "init": "the agent gives every container one",
    "ipc_mode": _CONFINED,
    "links": _OWN_NETWORK,
    "mem_limit": "it is a setting of its own: `mem_limit`",
    "mounts": _MOUNTS,
    "network_mode": _OWN_NETWORK + "; see `network_name`",
    "nano_cpus": "it is a setting of its own: `cpu_limit`",
    "pid_mode": _CONFINED,
    "pids_limit": "it is a setting of its own: `pids_limit`",
    "port_bindings": _OWN_NETWORK,
    "privileged": _CONFINED,
    "publish_all_ports": _OWN_NETWORK,
    "read_only": "a kernel's files are what is saved",
    "restart_policy": _ENDED,
    "runtime": "it is the agent's own",
    "security_opt": _CONFINED,
    "tmpfs": "the agent's configuration of a container has no room for it",
    "userns_mode": "user namespaces are the agent's: `user_namespaces`",
    "volumes_from": _MOUNTS,
}


def checked_host_config(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The same, with sizes in bytes.

    Raises
    ------
    ValueError
        For what cannot be set, with the reason.
    """
    found = dict(wanted)
    for name in found:
        if name not in HOST_CONFIG | OWN_CONFIG:
            reason = _REFUSED.get(name, "it has no effect on kernels")
            raise ValueError(f"{name} cannot be set: {reason}")
    if "shm_size" in found:
        from docker.errors import DockerException
        from docker.utils import parse_bytes

        try:
            found["shm_size"] = int(parse_bytes(found["shm_size"]))
        except DockerException as error:
            raise ValueError(f"shm_size: {error}") from error
    for host, address in _pairs(found.get("extra_hosts", {})).items():
        if not host or not host.isprintable() or " " in host:
            raise ValueError(f"extra_hosts: {host!r} is not the name of a host")
        try:
            ipaddress.ip_address(address)
        except ValueError as error:
            raise ValueError(f"extra_hosts: {error}") from error
    for name in ("dns", "dns_opt", "dns_search"):
        values = found.get(name, [])
        if isinstance(values, str) or not all(
            isinstance(v, str) and v.isprintable() and " " not in v for v in values
        ):
            raise ValueError(f"{name} is a list of words")
    for limit in found.get("ulimits", []):
        if not isinstance(limit, Mapping) or not {"name", "soft", "hard"} <= {
            str(key).lower() for key in limit
        }:
            raise ValueError('ulimits is a list of {"name": "nofile", "soft": 1024, "hard": 4096}')
    return found


def hosts(config: Mapping[str, Any]) -> str:
    """Lines for ``/etc/hosts``."""
    named = _pairs(config.get("extra_hosts", {}))
    return "".join(f"{address} {host}\n" for host, address in named.items())


def resolv_conf(config: Mapping[str, Any], host_s: str) -> str:
    """``/etc/resolv.conf``, where it is not to be the host's."""
    lines = [
        line
        for line in host_s.splitlines()
        if not (
            (config.get("dns") and line.startswith("nameserver"))
            or (config.get("dns_search") and line.startswith(("search", "domain")))
            or (config.get("dns_opt") and line.startswith("options"))
        )
    ]
    lines += [f"nameserver {address}" for address in config.get("dns", [])]
    for name, keyword in (("dns_search", "search"), ("dns_opt", "options")):
        if config.get(name):
            lines.append(f"{keyword} {' '.join(config[name])}")
    return "".join(f"{line}\n" for line in lines)


def applied(container: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """A container's OCI configuration with what the agent itself has to put into it."""
    for mount in container["mounts"]:
        if mount["destination"] == "/dev/shm" and "shm_size" in config:
            mount["options"] = [*mount["options"], f"size={config['shm_size']}"]
    limits = {limit["type"]: limit for limit in container["process"]["rlimits"]}
    for wanted in config.get("ulimits", []):
        values = {str(key).lower(): value for key, value in wanted.items()}
        kind = f"RLIMIT_{str(values['name']).upper()}"
        limits[kind] = {"type": kind, "soft": int(values["soft"]), "hard": int(values["hard"])}
    container["process"]["rlimits"] = list(limits.values())
    return container


def _pairs(extra_hosts: Any) -> dict[str, str]:
    """``{name: address}``, which may also be written as ``["name:address"]``."""
    if isinstance(extra_hosts, Mapping):
        return {str(host): str(address) for host, address in extra_hosts.items()}
    return dict(str(entry).split(":", 1) for entry in extra_hosts)
