"""Addresses in settings: listeners, host names and the broker's URL, parsed and validated. No name is resolved."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

MAX_PORT = 65535

_NAME = re.compile(r"[a-z0-9._-]*[a-z0-9_-]\.?")
_V6 = re.compile(r"\[([0-9a-f:.]+)\](?::[0-9]{0,5})?|([0-9a-f:.]+)")


@dataclass(frozen=True, slots=True)
class TcpListener:
    """The address of a TCP listener; port 0 takes any free port."""

    host: str
    port: int

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it; a name other than `localhost` counts as public."""
        return _is_loopback(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixListener:
    """The path of a Unix socket; the permissions of its folder decide which users can connect."""

    path: str
    is_local = True

    def __str__(self) -> str:
        return f"unix:{self.path}"


Listener = TcpListener | UnixListener


def parse_listener(text: str) -> Listener:
    """Parse `host:port`, `[v6]:port` or `unix:/path`. Raises ValueError with the reason."""
    text = text.strip()
    if text.startswith("unix:"):
        return _parse_unix(text, text.removeprefix("unix:"))
    if "://" in text:
        raise ValueError(f"{text!r} is a URL; a listener is host:port, [v6]:port or unix:/path")
    host, colon, port = text.rpartition(":")
    if not colon:
        raise ValueError(f"{text!r} has no port; a listener is host:port, [v6]:port or unix:/path")
    return TcpListener(_parse_host(text, host), _parse_port(text, port))


def parse_host(text: str) -> str:
    """Parse a name of a Host header, which is compared without port: `box.example`, `10.0.0.1` or `[::1]`.

    A port is dropped, an IPv6 address gets brackets. Raises ValueError with the reason if no client can send the name.
    """
    name = text.strip().lower()
    if name.count(":") > 1:
        return _parse_ipv6(text, name)
    name, _, port = name.partition(":")
    if not _NAME.fullmatch(name) or (port and not (port.isascii() and port.isdecimal())):
        raise ValueError(
            f"{text!r} is not a host name or address; write a name such as box.example or an address such as 10.0.0.1 "
            "or [::1]; write a name with non-ASCII letters as browsers send it, xn--…"
        )
    return name.rstrip(".")


def _parse_ipv6(text: str, name: str) -> str:
    """Parse `::1`, `[::1]` or `[::1]:8080`."""
    found = _V6.fullmatch(name)
    try:
        return f"[{ipaddress.IPv6Address(found[1] or found[2] if found else '')}]"
    except ValueError:
        raise ValueError(f"{text!r} is not an IPv6 address; write it like [2001:db8::1], without a zone") from None


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class MqttUrl:
    """The address of an MQTT broker."""

    host: str
    port: int
    is_tls: bool

    @property
    def is_local(self) -> bool:
        return _is_loopback(self.host)

    def __str__(self) -> str:
        return f"{'mqtts' if self.is_tls else 'mqtt'}://{TcpListener(self.host, self.port)}"


def parse_mqtt_url(text: str) -> MqttUrl:
    """Parse `mqtt://host[:port]` or `mqtts://host[:port]`. Raises ValueError with the reason."""
    scheme, has_scheme, rest = text.strip().partition("://")
    ports = {"mqtt": 1883, "mqtts": 8883}
    if not has_scheme or scheme.lower() not in ports:
        raise ValueError("this is not the URL of a broker; write mqtt://host:1883 or mqtts://host:8883")
    if "@" in rest:
        raise ValueError("the URL contains a user or password; set USERNAME and PASSWORD instead")
    rest = rest.removesuffix("/")
    has_port = rest.rpartition("]")[2].count(":") == 1
    where = parse_listener(rest if has_port else f"{rest}:{ports[scheme.lower()]}")
    if not isinstance(where, TcpListener) or where.port == 0:
        raise ValueError(f"{text!r} has no host and port of a broker")
    return MqttUrl(where.host, where.port, scheme.lower() == "mqtts")


def _parse_unix(text: str, path: str) -> UnixListener:
    if not path.startswith("/") or path.endswith("/"):
        raise ValueError(f"{text!r} has no absolute path of a socket; write unix:/run/edge-gateway/http.sock")
    return UnixListener(path)


def _parse_port(text: str, port: str) -> int:
    if not (port.isascii() and port.isdigit()) or int(port) > MAX_PORT:
        raise ValueError(f"{text!r} has no port between 0 and {MAX_PORT} after its last colon")
    return int(port)


def _parse_host(text: str, host: str) -> str:
    if host in ("", "*"):
        raise ValueError(
            f"{text!r} has no address; to listen on every IPv4 address write 0.0.0.0, on every address [::]"
        )
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise ValueError(f"{text!r} has no IPv6 address between its brackets") from None
    if ":" in host:
        raise ValueError(f"{text!r} looks like IPv6; write the address in brackets: [{host}]:PORT")
    if any(character.isspace() or character in "/@[]?#" for character in host):
        raise ValueError(f"{text!r} has no host name or address before its port")
    return host
