"""Requests for streams, the bytes a client receives for parts, and parts collected into one response."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from gateway.api.operation import ParsedRequest
from gateway.api.operations import OPERATIONS
from gateway.api.render import ResponseRenderer
from gateway.api.sse_framing import split_events
from gateway.api.stream_encoder import StreamEncoder
from gateway.plugin import Kind, Part, Result

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def draft(kind: Kind = "chat", **more: Any) -> ParsedRequest:
    operation = OPERATIONS[kind]
    return ParsedRequest(
        operation=operation, name="assistant", path="/", body=b"", content_type="application/json", stream=True, **more
    )


def has_content(asked: ParsedRequest, part: Part) -> bool:
    return asked.operation.has_content(part)


def stream_of(kind: Kind = "chat", served_as: str | None = "assistant", **more: Any) -> StreamEncoder:
    return OPERATIONS[kind].encode_stream(draft(kind, **more), request_id="r1", served_as=served_as)


def sent(stream: StreamEncoder, parts: Sequence[Part], timing: dict[str, Any] | None = None) -> bytes:
    return b"".join([*(stream.part(part) for part in parts), stream.end(timing)])


def values(raw: bytes) -> list[Any]:
    """The data of every event, as an SSE client returns it; `[DONE]` as a text."""
    found = [data for _, data in split_events(raw)]
    return ["[DONE]" if data == b"[DONE]" else json.loads(data) for data in found]


def raw(value: Any) -> Part:
    return Part(raw=b"data: " + (value if isinstance(value, bytes) else msgspec.json.encode(value)) + b"\n\n")


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"model": "up", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


def answer_of(asked: ParsedRequest, parts: Sequence[Part]) -> dict[str, Any]:
    return json.loads(collected(asked, parts).body or b"")


def collected(asked: ParsedRequest, parts: Sequence[Part]) -> Result:
    wanted = ResponseRenderer(replace(asked, stream=False), "r", "the backend", "assistant")
    for part in parts:
        wanted.add(part)
    return asyncio.run(wanted.whole(None))
