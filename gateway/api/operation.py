"""The interface of an API operation, ParsedRequest and PartCollector.

Each operation (chat, completions, embeddings, transcriptions, tasks, relayed paths) is a module that implements
`Operation`; `gateway.api.operations` lists them. A method here is the default, which most operations use.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import msgspec

from gateway.api.content import event_has_content, value_has_content
from gateway.api.response_json import ResponseContext, encode_json
from gateway.api.routes import Match
from gateway.api.schemas import EncodingFormat, TranscriptFormat
from gateway.api.sse_framing import split_events
from gateway.api.stream_encoder import StreamEncoder
from gateway.dispatch import Continuation
from gateway.plugin import Kind, Part, Result, Upload


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedRequest:
    """A parsed request, before authentication, locality and deadlines.

    A Task is built from it.

    name: the model or task as the client wrote it, "" if it named none. stream: the client requests events.
    items: units of work, at least 1. choices: how many answers a chat or completion will hold. fields, files: of a
    multipart body (None and {} for any other). include_usage: a stream ends with its usage. encoding_format: of
    embeddings; None if the client did not name one. response_format: of a transcription. path: with `/v1`, for a
    relayed request with the query. body, content_type: for the backend.
    """

    operation: Operation
    name: str
    path: str
    body: bytes
    content_type: str
    stream: bool = False
    items: int = 1
    choices: int = 1
    fields: Mapping[str, Any] | None = None
    files: Mapping[str, Upload] = field(default_factory=dict)
    include_usage: bool = False
    encoding_format: EncodingFormat | None = None
    response_format: TranscriptFormat = "json"

    @property
    def kind(self) -> Kind:
        """The family of work, as it is logged."""
        return self.operation.kind


class PartCollector:
    """Collects the parts of a streaming backend into one response.

    Here: a list of the values.
    """

    def __init__(self, context: ResponseContext) -> None:
        self.context = context
        self.values: list[Any] = []

    def add(self, part: Part) -> None:
        """Add a part. Raises BackendUnavailable for a part that cannot be read."""
        if part.raw is None:
            self.add_value(part.data)
            return
        for _, data in split_events(part.raw):
            if data.strip() != b"[DONE]":
                self.add_event(data)

    def add_event(self, data: bytes) -> None:
        """Add an upstream's event."""
        try:
            value = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise self.context.failure(f"sent an event that is not JSON: {exc}") from exc
        self.add_value(value)

    def add_value(self, value: Any) -> None:
        """Add a value."""
        self.values.append(value)

    def result(self) -> Result:
        """Return the response. Raises BackendUnavailable if the parts do not make one."""
        return Result(json={"result": self.values})


class Operation(ABC):
    """One API operation: parses its requests and renders its responses. Has no state.

    kind: the family of work, as it is logged. is_relayed: the gateway knows neither request nor response; a whole
    response to a request for a stream is passed as it is. may_stream_unrequested: a backend may send parts although
    the client did not request a stream. is_body_required, request_content, response_content: for openapi.json,
    schemas by content type.
    """

    kind: ClassVar[Kind]
    is_relayed: ClassVar[bool] = False
    may_stream_unrequested: ClassVar[bool] = False
    is_body_required: ClassVar[bool] = True
    request_content: ClassVar[Mapping[str, Any]]
    response_content: ClassVar[Mapping[str, Any]]

    @abstractmethod
    def parse(self, match: Match, content_type: str, body: bytes) -> ParsedRequest:
        """Parse a request's body. Raises TaskInvalid with what is wrong and where."""

    # ── whole responses ──────────────────────────────────────────────────────────────────────────

    async def render(self, request: ParsedRequest, context: ResponseContext, result: Result) -> tuple[str, bytes]:
        """Return content type and body of a successful whole response.

        Raises BackendFailed if it cannot be one.
        """
        if result.body is not None:
            return result.content_type, result.body
        return result.content_type, encode_json(result.json)

    def collects(self, request: ParsedRequest, first: Part, *, takes_pieces: bool = True) -> bool:
        """Whether a response that begins with this part is collected.

        It is if the client did not request parts. takes_pieces: whether the client receives a body in pieces.
        """
        return not takes_pieces if first.content_type is not None else not request.stream

    def collector(self, request: ParsedRequest, context: ResponseContext) -> PartCollector:
        """Return an empty collector for the parts of one response."""
        return PartCollector(context)

    # ── streams ──────────────────────────────────────────────────────────────────────────────────

    def encode_stream(self, request: ParsedRequest, *, request_id: str, served_as: str | None = None) -> StreamEncoder:
        """Return the encoder of one response.

        served_as: the model name sent to the backend, if known.
        """
        return self.encoder(request, ResponseContext(request_id=request_id, model=request.name, served_as=served_as))

    def encoder(self, request: ParsedRequest, context: ResponseContext) -> StreamEncoder:
        """As `encode_stream`, for a known context."""
        return StreamEncoder(context)

    def check_streamable(self, request: ParsedRequest, context: ResponseContext, result: Result) -> None:
        """Raise BackendFailed for a whole response that cannot be sent as a stream."""
        self.encode_stream(request, request_id="", served_as=context.served_as).whole(result)

    def has_content(self, part: Part) -> bool:
        """Whether this part is content, as defined in `gateway.api.content`."""
        if part.content_type is not None:
            return bool(part.data)
        if part.raw is None:
            return value_has_content(part.data)
        return any(event_has_content(data, in_choices=False) for _, data in split_events(part.raw))

    def continuation(self, request: ParsedRequest) -> Continuation | None:
        """Return a record of the response, by which another backend can continue it.

        None if that is impossible.
        """
        return None
