"""Chat and text completions: the operations that stream OpenAI's chunks.

Their subclasses are in `gateway.api.chat` and `gateway.api.completions`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import msgspec

from gateway.api.chunk_merger import ChunkMerger
from gateway.api.chunks import Chunk, ChunkFormat, calls_tools, finish_reason, finishes, stream_error
from gateway.api.content import event_has_content, value_has_content
from gateway.api.continuation import ChatContinuation
from gateway.api.operation import Operation, ParsedRequest, PartCollector
from gateway.api.parse import checked_name
from gateway.api.response_json import JSON, ResponseContext, encode_json, restore_model
from gateway.api.routes import Match
from gateway.api.schemas import ChatRequest, CompletionRequest
from gateway.api.sse_framing import encode_event, replace_data, split_events
from gateway.api.stream_encoder import StreamEncoder
from gateway.dispatch import Continuation
from gateway.plugin import Part, Result


class ChunkOperation(Operation):
    """Chat or text completions, by their format."""

    format: ClassVar[ChunkFormat]

    def parsed(
        self, match: Match, fields: ChatRequest | CompletionRequest, body: bytes, *, choices: int
    ) -> ParsedRequest:
        """Return the parsed request of these fields. Raises TaskInvalid."""
        options = fields.stream_options
        return ParsedRequest(
            operation=self,
            name=checked_name(fields.model),
            path=match.path,
            body=body,
            content_type=JSON,
            stream=bool(fields.stream),
            choices=choices,
            include_usage=bool(options and options.include_usage),
        )

    async def render(self, request: ParsedRequest, context: ResponseContext, result: Result) -> tuple[str, bytes]:
        if result.body is not None:
            return result.content_type, restore_model(result.body, context)
        return JSON, encode_json(self.format.answer(context, result.json))

    def collector(self, request: ParsedRequest, context: ResponseContext) -> PartCollector:
        return ChunkCollector(context, self.format)

    def encoder(self, request: ParsedRequest, context: ResponseContext) -> StreamEncoder:
        return ChunkEncoder(context, self.format, include_usage=request.include_usage)

    def has_content(self, part: Part) -> bool:
        if part.content_type is not None:
            return bool(part.data)
        if part.raw is not None:
            return any(event_has_content(data, in_choices=True) for _, data in split_events(part.raw))
        value = part.data
        if isinstance(value, dict) and not value.keys() & {"choices", "error"} and value.keys() != {"usage"}:
            value = {"choices": [self.format.choice_of(value)]}
        return value_has_content(value)

    def continuation(self, request: ParsedRequest) -> Continuation | None:
        return None if request.choices > 1 else ChatContinuation(request.name, self.format)


class ChunkCollector(PartCollector):
    """Merges chunks into a whole response."""

    def __init__(self, context: ResponseContext, chunk_format: ChunkFormat) -> None:
        super().__init__(context)
        self.format = chunk_format
        self.merger = ChunkMerger(context, chunk_format)

    def add_event(self, data: bytes) -> None:
        self.merger.add(data)

    def add_value(self, value: Any) -> None:
        self.merger.add(encode_json(self.format.chunk_of(self.context, value)))

    def result(self) -> Result:
        answer = self.merger.answer()
        if not answer["choices"]:
            raise self.context.failure("ended its answer before it had begun")
        return Result(json=answer)


class ChunkEncoder(StreamEncoder):
    """Encodes texts, deltas and chunks as chunks of one response.

    An upstream's chunks pass unchanged.
    """

    sends_done = True

    def __init__(self, context: ResponseContext, chunk_format: ChunkFormat, *, include_usage: bool) -> None:
        super().__init__(context)
        self.format, self.include_usage = chunk_format, include_usage
        self.has_begun = self.has_finished = self.has_called_tools = False
        self.usage: Any = None
        self.usage_event = b""  # an upstream's event with usage and without choices
        self.head = chunk_format.head(context, chunk_format.chunk_object_name)

    def relay(self, framed: bytes, data: bytes) -> bytes:
        if data.startswith(b'{"error"') and (reported := _decode_error(data)).get("error"):
            raise stream_error(self.context, reported)
        self.has_begun = True
        changed = restore_model(data, self.context)
        event = framed if changed is data else replace_data(framed, changed)
        if not _is_usage(data):
            return event
        # Sent last: if the stream is cut and another backend continues it, that backend's usage replaces this.
        self.usage_event = event
        return b""

    def value(self, value: Any) -> bytes:
        if value == "":
            return b""
        self.has_relayed = False  # from here on the gateway adds the finish reason
        self.usage_event = b""
        chunk = self.format.chunk_of(self.context, value)
        if chunk.get("usage"):
            self.usage = chunk["usage"]
            if not chunk["choices"]:
                return b""  # the chunk with usage is sent last, and only if requested
            chunk = {k: v for k, v in chunk.items() if k != "usage"}
        self.has_called_tools = self.has_called_tools or calls_tools(chunk)
        self.has_finished = self.has_finished or finishes(chunk)
        return self._framed(chunk)

    def _framed(self, chunk: Chunk) -> bytes:
        if not self.has_begun:
            chunk = self.format.first_chunk(chunk)
        self.has_begun = True
        # All chunks of one response have the same id.
        self.head = self.head | {k: chunk[k] for k in ("id", "created", "model") if k in chunk}
        named = chunk if self.context.served_as == self.context.model else chunk | {"model": self.context.model}
        return encode_event(encode_json(self.head | named))

    def whole(self, result: Result) -> bytes:
        answer = self.format.answer(self.context, result.value())
        return b"".join(self.value(chunk) for chunk in self.format.chunks_of(answer))

    def closing(self) -> bytes:
        return b"".join(self._closing())

    def _closing(self) -> Iterator[bytes]:
        if not self.has_relayed and not self.has_finished:
            yield self._framed({"choices": [self.format.closing(finish_reason(self.has_called_tools))]})
        if self.usage and self.include_usage:
            yield encode_event(encode_json(self.head | {"choices": [], "usage": self.usage}))
        yield self.usage_event


def _decode_error(data: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {"error": "an error event that cannot be read"}


class _UsageChunk(msgspec.Struct):
    usage: dict[str, msgspec.Raw] | None = None
    choices: list[msgspec.Raw] | None = None


_USAGE = msgspec.json.Decoder(_UsageChunk)


def _is_usage(data: bytes) -> bool:
    """Whether a chunk reports usage and has no choices."""
    if b'"usage"' not in data:
        return False
    try:
        chunk = _USAGE.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return bool(chunk.usage) and not chunk.choices
