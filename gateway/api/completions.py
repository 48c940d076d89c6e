"""Text completions: `POST /v1/completions`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from gateway.api.chunk_operation import ChunkOperation
from gateway.api.chunks import Chunk, ChunkChoice, ChunkFormat, Members, usage_of
from gateway.api.logprobs import rest_of_lists
from gateway.api.operation import ParsedRequest
from gateway.api.parse import read_json_with_model
from gateway.api.response_json import ResponseContext
from gateway.api.routes import Match
from gateway.api.schemas import EVENT_STREAM, CompletionRequest, schema_ref

_REQUEST = msgspec.json.Decoder(CompletionRequest)


class CompletionFormat(ChunkFormat):
    """A choice holds a text. A chunk and a whole response have the same object name."""

    uses_deltas = False
    id_prefix = "cmpl-"
    object_name = "text_completion"
    chunk_object_name = "text_completion"

    def value_of(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def choice_of(self, value: dict[str, Any]) -> dict[str, Any]:
        return value

    def empty_choice(self) -> dict[str, Any]:
        return {"text": ""}

    def first_chunk(self, chunk: Chunk) -> Chunk:
        return chunk

    def opening(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in choice.items() if k != "message"} | {"finish_reason": None}

    def answer(self, context: ResponseContext, value: Any) -> dict[str, Any]:
        """Build a text_completion from a text, `{"text": …}`, or an object with `choices`."""
        if isinstance(value, str):
            value = {"text": value}
        if isinstance(value, dict) and "choices" not in value and isinstance(value.get("text"), str):
            reason = value.get("finish_reason") or "stop"
            choice = {"index": 0, "text": value["text"], "logprobs": None, "finish_reason": reason}
            value = {"choices": [choice]} | usage_of(value)
        return self.completed(context, value)

    def text_in(self, choice: ChunkChoice) -> str | None:
        return choice.text or ""

    def with_text(self, choice: dict[str, Any], text: str) -> dict[str, Any]:
        return {"text": text}

    def logprobs_of_rest(self, logprobs: Any, text: str, rest: str, *, begins_at: int) -> Any:
        return rest_of_lists(logprobs, text, rest, begins_at=begins_at)

    def continued_request(self, members: Members, text: str) -> dict[str, Any] | None:
        field = msgspec.json.decode(members["prompt"])
        prompt = field[0] if isinstance(field, list) and len(field) == 1 else field
        if not isinstance(prompt, str):
            return None
        if not msgspec.json.decode(members.get("echo", b"false")):
            return {"prompt": prompt + text}
        return {"prompt": text, "echo": False} if text.startswith(prompt) else None

    def prefix_of(self, continued: dict[str, Any], text: str) -> str:
        return text


COMPLETION = CompletionFormat()


class CompletionOperation(ChunkOperation):
    """Continue a text."""

    kind = "completion"
    format = COMPLETION
    request_content: ClassVar[Mapping[str, Any]] = {"application/json": schema_ref("CompletionRequest")}
    response_content: ClassVar[Mapping[str, Any]] = {
        "application/json": schema_ref("Completion"),
        "text/event-stream": EVENT_STREAM,
    }

    def parse(self, match: Match, content_type: str, body: bytes) -> ParsedRequest:
        fields = read_json_with_model(_REQUEST, body)
        return self.parsed(match, fields, body, choices=(fields.n or 1) * _count_prompts(fields.prompt))


def _count_prompts(prompt: str | list[str | int | list[int]]) -> int:
    return 1 if isinstance(prompt, str) or not prompt or isinstance(prompt[0], int) else len(prompt)
