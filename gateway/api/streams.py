"""Streams as clients read them: server-sent events, ours made from values, an upstream's passed on.

`[DONE]` is sent once, by `end`, after the comment that says where the time went; an upstream's own is
taken out. Nothing here ends a stream by itself: who does not call `end` has a stream that was cut, and
the client must see it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from gateway.api.answers import chat_answer, completion_answer, head
from gateway.api.chunks import Chunk, Shape, broken_off, calls_tools, chunk_of, chunks_of, finishes, reason_to_finish
from gateway.api.parse import ParsedRequest
from gateway.api.sse import (
    DONE,
    HEARTBEAT,
    STREAM_HEADERS,
    Stamp,
    comment,
    encode_json,
    event,
    events_of,
    reframed,
    renamed,
    renamed_within,
)
from gateway.api.transcripts import as_transcript
from gateway.plugin import Part, Result


class StreamEncoder:
    """One answer as a stream. Here: `other`, an upstream's events but for the model's name; `[DONE]` if it had one.

    Or a body in pieces, which has nothing else in it, so that it can only be cut where it cannot be completed.
    """

    headers: Mapping[str, str] = STREAM_HEADERS

    def __init__(self, draft: ParsedRequest, stamp: Stamp) -> None:
        self.draft = draft
        self.stamp = stamp
        self.has_relayed = False
        self.wants_done = False
        self.is_body = False

    def part(self, part: Part) -> bytes:
        """The bytes of one part; none for what the client is not to see. Raises BackendUnavailable."""
        if part.content_type is not None:
            self.is_body, self.headers = True, {"Content-Type": part.content_type, "X-Accel-Buffering": "no"}
            return bytes(part.data)
        if part.raw is None:
            return self.data(part.data)
        events = events_of(part.raw)
        return self._relay(*events[0]) if len(events) == 1 else b"".join([self._relay(*each) for each in events])

    def _relay(self, framed: bytes, data: bytes) -> bytes:
        if data.strip() == b"[DONE]":
            self.wants_done = True
            return b""
        self.has_relayed = True
        return self.relay(framed, data)

    def relay(self, framed: bytes, data: bytes) -> bytes:
        """An upstream's event, as it is to be passed on."""
        changed = renamed_within(data, self.stamp)
        return framed if changed is data else reframed(framed, changed)

    def data(self, value: Any) -> bytes:
        """A value a backend yielded."""
        return event(encode_json(value))

    def whole(self, result: Result) -> bytes:
        """The answer of a backend that does not stream."""
        return self.data(result.value())

    def closing(self) -> bytes:
        """What the stream still lacks when its last part is through."""
        return b""

    def end(self, timing: Mapping[str, Any] | None = None) -> bytes:
        """The proper end: what is still to be said, where the time went, `[DONE]`."""
        if self.is_body:
            return b""
        told = comment(b"timing " + encode_json(timing)) if timing else b""
        return self.closing() + told + (DONE if self.wants_done else b"")

    def error(self, envelope: Mapping[str, Any]) -> bytes:
        """The last event of a stream that cannot be completed; the connection must be aborted after it."""
        return b"" if self.is_body else event(encode_json(envelope))

    def heartbeat(self) -> bytes:
        """Something for the client to see while there is nothing to say."""
        return b"" if self.is_body else HEARTBEAT


class TaskStream(StreamEncoder):
    """A generator's values, one `{"part": v}` each."""

    def __init__(self, draft: ParsedRequest, stamp: Stamp) -> None:
        super().__init__(draft, stamp)
        self.wants_done = True

    def data(self, value: Any) -> bytes:
        return event(encode_json({"part": value}))


class ChunkStream(StreamEncoder):
    """A conversation or a continued text, in OpenAI's chunks."""

    shape: Shape = "chat"
    id_prefix, object_name = "chatcmpl-", "chat.completion.chunk"

    def __init__(self, draft: ParsedRequest, stamp: Stamp) -> None:
        super().__init__(draft, stamp)
        self.wants_done = True
        self.has_begun = self.has_finished = self.has_called_tools = False
        self.usage: Any = None
        self.account = b""  # an upstream's event that tells usage and nothing else
        self.head = head(stamp, self.id_prefix, self.object_name)

    def relay(self, framed: bytes, data: bytes) -> bytes:
        if data.startswith(b'{"error"') and (reported := _decoded(data)).get("error"):
            raise broken_off(self.stamp, reported)
        self.has_begun = True
        changed = renamed(data, self.stamp)
        told = framed if changed is data else reframed(framed, changed)
        if not _is_account(data):
            return told
        self.account = told  # comes last: if the stream is cut, whoever goes on gives account of it all
        return b""

    def data(self, value: Any) -> bytes:
        if value == "":
            return b""
        self.has_relayed = False  # from here on it is for us to say why it ended
        self.account = b""
        chunk = chunk_of(self.stamp, value, self.shape)
        if chunk.get("usage"):
            self.usage = chunk["usage"]
            if not chunk["choices"]:
                return b""  # the usage chunk comes last, and only if it was asked for
            chunk = {k: v for k, v in chunk.items() if k != "usage"}
        self.has_called_tools = self.has_called_tools or calls_tools(chunk)
        self.has_finished = self.has_finished or finishes(chunk)
        return self._framed(chunk)

    def _framed(self, chunk: Chunk) -> bytes:
        if self.shape == "chat" and not self.has_begun:
            chunk = chunk | {"choices": [_with_role(choice) for choice in chunk["choices"]]}
        self.has_begun = True
        self.head = self.head | {k: chunk[k] for k in ("id", "created", "model") if k in chunk}  # one answer, one id
        named = chunk if self.stamp.served_as == self.stamp.model else chunk | {"model": self.stamp.model}
        return event(encode_json(self.head | named))

    def whole(self, result: Result) -> bytes:
        finished = chat_answer if self.shape == "chat" else completion_answer
        answer = finished(self.stamp, result.value())
        return b"".join(self.data(chunk) for chunk in chunks_of(answer, self.shape))

    def closing(self) -> bytes:
        return b"".join(self._closing())

    def _closing(self) -> Iterator[bytes]:
        if not self.has_relayed and not self.has_finished:
            nothing: dict[str, Any] = {"delta": {}} if self.shape == "chat" else {"text": ""}
            reason = reason_to_finish(self.has_called_tools)
            choice = {"index": 0, **nothing, "logprobs": None, "finish_reason": reason}
            yield self._framed({"choices": [choice]})
        if self.usage and self.draft.include_usage:
            yield event(encode_json(self.head | {"choices": [], "usage": self.usage}))
        yield self.account


class CompletionStream(ChunkStream):
    """A continued text; OpenAI calls chunk and whole answer by one name."""

    shape: Shape = "completion"
    id_prefix, object_name = "cmpl-", "text_completion"


class TranscriptStream(StreamEncoder):
    """A transcript as it is heard: `transcript.text.delta`, then one `transcript.text.done` with all of it."""

    def __init__(self, draft: ParsedRequest, stamp: Stamp) -> None:
        super().__init__(draft, stamp)
        self.wants_done = True
        self.heard: list[str] = []
        self.is_done = False

    def data(self, value: Any) -> bytes:
        if isinstance(value, Mapping) and "type" in value:
            self.is_done = self.is_done or value["type"] == "transcript.text.done"
            return event(encode_json(value))
        text = as_transcript(self.stamp, value)["text"]
        self.heard.append(text)
        return event(encode_json({"type": "transcript.text.delta", "delta": text})) if text else b""

    def whole(self, result: Result) -> bytes:
        is_json = result.body is None or "json" in result.content_type
        return self.data(result.value() if is_json else (result.body or b"").decode(errors="replace").strip())

    def closing(self) -> bytes:
        if self.is_done or self.has_relayed:
            return b""
        return event(encode_json({"type": "transcript.text.done", "text": "".join(self.heard)}))


def _decoded(data: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {"error": "an error event that cannot be read"}


class _Account(msgspec.Struct):
    usage: dict[str, msgspec.Raw] | None = None
    choices: list[msgspec.Raw] | None = None


_ACCOUNT = msgspec.json.Decoder(_Account)


def _is_account(data: bytes) -> bool:
    """Whether a chunk has no choices, and tells usage."""
    if b'"usage"' not in data:
        return False
    try:
        chunk = _ACCOUNT.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return bool(chunk.usage) and not chunk.choices


def _with_role(choice: dict[str, Any]) -> dict[str, Any]:
    return choice | {"delta": {"role": "assistant", **(choice.get("delta") or {})}}
