"""The admin listener: what the gateway knows, for the operator on this host.

No endpoint takes a URL, a command or a template, and none changes or runs anything.
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
from gateway.ingress.http.checks import check_framing, check_host, check_origin, headers_of
from gateway.ingress.http.response import SERVER, HttpResponseWriter
from gateway.plugin import GatewayError, TaskInvalid, new_id
from gateway.registry import ManagedBackend
from gateway.telemetry import metrics

BREAKER_LEVELS: Mapping[str, int] = {"closed": 0, "half_open": 1, "open": 2}

_encode = msgspec.json.Encoder(enc_hook=str).encode


MAX_EXPLAINED_BYTES = 33_554_432
NO_ORIGINS: frozenset[str] = frozenset()  # a page in a browser has no business here, whoever made it

Page = Callable[[web.BaseRequest], Awaitable[web.Response]]


class Admin:
    """Answers on the admin listener. gate: where others than this host can reach it, for the keys that have `admin`."""

    def __init__(self, door: RequestHandler, allowed_hosts: frozenset[str], gate: Gate | None = None) -> None:
        self._door, self._hosts, self._gate = door, allowed_hosts, gate
        self._pages: Mapping[str, tuple[str, Page]] = {
            "/status": ("GET", self._status),
            "/metrics": ("GET", self._metrics),
            "/explain": ("POST", self._explain),
        }

    def allow(self, hosts: frozenset[str]) -> None:
        """Other hosts from now on: addresses come and go."""
        self._hosts = hosts

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serve one request."""
        response = await self._answered(request)
        response.headers.update(SERVER)
        return response

    async def _answered(self, request: web.BaseRequest) -> web.Response:
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
            raise GatewayError(f"the admin listener has {', '.join(self._pages)}", code="not_found")
        if request.method != method and (request.method, method) != ("HEAD", "GET"):
            allow = ("GET", "HEAD") if method == "GET" else (method,)
            raise MethodNotAllowed(f"{request.path} takes {method}", allow=allow)
        return page

    async def _status(self, request: web.BaseRequest) -> web.Response:
        body = status(self._door.dispatcher, self._door.is_ready())
        return web.Response(body=_encode(body), content_type="application/json")

    async def _metrics(self, request: web.BaseRequest) -> web.Response:
        refresh_gauges(self._door.dispatcher)
        return web.Response(text=metrics.exposition(), content_type="text/plain", charset="utf-8")

    async def _explain(self, request: web.BaseRequest) -> web.Response:
        path = request.query.get("path", "")
        if not path.startswith("/"):
            raise TaskInvalid("say which endpoint: /explain?path=/v1/chat/completions", param="path")
        body = await read_body(
            request, HttpResponseWriter(request, {}, close_after=False), MAX_EXPLAINED_BYTES, self._door.room
        )
        explained = self._door.explain(path, headers_of(request), body)
        return web.Response(body=_encode(explained), content_type="application/json")


def status(dispatcher: Dispatcher, is_ready: bool) -> dict[str, Any]:
    """Everything known of backends, breakers, lanes, link, load and learned models."""
    measured = dispatcher.measurements.status()
    lanes = dispatcher.scheduler.status()
    members = dispatcher.registry.members.values()
    return {
        "version": __version__,
        "ready": is_ready,
        "load": measured["load"],
        "backends": {
            member.name: {
                **_member_status(member),
                "lane": lanes.get(member.name),
                "measured": measured["backends"].get(member.name),
            }
            for member in members
        },
    }


def _member_status(member: ManagedBackend) -> dict[str, Any]:
    return {
        "plugin": member.plugin,
        "state": member.state,
        "error": member.cause or member.error,
        "unwell": member.unwell,
        "site": member.site,
        "slots": member.slots,
        "workers": member.workers,
        "models": member.models,
        "tasks": member.tasks,
        "breaker": {"state": member.breaker.state, "why": member.breaker.why_open},
    }


def refresh_gauges(dispatcher: Dispatcher) -> None:
    """Bring the gauges up to date; they are only read when somebody asks."""
    waiting, busy = dispatcher.scheduler.waiting(), dispatcher.scheduler.busy()
    metrics.forget_backends_but(dispatcher.registry.members)
    for name, member in dispatcher.registry.members.items():
        link = dispatcher.measurements.link(name)
        metrics.LANE_WAITING.set(waiting.get(name, 0), backend=name)
        metrics.LANE_BUSY.set(busy.get(name, 0), backend=name)
        metrics.BREAKER.set(BREAKER_LEVELS[member.breaker.state], backend=name)
        metrics.RTT.set(link.rtt.value, backend=name)
        metrics.LINK_RATE.set(link.uplink_bytes_per_s.value, backend=name, direction="up")
        metrics.LINK_RATE.set(link.downlink_bytes_per_s.value, backend=name, direction="down")
    for resource, value in dispatcher.measurements.load().items():
        metrics.LOAD.set(value, resource=resource)
