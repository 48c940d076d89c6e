"""Hears from the kernel that the network changed, before any request has to find out.

rtnetlink (rtnetlink(7)) tells of links, addresses and routes; what it says is not parsed, only taken as a
reason to look: is there still a way to an address, over an interface that has a carrier?
"""

from __future__ import annotations

import fcntl
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Self

# linux/rtnetlink.h: RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
_READ_BYTES = 65_536
_ANY_PORT = 9  # the socket is only connected, which asks the routing table; nothing is sent
_SIOCGIFADDR = 0x8915  # linux/sockios.h


class CarrierWatch:
    """A netlink socket to be polled: readable when something changed. Needs no privileges."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.setblocking(False)
        self._socket.bind((0, _GROUPS))

    def fileno(self) -> int:
        """What to poll."""
        return self._socket.fileno()

    def drain(self) -> bool:
        """Take what was told; whether there was anything. A full buffer (ENOBUFS) is news, too."""
        told = False
        with suppress(BlockingIOError):
            while True:
                try:
                    self._socket.recv(_READ_BYTES)
                except BlockingIOError:
                    raise
                except OSError:
                    return True
                told = True
        return told

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def way_to(address: str, net: Path = Path("/sys/class/net")) -> str | None:
    """The source address a packet to `address` (an IP address) would have now; None without a route or a carrier.

    Asks the kernel only; nothing is sent.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, _ANY_PORT))
        except OSError:
            return None
        source = str(probe.getsockname()[0])
        interface = _interface_with(source, probe) if family == socket.AF_INET else None
    return source if interface is None or _has_carrier(net / interface) else None


def _interface_with(source: str, probe: socket.socket) -> str | None:
    """The interface whose own IPv4 address is `source`; None where none has it."""
    for _, name in socket.if_nameindex():
        with suppress(OSError):  # an interface without an address
            reply = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            if socket.inet_ntoa(reply[20:24]) == source:
                return name
    return None


def _has_carrier(interface: Path) -> bool:
    """What the kernel says of its carrier; reading it fails with EINVAL where the interface is down."""
    try:
        return (interface / "carrier").read_text().strip() != "0"
    except FileNotFoundError:
        return True
    except OSError:
        return False
