"""CORS: rejects web pages of other origins, and answers preflight requests."""

from __future__ import annotations

import re

from aiohttp import web

from gateway.plugin import GatewayError

_HEADER_NAMES = re.compile(r"[A-Za-z0-9-]{1,60}(\s*,\s*[A-Za-z0-9-]{1,60}){0,60}")


def check_origin(request: web.BaseRequest, allowed: frozenset[str]) -> None:
    """Raise GatewayError for a web page of an origin that is not allowed (cross-site request)."""
    origin = request.headers.get("Origin")
    if origin is not None and origin not in allowed:
        raise GatewayError(
            f"web pages of the origin {origin[:80]!r} may not use this gateway; "
            f"add the origin to GATEWAY_ALLOWED_ORIGINS to allow it",
            code="forbidden",
        )


def preflight_of(request: web.BaseRequest) -> dict[str, str]:
    """The response headers for a CORS preflight request. Any header is allowed, since SDKs add their own."""
    wanted = request.headers.get("Access-Control-Request-Headers", "")
    return {
        "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
        "Access-Control-Allow-Headers": wanted if _HEADER_NAMES.fullmatch(wanted) else "authorization, content-type",
        "Access-Control-Max-Age": "600",
    }
