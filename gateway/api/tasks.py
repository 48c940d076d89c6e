"""Tasks: `POST /v1/tasks/{task}` and the list `GET /v1/tasks`.

A task's response is its JSON value or an upstream's body, unchanged. A generator's values become events `{"part": …}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import msgspec

from gateway.api import multipart
from gateway.api.operation import Operation, ParsedRequest
from gateway.api.parse import checked_name, read_json
from gateway.api.response_json import JSON, ResponseContext, encode_json
from gateway.api.routes import Match
from gateway.api.schemas import EVENT_STREAM
from gateway.api.sse_framing import encode_event, split_events
from gateway.api.stream_encoder import StreamEncoder
from gateway.plugin import Part


class _TaskBody(msgspec.Struct):
    items: msgspec.Raw = msgspec.Raw(b"null")


_ANY = msgspec.json.Decoder(msgspec.Raw)
_BODY = msgspec.json.Decoder(_TaskBody)
_LIST = msgspec.json.Decoder(list[msgspec.Raw])


class TaskOperation(Operation):
    """Run a task.

    Its backend may yield parts, which is known only when the first comes.
    """

    kind = "task"
    may_stream_unrequested = True
    is_body_required = False
    request_content: ClassVar[Mapping[str, Any]] = {"application/json": {}, "multipart/form-data": {"type": "object"}}
    response_content: ClassVar[Mapping[str, Any]] = {"application/json": {}, "text/event-stream": EVENT_STREAM}

    def parse(self, match: Match, content_type: str, body: bytes) -> ParsedRequest:
        request = ParsedRequest(
            operation=self,
            name=checked_name(match.params["task"], param="task"),
            path=match.path,
            body=body or b"{}",
            content_type=JSON,
        )
        if multipart.is_multipart(content_type, body):
            layout = multipart.form_layout(content_type, body)
            form = multipart.collect(multipart.parts_of(layout, body))
            return replace(request, content_type=layout.content_type, fields=form.fields, files=form.files)
        return replace(request, items=_count_items(request.body))

    def collects(self, request: ParsedRequest, first: Part, *, takes_pieces: bool = True) -> bool:
        return first.content_type is not None and not takes_pieces

    def encoder(self, request: ParsedRequest, context: ResponseContext) -> StreamEncoder:
        return TaskEncoder(context)

    def has_content(self, part: Part) -> bool:
        return part.raw is None or any(data.strip() != b"[DONE]" for _, data in split_events(part.raw))


class TaskEncoder(StreamEncoder):
    """Encodes each value of a generator as `{"part": v}`."""

    sends_done = True

    def value(self, value: Any) -> bytes:
        return encode_event(encode_json({"part": value}))


def _count_items(body: bytes) -> int:
    """Return the length of the body's list `items`; without that list, 1."""
    if not body.lstrip().startswith(b"{"):
        read_json(_ANY, body)
        return 1
    items = read_json(_BODY, body).items
    return max(1, len(_LIST.decode(items))) if bytes(items).startswith(b"[") else 1


def tasks_list(backends_of: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """Return the tasks by name, each with the backends that serve it."""
    data = [{"id": name, "object": "task", "backends": list(backends)} for name, backends in backends_of.items()]
    return {"object": "list", "data": data}
