"""The admin listener: what the gateway knows, for the operator on this host.

No endpoint takes a URL, a command or a template, and none changes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from gateway import __version__
from gateway.dispatch import Dispatcher
from gateway.ingress.errors import envelope, status_of
from gateway.ingress.http import check_framing, check_host
from gateway.plugin import GatewayError, new_id
from gateway.registry import Member
from gateway.telemetry import metrics

BREAKER_LEVELS: Mapping[str, int] = {"closed": 0, "half_open": 1, "open": 2}

_encode = msgspec.json.Encoder(enc_hook=str).encode


class Admin:
    """Answers on the admin listener."""

    def __init__(self, dispatcher: Dispatcher, is_ready: Callable[[], bool], allowed_hosts: frozenset[str]) -> None:
        self._dispatcher, self._is_ready, self._hosts = dispatcher, is_ready, allowed_hosts
        self._pages: Mapping[str, Callable[[], web.Response]] = {"/status": self._status, "/metrics": self._metrics}

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Serve one request."""
        try:
            check_framing(request)
            check_host(request, self._hosts)
            return self._page(request)()
        except GatewayError as exc:
            body = _encode(envelope(exc, new_id()))
            return web.Response(status=status_of(exc), body=body, content_type="application/json")

    def _page(self, request: web.BaseRequest) -> Callable[[], web.Response]:
        page = self._pages.get(request.path)
        if page is None:
            raise GatewayError(f"the admin listener has {', '.join(self._pages)}", code="not_found")
        if request.method not in ("GET", "HEAD"):
            raise GatewayError(f"{request.path} is read with GET", code="method_not_allowed")
        return page

    def _status(self) -> web.Response:
        return web.Response(body=_encode(status(self._dispatcher, self._is_ready())), content_type="application/json")

    def _metrics(self) -> web.Response:
        refresh_gauges(self._dispatcher)
        return web.Response(text=metrics.exposition(), content_type="text/plain", charset="utf-8")


def status(dispatcher: Dispatcher, is_ready: bool) -> dict[str, Any]:
    """Everything known of backends, breakers, lanes, link, load and learned models."""
    measured = dispatcher.board.status()
    lanes = dispatcher.lanes.status()
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


def _member_status(member: Member) -> dict[str, Any]:
    return {
        "plugin": member.plugin,
        "state": member.state,
        "error": member.error,
        "unwell": member.unwell,
        "site": member.site,
        "slots": member.slots,
        "models": member.models,
        "tasks": member.tasks,
        "breaker": {"state": member.breaker.state, "why": member.breaker.why_open},
    }


def refresh_gauges(dispatcher: Dispatcher) -> None:
    """Bring the gauges up to date; they are only read when somebody asks."""
    waiting, busy = dispatcher.lanes.waiting(), dispatcher.lanes.busy()
    for name, member in dispatcher.registry.members.items():
        link = dispatcher.board.link(name)
        metrics.LANE_WAITING.set(waiting.get(name, 0), backend=name)
        metrics.LANE_BUSY.set(busy.get(name, 0), backend=name)
        metrics.BREAKER.set(BREAKER_LEVELS[member.breaker.state], backend=name)
        metrics.RTT.set(link.rtt.value, backend=name)
        metrics.LINK_RATE.set(link.uplink_bytes_per_s.value, backend=name, direction="up")
        metrics.LINK_RATE.set(link.downlink_bytes_per_s.value, backend=name, direction="down")
    for resource, value in dispatcher.board.load().items():
        metrics.LOAD.set(value, resource=resource)
