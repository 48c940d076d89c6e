"""The task a request makes: what its body asks for, what its headers add, within what the operator allows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.api.operation import ParsedRequest
from gateway.dispatch import Limits
from gateway.plugin import Task, TaskInvalid
from gateway.registry import AUTO

# Of how long OpenAI's clients wait without a byte: before that an error must reach them, or, in the middle of a stream,
# what another backend goes on with.
ANSWER_SHARE, STALL_SHARE = 0.95, 0.6
STREAM_DEADLINE_S = 86_400.0  # a stream is bounded by its first content and its gaps, not by its length

# The client's headers that travel on. Everything else stays: credentials, cookies, addresses.
TRAVELLING = (
    "traceparent", "tracestate", "accept-language", "openai-beta", "anthropic-version", "anthropic-beta", "via",
)  # fmt: skip

NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)  # float() takes `١٢`, `1_0` and `nan`
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """What the operator set for every request. Times in seconds, sizes in bytes."""

    deadline_s: float = 300.0
    max_body_bytes: int = 33_554_432
    limits: Limits = field(default_factory=Limits)


def build_task(
    draft: ParsedRequest, headers: Mapping[str, str], rules: RequestLimits, *, request_id: str, began: float
) -> Task:
    """The task a draft and its headers make; `began`: when the request arrived, monotonic seconds."""
    travelling = {name: headers[name] for name in TRAVELLING if name in headers}
    if not _TRACEPARENT.fullmatch(headers.get("traceparent", "")):
        travelling.pop("traceparent", None)
    whole_s = STREAM_DEADLINE_S if draft.stream else min(rules.deadline_s, _patience_s(headers) * ANSWER_SHARE)
    client_s = _client_deadline_s(headers)
    may_come_in_parts = draft.operation.may_stream_unrequested and not draft.stream  # that is seen when it comes
    return Task(
        id=request_id,
        kind=draft.kind,
        name=draft.name or AUTO,
        path=draft.path,
        body=draft.body,
        content_type=draft.content_type,
        headers=travelling,
        fields=draft.fields,
        files=draft.files,
        items=draft.items,
        stream=draft.stream,
        deadline=began + min(whole_s, client_s),
        stream_deadline=began + min(STREAM_DEADLINE_S, client_s) if may_come_in_parts else None,
        may_leave=_may_leave(headers),
    )


def limits_of(headers: Mapping[str, str], ours: Limits) -> Limits:
    """The smaller of what the operator allows a stream and what the client will wait for."""
    theirs_s = _patience_s(headers)
    stall_s = min(ours.stall_s, theirs_s * STALL_SHARE)
    return Limits(first_byte_s=min(ours.first_byte_s, theirs_s * ANSWER_SHARE), stall_s=stall_s)


def has_own_limits(headers: Mapping[str, str], rules: RequestLimits) -> bool:
    """Whether the client waits for less long than the operator would."""
    patience_s = min(_patience_s(headers), _client_deadline_s(headers))
    return patience_s < max(rules.deadline_s, rules.limits.first_byte_s)


def _patience_s(headers: Mapping[str, str]) -> float:
    return _seconds(headers.get("x-stainless-read-timeout")) or float("inf")


def _may_leave(headers: Mapping[str, str]) -> bool:
    locality = headers.get("x-gateway-locality")
    if locality not in (None, "edge-only"):
        raise TaskInvalid(
            "x-gateway-locality must be `edge-only`, the one value it can have",
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
