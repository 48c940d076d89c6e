"""Gateways in front of scripted upstreams, and shared configurations."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.testing import RunningGateway, running_gateway
from support.upstream import Script, Upstream

STUB = {"GATEWAY_BACKENDS__DESK__PLUGIN": "support.stub_backend:StubBackend"}
OFF_SITE_STUB = {
    "GATEWAY_BACKENDS__FAR__PLUGIN": "support.stub_backend:StubBackend",
    "GATEWAY_BACKENDS__FAR__SITE": "cloud",
}
ADD = '{"add":"/add"}'


def backend(name: str, plugin: str, **settings: str) -> dict[str, str]:
    """Return the variables of a backend; `settings` by their last name."""
    prefix = f"GATEWAY_BACKENDS__{name.upper()}__"
    return {f"{prefix}PLUGIN": plugin, **{prefix + key: text for key, text in settings.items()}}


def cloud(url: str, name: str = "cloud", **settings: str) -> dict[str, str]:
    """Return the variables of an `http` backend."""
    return backend(name, "http", URL=url, **settings)


@asynccontextmanager
async def relaying(
    script: Script, *, tls: ssl.SSLContext | None = None, environ: dict[str, str] | None = None, **settings: str
) -> AsyncIterator[tuple[RunningGateway, Upstream]]:
    """A gateway with a scripted upstream as backend `cloud`; `environ` adds variables."""
    async with (
        Upstream(script, tls=tls) as upstream,
        running_gateway(**cloud(upstream.url, **settings), **(environ or {})) as gateway,
    ):
        yield gateway, upstream
