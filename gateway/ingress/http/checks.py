"""Checks of a request's head that the data listener and the admin listener share: framing, Host, Origin, headers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from aiohttp import HttpVersion10, HttpVersion11, web

from gateway.api.routes import MethodNotAllowed
from gateway.ingress.auth import CREDENTIAL_HEADERS
from gateway.ingress.http.hosts import host_of
from gateway.plugin import GatewayError, TaskInvalid


def check_host(request: web.BaseRequest, allowed: frozenset[str]) -> None:
    """Raises GatewayError unless the request is for us by a name of ours."""
    hosts = request.headers.getall("Host", [])
    if len(hosts) != 1:
        raise TaskInvalid(f"a request needs one Host header; this one has {len(hosts)}")
    named = host_of(hosts[0])
    if not request.raw_path.startswith("/") and request.raw_path != "*":
        authority = request.raw_path.partition("://")[2].partition("/")[0]
        if host_of(authority) != named:
            raise GatewayError("the request line and the Host header name different hosts", code="misdirected_request")
    if named not in allowed and "*" not in allowed:
        raise GatewayError(
            f"this gateway is not called {named!r}; add it to GATEWAY_ALLOWED_HOSTS if it should be",
            code="misdirected_request",
        )


def check_origin(request: web.BaseRequest, allowed: frozenset[str]) -> None:
    """Raises GatewayError for a browser's page of an origin that may not ask."""
    origin = request.headers.get("Origin")
    if origin is not None and origin not in allowed:
        raise GatewayError(
            f"pages of {origin[:80]!r} may not use this gateway; see GATEWAY_ALLOWED_ORIGINS", code="forbidden"
        )


def headers_of(request: web.BaseRequest) -> dict[str, str]:
    """Its headers by lower-cased name; those of one that came twice are one list (RFC 9110 §5.3)."""
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        key = name.lower()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    return headers


def check_framing(request: web.BaseRequest) -> None:
    """Raises GatewayError for what another parser might read differently, so that nobody knows where it ends."""
    if request.version not in (HttpVersion10, HttpVersion11):
        raise TaskInvalid("the only versions of HTTP spoken here are 1.1 and 1.0")
    if request.method in ("CONNECT", "TRACE"):
        raise MethodNotAllowed(f"{request.method} is not for gateways", allow=("GET", "HEAD", "POST"))
    coding = request.headers.getall("Transfer-Encoding", [])
    if coding and [c.strip().lower() for c in coding] != ["chunked"]:
        raise TaskInvalid("the only Transfer-Encoding understood is `chunked`, once")
    if coding and "Content-Length" in request.headers:
        raise TaskInvalid("a request has either Content-Length or Transfer-Encoding, not both")
    if coding and request.version == HttpVersion10:  # RFC 9112 §6.1
        raise TaskInvalid("HTTP/1.0 has no Transfer-Encoding; send a Content-Length, or HTTP/1.1")


def check_headers(request: web.BaseRequest) -> None:
    """Raises GatewayError where another server might read another's header, or another of two."""
    for name in CREDENTIAL_HEADERS:
        if len(request.headers.getall(name, [])) > 1:
            raise TaskInvalid(f"the header {name} came twice; send it once")
    for name in request.headers:
        if "_" in name and name.lower().replace("_", "-") in _NEVER_UNDERSCORED:
            raise TaskInvalid(f"the header {name!r} is one that some servers take for another; write it with hyphens")


_NEVER_UNDERSCORED = frozenset({"host", "content-length", "transfer-encoding", *CREDENTIAL_HEADERS})
_HEADER_NAMES = re.compile(r"[A-Za-z0-9-]{1,60}(\s*,\s*[A-Za-z0-9-]{1,60}){0,60}")


def preflight_of(request: web.BaseRequest) -> dict[str, str]:
    """What a page of an allowed origin may send: any header, since SDKs add their own."""
    wanted = request.headers.get("Access-Control-Request-Headers", "")
    return {
        "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
        "Access-Control-Allow-Headers": wanted if _HEADER_NAMES.fullmatch(wanted) else "authorization, content-type",
        "Access-Control-Max-Age": "600",
    }


def is_local(request: web.BaseRequest) -> bool:
    """Whether the client is on this host."""
    peer = request.transport.get_extra_info("peername") if request.transport else None
    return not isinstance(peer, tuple) or peer[0] in ("127.0.0.1", "::1") or peer[0].startswith("127.")


def names_in(certificate: Mapping[str, Any]) -> Iterator[str]:
    """The names in a client certificate that TLS has checked, as ssl.SSLSocket.getpeercert() tells it.

    Those of its subjectAltName; where it has none, the common name of its subject (RFC 6125 §6.4.4).
    """
    names = certificate.get("subjectAltName", ())
    yield from (name for _, name in names if isinstance(name, str))
    if not names:
        subject = (pair for part in certificate.get("subject", ()) for pair in part)
        yield from (name for field, name in subject if field == "commonName")
