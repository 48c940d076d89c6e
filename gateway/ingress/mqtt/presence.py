"""What a gateway says about itself, unasked: whether it is there, and how it is."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from gateway import __version__
from gateway.dispatch import Dispatcher
from gateway.ingress.mqtt.properties import Publication
from gateway.ingress.mqtt.topics import Topics


def status(topics: Topics, *, is_online: bool) -> Publication:
    """Whether it is there; retained, so that who comes later knows too. `offline` is also its will."""
    return Publication(topic=topics.status, payload=b"online" if is_online else b"offline", retain=True)


def telemetry(topics: Topics, dispatcher: Dispatcher, *, is_ready: bool) -> Publication:
    """How it is: load, and for each backend its lane, its breaker and the way to it; unknown is null."""
    said = {
        "ts": round(time.time(), 3),
        "host": topics.host,
        "version": __version__,
        "ready": is_ready,
        "load": dispatcher.measurements.load(),
        "backends": {name: _backend(dispatcher, name) for name in dispatcher.registry.members},
    }
    body = msgspec.json.encode(said)
    return Publication(topic=topics.telemetry, payload=body, qos=0, content_type="application/json")


def _backend(dispatcher: Dispatcher, name: str) -> dict[str, Any]:
    member, view = dispatcher.registry.members[name], dispatcher.measurements.link(name)
    lane = dispatcher.scheduler.status().get(name, {})
    return {
        "site": member.site,
        "state": member.state,
        "breaker": member.breaker.state,
        "slots": lane.get("slots"),
        "busy": lane.get("busy"),
        "waiting": lane.get("waiting"),
        "link_state": view.state if member.is_remote else None,
        "rtt_ms": None if view.rtt.value is None else round(view.rtt.value * 1000, 3),
        "uplink_bytes_per_s": view.uplink_bytes_per_s.value,
        "downlink_bytes_per_s": view.downlink_bytes_per_s.value,
    }
