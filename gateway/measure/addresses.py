"""Every address this host has now, as rtnetlink(7) tells it: one dump of all (RTM_GETADDR), without privileges."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

# linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h
_HEAD = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix length, flags, scope, interface
_ATTRIBUTE = struct.Struct("=HH")  # rtattr: length, type
_ERROR, _DONE, _NEWADDR, _GETADDR = 2, 3, 20, 22
_REQUEST_DUMP = 0x1 | 0x300  # NLM_F_REQUEST, NLM_F_DUMP
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_READ_BYTES = 65_536
_PATIENCE_S = 1.0  # the kernel answers at once


def own_addresses() -> frozenset[str]:
    """The addresses of all interfaces, IPv4 and IPv6, without brackets or zones. Raises OSError."""
    found: set[str] = set()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as kernel:
        kernel.settimeout(_PATIENCE_S)
        ask = _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        kernel.send(_HEAD.pack(_HEAD.size + len(ask), _GETADDR, _REQUEST_DUMP, 1, 0) + ask)
        while True:
            for kind, body in _messages(kernel.recv(_READ_BYTES)):
                if kind == _DONE:
                    return frozenset(found)
                if kind == _ERROR:
                    raise OSError(-struct.unpack_from("=i", body)[0], "the kernel does not tell this host's addresses")
                if kind == _NEWADDR and (address := _address(body)):
                    found.add(address)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _HEAD.size:
        length, kind, *_ = _HEAD.unpack_from(data)
        yield kind, data[_HEAD.size : length]
        data = data[_aligned(length) :]


def _address(message: bytes) -> str | None:
    """Its own, where there is one: on a link from point to point IFA_ADDRESS is the other end's."""
    family = _ADDRESS.unpack_from(message)[0]
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    attributes = dict(_attributes(message[_ADDRESS.size :]))
    packed = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
    return socket.inet_ntop(family, packed) if packed else None


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        yield kind, data[_ATTRIBUTE.size : length]
        data = data[_aligned(length) :]


def _aligned(length: int) -> int:
    return max((length + 3) & ~3, 4)  # never 0, which would not end
