"""Network state from the kernel, over rtnetlink(7): change notifications and this host's addresses.

A notification is not parsed. It is only the reason to check again whether there is a route to an address over an
interface with a carrier. The addresses come from one dump (RTM_GETADDR). Neither needs privileges.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

# linux/rtnetlink.h: RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
_READ_BYTES = 65_536
_ANY_PORT = 9  # connect() on a UDP socket only consults the routing table; nothing is sent
_SIOCGIFADDR = 0x8915  # linux/sockios.h

# linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface
_ATTRIBUTE = struct.Struct("=HH")  # rtattr: length, type
_ERROR, _DONE, _NEWADDR, _GETADDR = 2, 3, 20, 22
_REQUEST_DUMP = 0x1 | 0x300  # NLM_F_REQUEST, NLM_F_DUMP
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_REPLY_TIMEOUT_S = 1.0  # the kernel answers at once


class CarrierWatch:
    """A netlink socket to poll: it is readable after a link, address or route has changed."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._socket.setblocking(False)
        self._socket.bind((0, _GROUPS))

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> bool:
        """Discard all pending notifications; True if there was at least one.

        A full buffer (ENOBUFS) counts as a notification: the kernel has dropped some.
        """
        has_changed = False
        with suppress(BlockingIOError):
            while True:
                try:
                    self._socket.recv(_READ_BYTES)
                except BlockingIOError:
                    raise
                except OSError:
                    return True
                has_changed = True
        return has_changed

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ── routes ───────────────────────────────────────────────────────────────────────────────────────


def source_address_for(address: str, net: Path = Path("/sys/class/net")) -> str | None:
    """The source address of a packet sent now to the IP address `address`; None without a route or a carrier.

    Consults the kernel's routing table only; nothing is sent.
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
    """The interface with the IPv4 address `source`; None if no interface has it."""
    for _, name in socket.if_nameindex():
        with suppress(OSError):  # an interface without an address
            reply = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            if socket.inet_ntoa(reply[20:24]) == source:
                return name
    return None


def _has_carrier(interface: Path) -> bool:
    try:
        return (interface / "carrier").read_text().strip() != "0"
    except FileNotFoundError:
        return True
    except OSError:  # EINVAL: the interface is down
        return False


# ── addresses ────────────────────────────────────────────────────────────────────────────────────


def own_addresses() -> frozenset[str]:
    """The addresses of all interfaces, IPv4 and IPv6, without brackets or zones. Raises OSError."""
    found: set[str] = set()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as kernel:
        kernel.settimeout(_REPLY_TIMEOUT_S)
        request = _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        kernel.send(_HEADER.pack(_HEADER.size + len(request), _GETADDR, _REQUEST_DUMP, 1, 0) + request)
        while True:
            for kind, body in _messages(kernel.recv(_READ_BYTES)):
                if kind == _DONE:
                    return frozenset(found)
                if kind == _ERROR:
                    raise OSError(-struct.unpack_from("=i", body)[0], "the kernel does not list this host's addresses")
                if kind == _NEWADDR and (address := _address(body)):
                    found.add(address)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _HEADER.size:
        length, kind, *_ = _HEADER.unpack_from(data)
        yield kind, data[_HEADER.size : length]
        data = data[_aligned(length) :]


def _address(message: bytes) -> str | None:
    """The interface's own address. IFA_LOCAL comes first: on a point-to-point link IFA_ADDRESS is the peer's."""
    family = _IFADDRMSG.unpack_from(message)[0]
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    attributes = dict(_attributes(message[_IFADDRMSG.size :]))
    packed = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
    return socket.inet_ntop(family, packed) if packed else None


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        yield kind, data[_ATTRIBUTE.size : length]
        data = data[_aligned(length) :]


def _aligned(length: int) -> int:
    return max((length + 3) & ~3, 4)  # at least 4: a length of 0 would loop forever
