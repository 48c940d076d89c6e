"""Errors that are answers: this request, as it is, gets no better one, there or elsewhere.

A text that is longer than the model reads, or that a filter stops, is told to the client as the upstream put
it, whatever status it came with, and is held against nobody.
"""

from __future__ import annotations

from typing import Any

import msgspec

# OpenAI, Azure, llama.cpp, OpenRouter; as `code` or as `type`.
CODES = frozenset(
    {
        "ResponsibleAIPolicyViolation", "content_filter", "content_policy_violation", "context_length_exceeded",
        "exceed_context_size_error", "invalid_prompt", "moderation_blocked", "string_above_max_length",
    }
)  # fmt: skip


class Refused(Exception):
    """A stream said so, by an event of this error."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__("the upstream refused the request")
        self.error = error


def is_answer(error: object) -> bool:
    """Whether an upstream's error object is an answer to the request, rather than a fault."""
    return isinstance(error, dict) and not CODES.isdisjoint(_texts(error.get("code"), error.get("type")))


def _texts(*values: object) -> list[str]:
    return [value for value in values if isinstance(value, str)]


def body_of(error: dict[str, Any]) -> bytes:
    """The body of an answer that consists of this error."""
    return msgspec.json.encode({"error": error})
