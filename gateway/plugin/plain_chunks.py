"""The plain chunk of a completion stream, which is decoded in one step.

Nearly every chunk of such a stream only adds text or a finish reason. `PlainChunk` accepts those and no other. Decoding
any other chunk raises `msgspec.ValidationError`, and the caller then checks every member, more slowly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec


class PlainDelta(msgspec.Struct, forbid_unknown_fields=True):
    """A delta with a text, and nothing else but the role."""

    role: str | None = None
    content: str | None = None
    refusal: None = None


class PlainChoice(msgspec.Struct, forbid_unknown_fields=True):
    """A choice with a text or a finish reason, and no other member."""

    index: int = 0
    delta: PlainDelta = msgspec.field(default_factory=PlainDelta)
    finish_reason: str | None = None
    logprobs: None = None
    text: str | None = None


class PlainChunk(msgspec.Struct):
    """A chunk of plain choices, without any sign of an error."""

    choices: Sequence[PlainChoice]
    object: Literal["chat.completion.chunk", "text_completion"]
    error: None = None
    error_code: None = None
    detail: None = None
    message: None = None
    type: None = None
