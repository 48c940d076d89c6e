"""Which Host names are ours. A browser page that rebinds its own name to our address is told 421."""

from __future__ import annotations

import fcntl
import re
import socket
import struct
from collections.abc import Iterable

from gateway.plugin import GatewayError

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "ip6-localhost")
_SIOCGIFADDR = 0x8915  # linux/sockios.h


def host_of(header: str) -> str:
    """The name in a Host header, lower-cased, without its port. Raises GatewayError where it is none."""
    found = _HOST.fullmatch(header.strip())
    if found is None or int(found[2] or 0) > 65535:
        raise GatewayError(f"the Host header {header[:80]!r} is not a host name", code="bad_request")
    return found[1].lower().rstrip(".")


def own_hosts(bound: Iterable[str]) -> frozenset[str]:
    """The names by which this host may be called: bound addresses, host name, `.local` name, loopback.

    bound: addresses the listeners are bound to; an unspecified one stands for every interface's address.
    """
    hosts = set(_LOOPBACK)
    name = socket.gethostname().lower()
    hosts |= {name, f"{name.partition('.')[0]}.local"}
    for address in bound:
        if address in ("0.0.0.0", "::", ""):
            hosts |= set(_interface_addresses())
        else:
            hosts.add(f"[{address.lower()}]" if ":" in address else address.lower())
    return frozenset(hosts)


def _interface_addresses() -> list[str]:
    out = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, interface in socket.if_nameindex():
            try:
                reply = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
            except OSError:  # an interface without an IPv4 address
                continue
            out.append(socket.inet_ntoa(reply[20:24]))
    try:
        with open("/proc/net/if_inet6") as lines:
            out += [f"[{socket.inet_ntop(socket.AF_INET6, bytes.fromhex(line.split()[0]))}]" for line in lines]
    except OSError:  # no IPv6 here
        pass
    return out
