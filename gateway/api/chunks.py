"""The shape of OpenAI's chat and text completions, whole or in chunks.

`ChunkFormat` holds the part both share; `gateway.api.chat` and `gateway.api.completions` implement the differences.
`usage` is left out if the backend did not report it: a client would count an invented zero.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import msgspec

from gateway.api.response_json import ResponseContext
from gateway.plugin import BackendUnavailable

Chunk = dict[str, Any]
Members = dict[str, msgspec.Raw]

_EMPTY = frozenset({b"null", b'""', b"[]", b"{}", b"false", b"0"})


class ChunkChoice(msgspec.Struct):
    """The members of a chunk's choice that decide what it adds to the response."""

    index: int = 0
    delta: Members | None = None
    text: str | None = None
    finish_reason: str | None = None

    def delta_content(self) -> Members:
        """Return the members of the delta that add something; a role does not."""
        return {name: raw for name, raw in (self.delta or {}).items() if name != "role" and bytes(raw) not in _EMPTY}


class ChunkFormat(ABC):
    """Chat completions or text completions.

    uses_deltas: a choice holds its text in `delta`, not in `text`. object_name: of a whole response.
    """

    uses_deltas: ClassVar[bool]
    id_prefix: ClassVar[str]
    object_name: ClassVar[str]
    chunk_object_name: ClassVar[str]

    # ── shape ────────────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    def value_of(self, text: str) -> dict[str, Any]:
        """Return the members a choice of this text has."""

    @abstractmethod
    def choice_of(self, value: dict[str, Any]) -> dict[str, Any]:
        """Return a value a backend yielded, such as a delta, as a choice."""

    @abstractmethod
    def empty_choice(self) -> dict[str, Any]:
        """Return a choice that adds no text."""

    @abstractmethod
    def first_chunk(self, chunk: Chunk) -> Chunk:
        """Return the chunk as the first of a stream."""

    @abstractmethod
    def opening(self, choice: dict[str, Any]) -> dict[str, Any]:
        """Return a response's choice as a chunk's choice, without finish reason."""

    @abstractmethod
    def answer(self, context: ResponseContext, value: Any) -> dict[str, Any]:
        """Return the whole response for a value of a backend.

        Raises BackendUnavailable if it cannot be one.
        """

    # ── continuation on another backend ──────────────────────────────────────────────────────────

    @abstractmethod
    def text_in(self, choice: ChunkChoice) -> str | None:
        """Return the text of a choice; None if it holds something other than text."""

    @abstractmethod
    def with_text(self, choice: dict[str, Any], text: str) -> dict[str, Any]:
        """Return the members that replace a choice's own text by this text."""

    @abstractmethod
    def logprobs_of_rest(self, logprobs: Any, text: str, rest: str, *, begins_at: int) -> Any:
        """Cut the logprobs of `text` to those of its end, `rest`; None if they do not fit.

        begins_at: the offset of the rest in the client's text.
        """

    @abstractmethod
    def continued_request(self, members: Members, text: str) -> dict[str, Any] | None:
        """Return the members of a request that change so that it continues after `text`.

        None if that is impossible.
        """

    @abstractmethod
    def prefix_of(self, continued: dict[str, Any], text: str) -> str:
        """Return the text that a backend may repeat when it continues the request."""

    # ── shared ───────────────────────────────────────────────────────────────────────────────────

    def chunk_of(self, context: ResponseContext, value: Any) -> Chunk:
        """Return a yielded value as a chunk, without the fixed members.

        A value is a text, a delta, `{"usage": …}` or a chunk. Raises BackendUnavailable for anything else.
        """
        if isinstance(value, str):
            value = self.value_of(value)
        if not isinstance(value, dict):
            raise context.failure(f"yielded a {type(value).__name__} into a stream of text; yield texts or chunks")
        if "choices" in value:
            return _checked(context, value)
        if value.get("error"):
            raise stream_error(context, value)
        if value.keys() == {"usage"}:
            return {"choices": [], **value}
        return {"choices": [{"index": 0, "logprobs": None, "finish_reason": None, **self.choice_of(value)}]}

    def chunks_of(self, answer: dict[str, Any]) -> Iterator[Chunk]:
        """Split a whole response into chunks: its content, its finish reasons, its usage."""
        rest = {k: v for k, v in answer.items() if k not in ("choices", "usage", "object")}
        yield rest | {"choices": [self.opening(choice) for choice in answer["choices"]]}
        yield rest | {"choices": [self._closing(choice) for choice in answer["choices"]]}
        if answer.get("usage"):
            yield {"choices": [], "usage": answer["usage"]}

    def closing(self, reason: str, index: int = 0) -> dict[str, Any]:
        """Return the choice that ends a stream."""
        return {"index": index, **self.empty_choice(), "logprobs": None, "finish_reason": reason}

    def _closing(self, choice: dict[str, Any]) -> dict[str, Any]:
        return self.closing(choice.get("finish_reason") or "stop", choice.get("index", 0))

    def head(self, context: ResponseContext, object_name: str) -> dict[str, Any]:
        """Return the members that a response, and each of its chunks, begins with."""
        return {
            "id": self.id_prefix + context.request_id,
            "object": object_name,
            "created": context.created,
            "model": context.model,
        }

    def completed(self, context: ResponseContext, value: Any) -> dict[str, Any]:
        """Add the fixed members a response lacks.

        Its own are kept, except for the model name.
        """
        choices = value.get("choices") if isinstance(value, dict) else None
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            raise context.failure(f"gave no answer of the shape {self.object_name}: it has no `choices`")
        whole = self.head(context, self.object_name) | value
        return whole if context.served_as == context.model else {**whole, "model": context.model}


def _checked(context: ResponseContext, chunk: Chunk) -> Chunk:
    choices = chunk["choices"]
    if not isinstance(choices, list) or not all(isinstance(choice, dict) and _is_choice(choice) for choice in choices):
        raise context.failure("has a chunk with `choices` that cannot be read")
    return chunk


def _is_choice(choice: dict[str, Any]) -> bool:
    return isinstance(choice.get("delta"), dict | None) and isinstance(choice.get("index") or 0, int)


def usage_of(value: dict[str, Any]) -> dict[str, Any]:
    """Return the `usage` member, if the backend reported it."""
    return {"usage": value["usage"]} if value.get("usage") else {}


def finish_reason(has_called_tools: bool) -> str:
    """Return the finish reason of a backend that gave none."""
    return "tool_calls" if has_called_tools else "stop"


def calls_tools(chunk: Chunk) -> bool:
    """Whether a delta of this chunk calls a tool."""
    return any((choice.get("delta") or {}).get("tool_calls") for choice in chunk["choices"])


def finishes(chunk: Chunk) -> bool:
    """Whether a choice of this chunk has a finish reason."""
    return any(choice.get("finish_reason") for choice in chunk["choices"])


def stream_error(context: ResponseContext, chunk: Chunk) -> BackendUnavailable:
    """Return the error for an upstream's error event, which ends its stream."""
    error = chunk.get("error")
    message = error.get("message", error) if isinstance(error, dict) else error
    return context.failure("broke off its stream", detail=str(message)[:500])
