"""What counts as content: what a client waits for, and what commits an answer to the backend that sent it."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.api.parse import ParsedRequest
from gateway.api.sse import encode_json, events_of
from gateway.plugin import Kind, Part

# Events that say a stream has begun, or is alive; nothing is lost if another backend starts over after them.
_NO_CONTENT_TYPES = frozenset(
    {
        "content_block_start", "message_start", "ping", "response.content_part.added", "response.created",
        "response.in_progress", "response.output_item.added", "response.queued",
    }
)  # fmt: skip


class _Choice(msgspec.Struct):
    delta: dict[str, msgspec.Raw] | None = None
    text: str | None = None
    finish_reason: str | None = None

    def has_content(self) -> bool:
        said = (bytes(raw) for name, raw in (self.delta or {}).items() if name != "role")
        return bool(self.text or self.finish_reason) or any(raw not in _NOTHING for raw in said)


class _Event(msgspec.Struct):
    type: str | None = None
    error: msgspec.Raw | None = None
    choices: list[_Choice] | None = None

    def has_content(self) -> bool:
        if self.error is not None and bytes(self.error) not in _NO_ERROR:
            return False
        if self.choices is not None:
            return any(choice.has_content() for choice in self.choices)
        return self.type not in _NO_CONTENT_TYPES


_NO_ERROR = frozenset({b"null", b'""', b"false", b"{}"})
_NOTHING = frozenset({b"null", b'""', b"[]", b"{}"})
_EVENT = msgspec.json.Decoder(_Event)


def has_content(draft: ParsedRequest, part: Part) -> bool:
    """Whether this part is content: what a client waits for, and what commits the answer to its backend.

    A role, a heartbeat, an error event, an event nobody can read, `[DONE]` are none; why it ended is.
    """
    if draft.kind == "task":
        return part.raw is None or any(data.strip() != b"[DONE]" for _, data in events_of(part.raw))
    if part.content_type is not None:
        return bool(part.data)
    if part.raw is None:
        return _says_something(draft.kind, part.data)
    in_choices = draft.kind in ("chat", "completion")
    return any(_is_content(data, in_choices=in_choices) for _, data in events_of(part.raw))


def _says_something(kind: Kind, value: Any) -> bool:
    if isinstance(value, dict) and not value.keys() & {"choices", "error"}:
        if value.keys() == {"usage"}:
            return False
        if kind in ("chat", "completion"):  # a delta, or a choice
            value = {"choices": [{"delta": value} if kind == "chat" else value]}
    return bool(value) and _is_content(encode_json(value), in_choices=False)


def _is_content(data: bytes, *, in_choices: bool) -> bool:
    if data[:1] != b"{":
        return not in_choices and data.strip() != b"[DONE]"
    try:
        event = _EVENT.decode(data)
        return event.has_content() and not (in_choices and event.choices is None)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
