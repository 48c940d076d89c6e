"""Relayed paths: requests and responses pass unchanged, except for the model name.

These are translations, speech, images, the Responses API and the Messages API.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from gateway.api import multipart
from gateway.api.operation import Operation, ParsedRequest, PartCollector
from gateway.api.parse import checked_name, read_json_with_model
from gateway.api.response_json import JSON, ResponseContext, encode_json, restore_model_nested
from gateway.api.routes import Match
from gateway.api.schemas import OtherRequest, schema_ref
from gateway.api.stream_encoder import StreamEncoder
from gateway.plugin import Part, Result, TaskInvalid
from gateway.plugin.spelling import folded, is_like, unescaped

SPEECH = "/v1/audio/speech"  # its `stream` requests audio while it is made, not events
# Paths where `stream` alone decides whether the response is a stream of events.
_STREAM_ON_REQUEST = ("/v1/responses", "/v1/messages")
_WITH_RESPONSE = frozenset(
    {"response.cancelled", "response.completed", "response.done", "response.failed", "response.incomplete"}
)
_CREDENTIAL = re.compile(
    r"^(?:key|api[_-]?key|(?:access[_-]?)?token|auth|authorization|password|secret)=|egw_", re.IGNORECASE
)
_REQUEST = msgspec.json.Decoder(OtherRequest)


class RelayedOperation(Operation):
    """Relay a request."""

    kind = "other"
    is_relayed = True
    may_stream_unrequested = True
    request_content: ClassVar[Mapping[str, Any]] = {
        "application/json": schema_ref("OtherRequest"),
        "multipart/form-data": {"type": "object"},
    }
    response_content: ClassVar[Mapping[str, Any]] = {"*/*": {}}

    def parse(self, match: Match, content_type: str, body: bytes) -> ParsedRequest:
        if multipart.is_multipart(content_type, body):
            layout = multipart.form_layout(content_type, body)
            multipart.check_model_part(layout)
            content_type = layout.content_type
            parts = {span.name: body[span.start : span.end] for span in layout.spans if not span.is_file}
            name, stream = _text_of(parts, "model"), parts.get("stream") == b"true"
        else:
            read = read_json_with_model(_REQUEST, body)
            name, stream, content_type = read.model or "", bool(read.stream), JSON
        _check_query(match.query)
        query = _without_credentials(match.query)
        return ParsedRequest(
            operation=self,
            name=checked_name(name),
            path=f"{match.path}?{query}" if query else match.path,
            body=body,
            content_type=content_type,
            stream=stream and match.path != SPEECH,
        )

    async def render(self, request: ParsedRequest, context: ResponseContext, result: Result) -> tuple[str, bytes]:
        if result.body is None:
            return result.content_type, encode_json(result.json)
        is_json = "json" in result.content_type
        return result.content_type, restore_model_nested(result.body, context) if is_json else result.body

    def collects(self, request: ParsedRequest, first: Part, *, takes_pieces: bool = True) -> bool:
        """As for any operation, but events pass.

        The client may have requested them in a form unknown here.
        """
        if first.content_type is not None:
            return not takes_pieces
        return not request.stream and (first.raw is None or _streams_on_request(request))

    def collector(self, request: ParsedRequest, context: ResponseContext) -> PartCollector:
        return ResponseEventCollector(context) if _streams_on_request(request) else BodyCollector(context)

    def encoder(self, request: ParsedRequest, context: ResponseContext) -> StreamEncoder:
        return RelayedEncoder(context)

    def check_streamable(self, request: ParsedRequest, context: ResponseContext, result: Result) -> None:
        if _streams_on_request(request):
            raise context.failure("gave a whole answer, though a stream was asked for")


def _streams_on_request(request: ParsedRequest) -> bool:
    return request.path.partition("?")[0] in _STREAM_ON_REQUEST


def _text_of(fields: Mapping[str, bytes], name: str) -> str:
    try:
        return fields.get(name, b"").decode()
    except UnicodeDecodeError:
        raise TaskInvalid(f"the form field `{name}` is not UTF-8", param=name) from None


def _check_query(query: str) -> None:
    """Reject a query that names a model: rules hold for the model in the body (parser differential)."""
    names = (pair.partition("=")[0] for pair in re.split("[&;]", unescaped(query)))
    if "model" in folded(unescaped(query)) and any(is_like(name, "model") for name in names):
        raise TaskInvalid("the query names a model; name it in the body, as `model`", param="model")


def _without_credentials(query: str) -> str:
    """Remove credentials from a query before it is passed on.

    Raises TaskInvalid if it is not ASCII.
    """
    if not query.isascii():
        raise TaskInvalid("the query has characters that are not ASCII; percent-encode them")
    return "&".join(pair for pair in query.split("&") if not _CREDENTIAL.search(pair))


class RelayedEncoder(StreamEncoder):
    """Passes an upstream's events."""

    is_relayed = True


class BodyCollector(PartCollector):
    """Joins a body's pieces, or lists values."""

    def __init__(self, context: ResponseContext) -> None:
        super().__init__(context)
        self.content_type: str | None = None

    def add(self, part: Part) -> None:
        if part.content_type is None:
            super().add(part)
        else:
            self.content_type = part.content_type
            self.values.append(part.data)

    def result(self) -> Result:
        if self.content_type is None:
            return super().result()
        return Result(body=b"".join(self.values), content_type=self.content_type)


class ResponseEventCollector(PartCollector):
    """Takes the response from the last event of a Responses API stream."""

    def add_value(self, value: Any) -> None:
        if isinstance(value, dict) and value.get("type") in _WITH_RESPONSE and isinstance(value.get("response"), dict):
            self.values = [value["response"]]

    def result(self) -> Result:
        if not self.values:
            raise self.context.failure("answered with a stream, though none was asked for")
        return Result(body=encode_json(self.values[0]), content_type=JSON)
