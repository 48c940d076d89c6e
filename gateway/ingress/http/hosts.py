"""The host names of this gateway. Any other name in a Host header gets status 421 (DNS rebinding)."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable

from gateway.measure.netlink import own_addresses
from gateway.plugin import GatewayError

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{0,5}))?")  # RFC 3986 §3.2.3: a port may be empty
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "ip6-localhost")
_UNSPECIFIED = ("0.0.0.0", "::", "")


def host_of(header: str) -> str:
    """The name in a Host header: lower case, without the port; an IPv6 address in its shortest form.

    Raises GatewayError for anything else.
    """
    found = _HOST.fullmatch(header.strip())
    try:
        if found is None or int(found[2] or 0) > 65535:
            raise ValueError
        return _bracketed(found[1][1:-1]) if found[1][0] == "[" else found[1].lower().rstrip(".")
    except ValueError:
        raise GatewayError(f"the Host header {header[:80]!r} is not a host name", code="bad_request") from None


def own_hosts(bound: Iterable[str]) -> frozenset[str]:
    """The names of this host: bound addresses, host name, `.local` name, loopback.

    bound: addresses of the listeners; an unspecified address (`0.0.0.0`, `::`) stands for the addresses of all
    interfaces. They change with the network (DHCP), so call this again after a change. Raises OSError if the kernel
    does not list the addresses.
    """
    bound = set(bound)
    name = socket.gethostname().lower()
    addresses = bound.difference(_UNSPECIFIED) | (own_addresses() if bound.intersection(_UNSPECIFIED) else set())
    return frozenset({*_LOOPBACK, name, f"{name.partition('.')[0]}.local", *map(_as_host, addresses)})


def _as_host(address: str) -> str:
    return _bracketed(address) if ":" in address else address.lower()


def _bracketed(address: str) -> str:
    """An IPv6 address as in a URL, without its zone: a zone is local to this host, and clients do not send it."""
    return f"[{ipaddress.IPv6Address(address.partition('%')[0])}]"
