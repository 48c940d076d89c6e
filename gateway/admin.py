"""The admin listener: status, metrics and routing explanations, for the operator on this host.

Endpoints only read. Their input is never used as a URL, a command or a template (SSRF, command and template injection).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from gateway import __version__
from gateway.admit import Gate
from gateway.api.errors import envelope, error_headers, status_of
from gateway.api.routes import MethodNotAllowed
from gateway.dispatch import Dispatcher
from gateway.ingress.auth import check_admin
from gateway.ingress.handler import RequestHandler
from gateway.ingress.http.body import read_body
from gateway.ingress.http.cors import check_origin
from gateway.ingress.http.request_checks import check_framing, check_host, headers_of
from gateway.ingress.http.response_writer import SERVER, HttpResponseWriter
from gateway.plugin import GatewayError, TaskInvalid, new_id
from gateway.registry import ManagedBackend
from gateway.telemetry import metrics

BREAKER_LEVELS: Mapping[str, int] = {"closed": 0, "half_open": 1, "open": 2}

_encode = msgspec.json.Encoder(enc_hook=str).encode

MAX_EXPLAINED_BYTES = 33_554_432
NO_ORIGINS: frozenset[str] = frozenset()  # web pages may not use the admin listener (cross-site request)

Page = Callable[[web.BaseRequest], Awaitable[web.Response]]


class Admin:
    """Serves the admin listener.

    gate: requires a key that has `admin`; None if only this host can reach the listener.
    """

    def __init__(self, handler: RequestHandler, allowed_hosts: frozenset[str], gate: Gate | None = None) -> None:
        self._handler, self._hosts, self._gate = handler, allowed_hosts, gate
        self._pages: Mapping[str, tuple[str, Page]] = {
            "/status": ("GET", self._status),
            "/metrics": ("GET", self._metrics),
            "/explain": ("POST", self._explain),
        }

    def allow(self, hosts: frozenset[str]) -> None:
        """Replace the allowed hosts: the addresses of this host change."""
        self._hosts = hosts

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serve one request."""
        response = await self._respond(request)
        response.headers.update(SERVER)
        return response

    async def _respond(self, request: web.BaseRequest) -> web.Response:
        try:
            check_framing(request)
            check_host(request, self._hosts)
            check_origin(request, NO_ORIGINS)
            if self._gate is not None:
                check_admin(self._gate, headers_of(request))
            return await self._page(request)(request)
        except GatewayError as exc:
            request_id = new_id()
            headers = {"Content-Type": "application/json", "x-request-id": request_id, **error_headers(exc, 0)}
            return web.Response(status=status_of(exc), body=_encode(envelope(exc, request_id)), headers=headers)

    def _page(self, request: web.BaseRequest) -> Page:
        method, page = self._pages.get(request.path, ("", None))
        if page is None:
            raise GatewayError(f"the admin listener has only {', '.join(self._pages)}", code="not_found")
        if request.method != method and (request.method, method) != ("HEAD", "GET"):
            allow = ("GET", "HEAD") if method == "GET" else (method,)
            raise MethodNotAllowed(f"{request.path} takes {method}", allow=allow)
        return page

    async def _status(self, request: web.BaseRequest) -> web.Response:
        body = status(self._handler.dispatcher, self._handler.is_ready())
        return web.Response(body=_encode(body), content_type="application/json")

    async def _metrics(self, request: web.BaseRequest) -> web.Response:
        refresh_gauges(self._handler.dispatcher)
        return web.Response(text=metrics.exposition(), content_type="text/plain", charset="utf-8")

    async def _explain(self, request: web.BaseRequest) -> web.Response:
        path = request.query.get("path", "")
        if not path.startswith("/"):
            raise TaskInvalid("name the endpoint to explain, as in /explain?path=/v1/chat/completions", param="path")
        body = await read_body(
            request,
            HttpResponseWriter(request, {}, close_after=False),
            MAX_EXPLAINED_BYTES,
            self._handler.shedding.bodies,
        )
        explanation = self._handler.explain(path, headers_of(request), body)
        return web.Response(body=_encode(explanation), content_type="application/json")


def status(dispatcher: Dispatcher, is_ready: bool) -> dict[str, Any]:
    """The state of backends, breakers, lanes, links and load, and the learned models."""
    measured = dispatcher.measurements.status()
    lanes = dispatcher.scheduler.status()
    return {
        "version": __version__,
        "ready": is_ready,
        "load": measured["load"],
        "backends": {
            name: {
                **_backend_status(backend),
                "lane": lanes.get(name),
                "measured": measured["backends"].get(name),
            }
            for name, backend in dispatcher.registry.members.items()
        },
    }


def _backend_status(backend: ManagedBackend) -> dict[str, Any]:
    return {
        "plugin": backend.plugin,
        "state": backend.state,
        "error": backend.cause or backend.error,
        "unwell": backend.unhealthy_reason,
        "problems": backend.problems,
        "site": backend.site,
        "slots": backend.slots,
        "workers": backend.workers,
        "models": backend.models,
        "tasks": backend.tasks,
        "breaker": {"state": backend.breaker.state, "why": backend.breaker.why_open},
        "rests": backend.rests.status(),
    }


def refresh_gauges(dispatcher: Dispatcher) -> None:
    """Update the gauges; called on each read of the metrics, since their values are not pushed."""
    waiting, busy = dispatcher.scheduler.waiting(), dispatcher.scheduler.busy()
    metrics.retain_backends(dispatcher.registry.members)
    for name, backend in dispatcher.registry.members.items():
        link = dispatcher.measurements.link(name)
        metrics.LANE_WAITING.set(waiting.get(name, 0), backend=name)
        metrics.LANE_BUSY.set(busy.get(name, 0), backend=name)
        metrics.BREAKER.set(BREAKER_LEVELS[backend.breaker.state], backend=name)
        metrics.RTT.set(link.rtt.value, backend=name)
        metrics.LINK_RATE.set(link.uplink_bytes_per_s.value, backend=name, direction="up")
        metrics.LINK_RATE.set(link.downlink_bytes_per_s.value, backend=name, direction="down")
    for resource, value in dispatcher.measurements.load().items():
        metrics.LOAD.set(value, resource=resource)
