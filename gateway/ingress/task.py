"""Builds the task of a request from its parsed body, its headers and the operator's limits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from gateway.api.json_bounds import MAX_ITEMS
from gateway.api.operation import ParsedRequest
from gateway.dispatch import Limits
from gateway.plugin import Task, TaskInvalid
from gateway.registry import AUTO

# Shares of the time that OpenAI's clients wait without receiving a byte. Before it ends, an error must have reached the
# client, or, in a stream, another backend must have continued.
ANSWER_SHARE, STALL_SHARE = 0.95, 0.6
STREAM_DEADLINE_S = 86_400.0  # a stream is limited by its first content and its gaps, not by its length

# Request headers that are passed on to backends. All others are dropped: credentials, cookies, addresses.
PASSED_ON = (
    "traceparent", "tracestate", "accept-language", "openai-beta", "anthropic-version", "anthropic-beta", "via",
)  # fmt: skip

NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)  # float() takes `١٢`, `1_0` and `nan`
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """The operator's limits for every request. Times in seconds, sizes in bytes."""

    deadline_s: float = 300.0
    max_body_bytes: int = 33_554_432
    debug: bool = False
    max_items: int = MAX_ITEMS
    stream_limits: Limits = field(default_factory=Limits)


def build_task(
    parsed: ParsedRequest, headers: Mapping[str, str], limits: RequestLimits, *, request_id: str, began: float
) -> Task:
    """Build the task. `began`: when the request arrived, monotonic seconds. Raises TaskInvalid for a bad header."""
    passed_on = {name: headers[name] for name in PASSED_ON if name in headers}
    if not _TRACEPARENT.fullmatch(headers.get("traceparent", "")):
        passed_on.pop("traceparent", None)
    whole_s = STREAM_DEADLINE_S if parsed.stream else min(limits.deadline_s, _read_timeout_s(headers) * ANSWER_SHARE)
    client_s = _client_deadline_s(headers)
    may_stream = parsed.operation.may_stream_unrequested and not parsed.stream  # known when the backend answers
    return Task(
        id=request_id,
        kind=parsed.kind,
        name=parsed.name or AUTO,
        path=parsed.path,
        body=parsed.body,
        content_type=parsed.content_type,
        headers=passed_on,
        fields=parsed.fields,
        files=parsed.files,
        items=parsed.items,
        stream=parsed.stream,
        deadline=began + min(whole_s, client_s),
        stream_deadline=began + min(STREAM_DEADLINE_S, client_s) if may_stream else None,
        may_leave=_may_leave(headers),
    )


def stream_limits_of(headers: Mapping[str, str], ours: Limits) -> Limits:
    """The operator's limits of a stream, shortened to the client's read timeout."""
    client_s = _read_timeout_s(headers)
    stall_s = min(ours.stall_s, client_s * STALL_SHARE)
    return Limits(first_byte_s=min(ours.first_byte_s, client_s * ANSWER_SHARE), stall_s=stall_s)


def has_own_limits(headers: Mapping[str, str], limits: RequestLimits) -> bool:
    """Whether the client waits for less time than the operator allows."""
    client_s = min(_read_timeout_s(headers), _client_deadline_s(headers))
    return client_s < max(limits.deadline_s, limits.stream_limits.first_byte_s)


def entry_points_of(path: str, target: str, topic: str | None) -> tuple[str, ...]:
    """The names of a request's entry point that an edge-only rule may contain: its path, and its MQTT topic.

    A topic is matched as the client wrote it, and as it is routed: with and without `/v1`, without escapes and query;
    and also without the level before the path, which may be the client's name. Otherwise an escaped path, or a client's
    name, would bypass the rule.
    """
    routed = unquote(path.partition("?")[0])
    if topic is None:
        return (routed,)
    before = topic.removesuffix(target)
    without_client = before.rpartition("/")[0]
    return (routed, topic, before + routed, before + routed.removeprefix("/v1"), without_client + routed)


def _read_timeout_s(headers: Mapping[str, str]) -> float:
    """How long the client waits without receiving a byte; OpenAI's clients send it. Infinity if unknown."""
    return _seconds(headers.get("x-stainless-read-timeout")) or float("inf")


def _may_leave(headers: Mapping[str, str]) -> bool:
    locality = headers.get("x-gateway-locality")
    if locality not in (None, "edge-only"):
        raise TaskInvalid(
            "x-gateway-locality must be `edge-only`, its only value; send that or omit the header",
            param="x-gateway-locality",
            detail=f"it is {locality[:40]!r}",
        )
    return locality is None


def _client_deadline_s(headers: Mapping[str, str]) -> float:
    text = headers.get("x-gateway-deadline-ms")
    if text is None:
        return float("inf")
    milliseconds = _seconds(text)
    if milliseconds is None:
        raise TaskInvalid(
            "x-gateway-deadline-ms must be a positive number of milliseconds",
            param="x-gateway-deadline-ms",
            detail=f"it is {text[:40]!r}",
        )
    return milliseconds / 1000


def _seconds(text: str | None) -> float | None:
    value = float(text) if text is not None and NUMBER.fullmatch(text) else 0.0
    return value if 0 < value < float("inf") else None
