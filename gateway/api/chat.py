"""Chat completions: `POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from gateway.api.chunk_operation import ChunkOperation
from gateway.api.chunks import Chunk, ChunkChoice, ChunkFormat, Members, usage_of
from gateway.api.logprobs import rest_of_entries
from gateway.api.operation import ParsedRequest
from gateway.api.parse import read_json_with_model
from gateway.api.response_json import ResponseContext
from gateway.api.routes import Match
from gateway.api.schemas import EVENT_STREAM, ChatRequest, schema_ref

_REQUEST = msgspec.json.Decoder(ChatRequest)


class ChatFormat(ChunkFormat):
    """A choice holds a message, or in a chunk a delta of it."""

    uses_deltas = True
    id_prefix = "chatcmpl-"
    object_name = "chat.completion"
    chunk_object_name = "chat.completion.chunk"

    def value_of(self, text: str) -> dict[str, Any]:
        return {"content": text}

    def choice_of(self, value: dict[str, Any]) -> dict[str, Any]:
        return {"delta": value}

    def empty_choice(self) -> dict[str, Any]:
        return {"delta": {}}

    def first_chunk(self, chunk: Chunk) -> Chunk:
        return chunk | {"choices": [_with_role(choice) for choice in chunk["choices"]]}

    def opening(self, choice: dict[str, Any]) -> dict[str, Any]:
        members = {k: v for k, v in choice.items() if k != "message"} | {"finish_reason": None}
        return members | {"delta": _with_call_numbers(choice.get("message") or {})}

    def answer(self, context: ResponseContext, value: Any) -> dict[str, Any]:
        """Build a chat.completion from a text, a message, or an object with `choices`."""
        if isinstance(value, str):
            value = {"content": value}
        if isinstance(value, dict) and "choices" not in value and {"content", "tool_calls"} & value.keys():
            message = {k: v for k, v in value.items() if k not in ("usage", "finish_reason")}
            reason = value.get("finish_reason") or ("tool_calls" if value.get("tool_calls") else "stop")
            choice = {
                "index": 0,
                "message": {"role": "assistant", "content": None, "refusal": None, **message},
                "logprobs": None,
                "finish_reason": reason,
            }
            value = {"choices": [choice]} | usage_of(value)
        return self.completed(context, value)

    def text_in(self, choice: ChunkChoice) -> str | None:
        members = choice.delta_content()
        text = msgspec.json.decode(members.pop("content", msgspec.Raw(b'""')))
        return text if isinstance(text, str) and not members else None

    def with_text(self, choice: dict[str, Any], text: str) -> dict[str, Any]:
        delta = choice.get("delta") or {}
        rest = {name: value for name, value in delta.items() if value and name not in ("role", "content")}
        return {"delta": rest | {"content": text} if text else rest}

    def logprobs_of_rest(self, logprobs: Any, text: str, rest: str, *, begins_at: int) -> Any:
        return rest_of_entries(logprobs, text, rest)

    def continued_request(self, members: Members, text: str) -> dict[str, Any] | None:
        messages = msgspec.json.decode(members["messages"])
        last = messages[-1]
        if last.get("role") != "assistant":
            return {"messages": [*messages, {"role": "assistant", "content": text}]}
        # The client's own beginning of the turn; backends reject two turns of the assistant in a row.
        content = _continued_content(last.get("content"), text)
        return None if content is None else {"messages": [*messages[:-1], last | {"content": content}]}

    def prefix_of(self, continued: dict[str, Any], text: str) -> str:
        return _text_in(continued["messages"][-1]["content"]) or ""


def _with_role(choice: dict[str, Any]) -> dict[str, Any]:
    return choice | {"delta": {"role": "assistant", **(choice.get("delta") or {})}}


def _with_call_numbers(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    return message | {"tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]} if calls else message


def _continued_content(content: Any, text: str) -> Any:
    own = _text_in(content)
    if own is None:
        return None
    whole = text if text.startswith(own) else own + text
    if isinstance(content, str):
        return whole
    return [*content[:-1], content[-1] | {"text": content[-1]["text"] + whole[len(own) :]}]


def _text_in(content: Any) -> str | None:
    """Return a message's text, which may be in parts.

    None if it is absent or has parts other than text.
    """
    if isinstance(content, str):
        return content
    texts = [part.get("text") for part in content if part.get("type") == "text"] if content else []
    return "".join(texts) if texts and len(texts) == len(content) else None


CHAT = ChatFormat()


class ChatOperation(ChunkOperation):
    """Answer a conversation."""

    kind = "chat"
    format = CHAT
    request_content: ClassVar[Mapping[str, Any]] = {"application/json": schema_ref("ChatRequest")}
    response_content: ClassVar[Mapping[str, Any]] = {
        "application/json": schema_ref("ChatCompletion"),
        "text/event-stream": EVENT_STREAM,
    }

    def parse(self, match: Match, content_type: str, body: bytes) -> ParsedRequest:
        fields = read_json_with_model(_REQUEST, body)
        return self.parsed(match, fields, body, choices=fields.n or 1)
