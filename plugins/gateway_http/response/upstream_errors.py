"""What an upstream's error says, and which errors are answers: this request, as it is, gets no better one elsewhere.

A text that is longer than the model reads, or that a filter stops, is told to the client as the upstream put
it, whatever status it came with, and is held against nobody.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

Error = dict[str, Any]

MAX_MESSAGE_CHARS = 300
MAX_BUILT_BYTES = 4096  # of an error's members; but for texts, longer ones are nothing anybody reads
MAX_MEMBERS = 64
PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,40}")
NULL = msgspec.Raw(b"null")
EMPTY = frozenset({b"null", b'""', b"[]", b"{}", b"false", b"0", b""})

# OpenAI, Azure, llama.cpp, OpenRouter; as `code` or as `type`.
CODES = frozenset(
    {
        "ResponsibleAIPolicyViolation", "content_filter", "content_policy_violation", "context_length_exceeded",
        "exceed_context_size_error", "invalid_prompt", "moderation_blocked", "string_above_max_length",
    }
)  # fmt: skip

# Where there is no code for it: vLLM and OpenAI, llama.cpp, Anthropic, TGI.
TOO_LONG = re.compile(
    r"maximum context length (is|of) \d|exceeds? the (available |model's )?(maximum )?context (size|length|window)"
    r"|context length exceeded|prompt is too long: \d|tokens \+ `max_new_tokens` must be <=",
    re.IGNORECASE,
)


class UpstreamRejected(Exception):
    """The upstream says so, under status 200 or by an event of a stream."""

    def __init__(self, error: Error) -> None:
        super().__init__("the upstream refused the request")
        self.error = error


class ErrorFields(msgspec.Struct):
    """The members of an object by which the servers there are report errors, or that they answer with."""

    error: msgspec.Raw = NULL
    object: msgspec.Raw = NULL
    type: msgspec.Raw = NULL
    code: msgspec.Raw = NULL
    error_code: msgspec.Raw = NULL  # FastChat
    message: msgspec.Raw = NULL
    detail: msgspec.Raw = NULL  # FastAPI
    text: msgspec.Raw = NULL


def begins(raw: msgspec.Raw, start: bytes) -> bool:
    """Whether the value's JSON begins so; it is not copied."""
    return memoryview(raw)[: len(start)] == start


def is_empty(raw: msgspec.Raw) -> bool:
    """Whether the value is null, or as good as that."""
    return len(memoryview(raw)) <= len(b"false") and bytes(raw) in EMPTY


def is_text(raw: msgspec.Raw, text: bytes) -> bool:
    """Whether the value is this string."""
    return memoryview(raw) == b'"' + text + b'"'


def error_in(said: ErrorFields) -> Error | None:
    """The error its member `error` is, or holds the text of; None where there is none."""
    if is_empty(said.error):
        return None
    value = value_of(said.error)
    return value if isinstance(value, dict) else {"message": value}


def error_as(said: ErrorFields) -> Error:
    """The error that the object itself is."""
    texts = (value_of(raw) for raw in (said.message, said.detail, said.text))
    codes = (value_of(raw) for raw in (said.code, said.error_code))
    return {
        "message": next(filter(None, texts), None),
        "type": value_of(said.type),
        "code": next(filter(None, codes), None),
    }


def value_of(raw: msgspec.Raw) -> Any:
    """The value: a text, a member, or of an object its texts and small members. The rest is None, and is not built."""
    if not begins(raw, b"{"):
        return _small(raw)
    try:
        members = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError):
        return {}
    return {name: _small(value) for name, value in members.items()} if len(members) <= MAX_MEMBERS else {}


def _small(raw: msgspec.Raw) -> Any:
    if len(memoryview(raw)) > MAX_BUILT_BYTES and not begins(raw, b'"'):
        return None
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError):  # half a surrogate pair
        return None


def is_answer(error: Error) -> bool:
    """Whether an upstream's error is an answer to the request, rather than a fault."""
    inner, metadata = error.get("innererror"), error.get("metadata")
    words = [error.get("code"), error.get("type"), inner.get("code") if isinstance(inner, dict) else None]
    if any(isinstance(word, str) and word in CODES for word in words):
        return True
    if isinstance(metadata, dict) and ("flagged_input" in metadata or "reasons" in metadata):  # OpenRouter
        return True
    message = error.get("message")
    return isinstance(message, str) and TOO_LONG.search(message[:MAX_BUILT_BYTES]) is not None


def code_of(error: Error) -> str:
    """`, CODE` of an upstream's error, where it has a plain word for it; else nothing."""
    words = (error.get("code"), error.get("type"))
    return next((f", {word}" for word in words if isinstance(word, str) and PLAIN.fullmatch(word)), "")


def message_of(error: Error) -> str:
    """The text of an upstream's error, shortened."""
    text = error.get("message")
    text = text if isinstance(text, str) and text.strip() else "no message"
    return " ".join(text[: 4 * MAX_MESSAGE_CHARS].split())[:MAX_MESSAGE_CHARS]


def told(error: Error) -> str:
    """Its code and its text, for where it cannot be passed on as it is."""
    return f"{code_of(error)[2:] or 'refused'}: {message_of(error)}"


def body_of(error: Error) -> bytes:
    """The body of an answer that consists of this error."""
    return msgspec.json.encode({"error": error})
