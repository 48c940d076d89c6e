"""Host names: how a header is read, and by which names this host may be called, now and when its addresses change."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from gateway.ingress.http.hosts import host_of, own_hosts
from gateway.plugin import GatewayError
from support.documents import ROOT

# A network of its own: what this host is called before it has addresses, and when it has two of each family.
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
def test_a_host_header_is_read(header: str, name: str) -> None:
    assert host_of(header) == name


@pytest.mark.parametrize(
    "header", ["", ":80", "a:b", "a:65536", "a:123456", "[1.2.3.4]", "[::1", "::1", "a b", "[::]x"]
)
def test_what_is_no_host_is_refused(header: str) -> None:
    with pytest.raises(GatewayError, match="is not a host name"):
        host_of(header)


def test_bound_to_some_addresses_it_goes_by_those_and_by_its_names() -> None:
    hosts = own_hosts(["192.0.2.1", "2001:DB8:0::1", "fe80::1%eth0"])
    assert {"localhost", "127.0.0.1", "[::1]", "192.0.2.1", "[2001:db8::1]", "[fe80::1]"} <= hosts
    assert hosts - own_hosts([]) == {"192.0.2.1", "[2001:db8::1]", "[fe80::1]"}


@pytest.mark.net
def test_bound_to_all_it_goes_by_every_address_of_every_interface_also_those_that_come_later() -> None:
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    command = ["unshare", "--net", sys.executable, "-c", ADDRESSES_COME]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(done.stdout) == ["192.0.2.7", "192.0.2.8", "192.0.2.9", "[2001:db8::7]"]
