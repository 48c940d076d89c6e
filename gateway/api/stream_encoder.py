"""Encode one response as a stream of server-sent events.

A backend's values become events; an upstream's events pass unchanged except for the model name. `end` sends `[DONE]`,
once, after the comment with the timing; an upstream's own `[DONE]` is removed. A stream ends only by `end`: without it
the stream was cut, and the client must notice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from gateway.api.response_json import ResponseContext, encode_json, restore_model_nested
from gateway.api.sse_framing import (
    DONE,
    HEARTBEAT,
    STREAM_HEADERS,
    encode_comment,
    encode_event,
    replace_data,
    split_events,
)
from gateway.plugin import Part, Result


class StreamEncoder:
    """Encodes values as events, and passes an upstream's events.

    `[DONE]` is sent if the upstream sent it.

    A stream of body pieces carries the body and no events: if it cannot be completed, it can only be cut.
    is_relayed: the response is of a relayed path.
    """

    is_relayed: ClassVar[bool] = False
    headers: Mapping[str, str] = STREAM_HEADERS
    sends_done = False

    def __init__(self, context: ResponseContext) -> None:
        self.context = context
        self.has_relayed = False
        self.is_body = False

    def part(self, part: Part) -> bytes:
        """Encode a part; empty if the client receives nothing for it.

        Raises BackendUnavailable.
        """
        if part.content_type is not None:
            self.is_body, self.headers = True, {"Content-Type": part.content_type, "X-Accel-Buffering": "no"}
            return bytes(part.data)
        if part.raw is None:
            return self.value(part.data)
        events = split_events(part.raw)
        return self._relay(*events[0]) if len(events) == 1 else b"".join([self._relay(*each) for each in events])

    def _relay(self, framed: bytes, data: bytes) -> bytes:
        if data.strip() == b"[DONE]":
            self.sends_done = True
            return b""
        self.has_relayed = True
        return self.relay(framed, data)

    def relay(self, framed: bytes, data: bytes) -> bytes:
        """Return an upstream's event as the client receives it."""
        changed = restore_model_nested(data, self.context)
        return framed if changed is data else replace_data(framed, changed)

    def value(self, value: Any) -> bytes:
        """Encode a value that a backend yielded."""
        return encode_event(encode_json(value))

    def whole(self, result: Result) -> bytes:
        """Encode the response of a backend that does not stream."""
        return self.value(result.value())

    def closing(self) -> bytes:
        """Return the events that are missing after the last part."""
        return b""

    def end(self, timing: Mapping[str, Any] | None = None) -> bytes:
        """Complete the stream: missing events, the timing as a comment, `[DONE]`."""
        if self.is_body:
            return b""
        comment = encode_comment(b"timing " + encode_json(timing)) if timing else b""
        return self.closing() + comment + (DONE if self.sends_done else b"")

    def error(self, envelope: Mapping[str, Any]) -> bytes:
        """Return the last event of a stream that cannot be completed.

        The connection must be aborted after it.
        """
        return b"" if self.is_body else encode_event(encode_json(envelope))

    def heartbeat(self) -> bytes:
        """Return the bytes that show a waiting client that the stream is alive."""
        return b"" if self.is_body else HEARTBEAT


# Before the backend is known: encodes heartbeats and errors, which are the same for every operation.
UNANSWERED = StreamEncoder(ResponseContext(request_id="", model=""))
