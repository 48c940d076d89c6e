"""Parsing of the Host header, and the names of this host as addresses change."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from gateway.ingress.http.hosts import host_of, own_hosts
from gateway.plugin import GatewayError
from support.documents import ROOT

# In a separate network namespace: the names of this host before and after it gets addresses of both families.
ADDRESSES_COME = """
import json, subprocess
from gateway.ingress.http.hosts import own_hosts
before = own_hosts(["0.0.0.0", "::"])
subprocess.run("ip link set lo up && ip address add 192.0.2.7/24 dev lo && ip address add 192.0.2.8/24 dev lo && "
    "ip address add 192.0.2.9 peer 192.0.2.10 dev lo && ip address add 2001:db8::7/64 dev lo", shell=True, check=True)
print(json.dumps(sorted(own_hosts(["0.0.0.0"]) - before)))
"""


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("localhost", "localhost"),
        ("localhost:", "localhost"),
        ("Box.Example.:8080", "box.example"),
        ("[::1]:80", "[::1]"),
        ("[::1]:", "[::1]"),
        ("[2001:DB8:0:0::1]", "[2001:db8::1]"),
        (" 10.0.0.1 ", "10.0.0.1"),
    ],
)
def test_host_header_is_normalised(header: str, name: str) -> None:
    assert host_of(header) == name


@pytest.mark.parametrize(
    "header", ["", ":80", "a:b", "a:65536", "a:123456", "[1.2.3.4]", "[::1", "::1", "a b", "[::]x"]
)
def test_invalid_host_header_is_refused(header: str) -> None:
    with pytest.raises(GatewayError, match="is not a host name"):
        host_of(header)


def test_own_hosts_of_specific_listeners_are_their_addresses_and_local_names() -> None:
    hosts = own_hosts(["192.0.2.1", "2001:DB8:0::1", "fe80::1%eth0"])
    assert {"localhost", "127.0.0.1", "[::1]", "192.0.2.1", "[2001:db8::1]", "[fe80::1]"} <= hosts
    assert hosts - own_hosts([]) == {"192.0.2.1", "[2001:db8::1]", "[fe80::1]"}


@pytest.mark.net
def test_own_hosts_of_wildcard_listeners_include_addresses_added_later() -> None:
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    command = ["unshare", "--net", sys.executable, "-c", ADDRESSES_COME]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(done.stdout) == ["192.0.2.7", "192.0.2.8", "192.0.2.9", "[2001:db8::7]"]
