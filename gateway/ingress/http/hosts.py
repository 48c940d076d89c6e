"""Which Host names are ours. A browser page that rebinds its own name to our address is told 421."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable

from gateway.measure.netlink import own_addresses
from gateway.plugin import GatewayError

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{0,5}))?")  # RFC 3986 §3.2.3: a port may be empty
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "ip6-localhost")
_ANY = ("0.0.0.0", "::", "")


def host_of(header: str) -> str:
    """The name in a Host header, lower-cased, without its port; an IPv6 address in its shortest form.

    Raises GatewayError where it is none.
    """
    found = _HOST.fullmatch(header.strip())
    try:
        if found is None or int(found[2] or 0) > 65535:
            raise ValueError
        return _bracketed(found[1][1:-1]) if found[1][0] == "[" else found[1].lower().rstrip(".")
    except ValueError:
        raise GatewayError(f"the Host header {header[:80]!r} is not a host name", code="bad_request") from None


def own_hosts(bound: Iterable[str]) -> frozenset[str]:
    """The names by which this host may be called now: bound addresses, host name, `.local` name, loopback.

    bound: addresses the listeners are bound to; an unspecified one stands for every interface's address. They come
    and go (DHCP): ask again when the network changed. Raises OSError where the kernel does not tell them.
    """
    bound = set(bound)
    name = socket.gethostname().lower()
    addresses = bound.difference(_ANY) | (own_addresses() if bound.intersection(_ANY) else set())
    return frozenset({*_LOOPBACK, name, f"{name.partition('.')[0]}.local", *map(_as_host, addresses)})


def _as_host(address: str) -> str:
    return _bracketed(address) if ":" in address else address.lower()


def _bracketed(address: str) -> str:
    """Without its zone: that is this host's own affair, and no client sends it."""
    return f"[{ipaddress.IPv6Address(address.partition('%')[0])}]"
