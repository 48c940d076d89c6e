"""Decide whether an event is content.

A client waits for content, and the first content commits a response to its backend.

A role, a heartbeat, an error event, an event that cannot be read, and `[DONE]` are not content; a finish reason is.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.api.response_json import encode_json

# Events that a stream begins with or keeps alive with. Another backend may start over after them without loss.
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
        members = (bytes(raw) for name, raw in (self.delta or {}).items() if name != "role")
        return bool(self.text or self.finish_reason) or any(raw not in _EMPTY for raw in members)


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
_EMPTY = frozenset({b"null", b'""', b"[]", b"{}"})
_EVENT = msgspec.json.Decoder(_Event)


def event_has_content(data: bytes, *, in_choices: bool) -> bool:
    """Whether an event's data is content.

    in_choices: only an event with `choices` can be.
    """
    if data[:1] != b"{":
        return not in_choices and data.strip() != b"[DONE]"
    try:
        event = _EVENT.decode(data)
        return event.has_content() and not (in_choices and event.choices is None)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def value_has_content(value: Any) -> bool:
    """Whether a value that a backend yielded is content. Usage alone is not."""
    if isinstance(value, dict) and value.keys() == {"usage"}:
        return False
    return bool(value) and event_has_content(encode_json(value), in_choices=False)
