"""Checks of a request's head for the data and admin listeners: framing, Host, Origin, headers.

Each check stops an attack. Request smuggling and parser differential: a proxy in front of the gateway, or a server
behind it, reads the same bytes as a different request. DNS rebinding: a web page points its own host name to the
gateway's address, and so reaches it with the user's browser.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aiohttp import HttpVersion10, HttpVersion11, web

from gateway.api.routes import MethodNotAllowed
from gateway.ingress.auth import CREDENTIAL_HEADERS
from gateway.ingress.header_names import check_header_names
from gateway.ingress.http.hosts import host_of
from gateway.plugin import GatewayError, TaskInvalid

# Some servers read a header with underscores as the same header with hyphens (parser differential).
_NEVER_UNDERSCORED = frozenset({"host", "content-length", "transfer-encoding", *CREDENTIAL_HEADERS})


def check_framing(request: web.BaseRequest) -> None:
    """Raise GatewayError for framing that another parser may read differently (request smuggling)."""
    if request.version not in (HttpVersion10, HttpVersion11):
        raise TaskInvalid("the HTTP version is not supported; use HTTP/1.1 or HTTP/1.0")
    if request.method in ("CONNECT", "TRACE"):
        raise MethodNotAllowed(f"the gateway does not support {request.method}", allow=("GET", "HEAD", "POST"))
    coding = request.headers.getall("Transfer-Encoding", [])
    if coding and [c.strip().lower() for c in coding] != ["chunked"]:
        raise TaskInvalid("the only Transfer-Encoding supported is `chunked`, once")
    if coding and "Content-Length" in request.headers:
        raise TaskInvalid("the request has both Content-Length and Transfer-Encoding; send one of them")
    if coding and request.version == HttpVersion10:  # RFC 9112 §6.1
        raise TaskInvalid("HTTP/1.0 has no Transfer-Encoding; send a Content-Length, or use HTTP/1.1")


def check_host(request: web.BaseRequest, allowed: frozenset[str]) -> None:
    """Raise GatewayError unless the Host header names this gateway (DNS rebinding)."""
    hosts = request.headers.getall("Host", [])
    if len(hosts) != 1:
        raise TaskInvalid(f"a request needs one Host header; this one has {len(hosts)}")
    host = host_of(hosts[0])
    if not request.raw_path.startswith("/") and request.raw_path != "*":
        authority = request.raw_path.partition("://")[2].partition("/")[0]
        if host_of(authority) != host:
            raise GatewayError("the request line and the Host header name different hosts", code="misdirected_request")
    if host not in allowed and "*" not in allowed:
        raise GatewayError(
            f"the Host header {host!r} is not a name of this gateway; add it to GATEWAY_ALLOWED_HOSTS to allow it",
            code="misdirected_request",
        )


def check_headers(request: web.BaseRequest) -> None:
    """Raise GatewayError for headers that another server may read differently (parser differential)."""
    for name in CREDENTIAL_HEADERS:
        if len(request.headers.getall(name, [])) > 1:
            raise TaskInvalid(f"the header {name} came twice; send it once")
    check_header_names(request.headers)
    for name in request.headers:
        if "_" in name and name.lower().replace("_", "-") in _NEVER_UNDERSCORED:
            raise TaskInvalid(f"some servers read the header {name!r} as another header; write it with hyphens")


def headers_of(request: web.BaseRequest) -> dict[str, str]:
    """The headers by lower-case name. Values of a repeated header are joined by commas (RFC 9110 §5.3)."""
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        key = name.lower()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return headers


def is_local(request: web.BaseRequest) -> bool:
    """Whether the client is on this host."""
    peer = request.transport.get_extra_info("peername") if request.transport else None
    return not isinstance(peer, tuple) or peer[0] in ("127.0.0.1", "::1") or peer[0].startswith("127.")


def names_in(certificate: Mapping[str, Any]) -> Iterator[str]:
    """The names in a verified client certificate, in the form of ssl.SSLSocket.getpeercert().

    Those of its subjectAltName, or without one the common name of its subject (RFC 6125 §6.4.4).
    """
    names = certificate.get("subjectAltName", ())
    yield from (name for _, name in names if isinstance(name, str))
    if not names:
        subject = (pair for part in certificate.get("subject", ()) for pair in part)
        yield from (name for field, name in subject if field == "commonName")
