"""``extra_host_config``: what may be set, and why the rest may not."""

from __future__ import annotations

from typing import Any

import pytest

from jupyter_checkpoints.agent.docker_host_config import (
    checked_host_config,
    hosts,
    resolv_conf,
)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"devices": ["/dev/fuse"]}, "cannot be saved"),
        ({"privileged": True}, "same for all"),
        ({"network_mode": "host"}, "network_name"),
        ({"restart_policy": {"Name": "always"}}, "stay ended"),
        ({"storage_opt": {}}, "no effect"),
        ({"shm_size": "much"}, "shm_size"),
        ({"extra_hosts": {"db": "nowhere"}}, "extra_hosts"),
        ({"extra_hosts": {"two words": "192.0.2.1"}}, "extra_hosts"),
        ({"extra_hosts": {"a\n192.0.2.1 b": "192.0.2.1"}}, "extra_hosts"),
        ({"dns": "192.0.2.1"}, "list"),
        ({"dns": ["192.0.2.1\nsearch x"]}, "list"),
        ({"ulimits": [{"name": "nofile"}]}, "ulimits"),
    ],
)
def test_refused(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        checked_host_config(config)


def test_sizes_are_bytes() -> None:
    assert checked_host_config({"shm_size": "1g", "cpu_shares": 10}) == {
        "shm_size": 2**30,
        "cpu_shares": 10,
    }


def test_names_of_hosts() -> None:
    assert hosts({"extra_hosts": ["db:192.0.2.1"]}) == "192.0.2.1 db\n"
    assert hosts({"extra_hosts": {"db": "2001:db8::1"}}) == "2001:db8::1 db\n"
    own = "nameserver 192.0.2.9\nsearch old\noptions ndots:2\n"
    assert resolv_conf({}, own) == own
    config = {"dns": ["192.0.2.1"], "dns_search": ["a", "b"]}
    assert resolv_conf(config, own) == "options ndots:2\nnameserver 192.0.2.1\nsearch a b\n"
