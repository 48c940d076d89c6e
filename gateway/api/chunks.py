"""Chunks of OpenAI's streams: made from a backend's parts, or of a whole answer. `merger.py` puts them together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from gateway.api.sse import Stamp
from gateway.plugin import BackendUnavailable

Shape = Literal["chat", "completion"]
Chunk = dict[str, Any]


def chunk_of(stamp: Stamp, value: Any, shape: Shape) -> Chunk:
    """What a backend yields as a chunk, its fixed members still missing: a text, a delta, `{"usage": …}`, or one."""
    if isinstance(value, str):
        value = {"content": value} if shape == "chat" else {"text": value}
    if not isinstance(value, dict):
        raise stamp.failure(f"yielded a {type(value).__name__} into a stream of text; yield texts or chunks")
    if "choices" in value:
        return _checked(stamp, value)
    if value.get("error"):
        raise broken_off(stamp, value)
    if value.keys() == {"usage"}:
        return {"choices": [], **value}
    choice = {"delta": value} if shape == "chat" else value
    return {"choices": [{"index": 0, "logprobs": None, "finish_reason": None, **choice}]}


def _checked(stamp: Stamp, chunk: Chunk) -> Chunk:
    choices = chunk["choices"]
    if not isinstance(choices, list) or not all(isinstance(choice, dict) and _is_choice(choice) for choice in choices):
        raise stamp.failure("has a chunk whose `choices` cannot be read")
    return chunk


def _is_choice(choice: dict[str, Any]) -> bool:
    return isinstance(choice.get("delta"), dict | None) and isinstance(choice.get("index") or 0, int)


def chunks_of(answer: dict[str, Any], shape: Shape) -> Iterator[Chunk]:
    """A whole answer as chunks: all that was said, why it ended, what it used."""
    rest = {k: v for k, v in answer.items() if k not in ("choices", "usage", "object")}
    opening = [_opening(choice, shape) for choice in answer["choices"]]
    yield rest | {"choices": opening}
    yield rest | {"choices": [_closing(choice, shape) for choice in answer["choices"]]}
    if answer.get("usage"):
        yield {"choices": [], "usage": answer["usage"]}


def _opening(choice: dict[str, Any], shape: Shape) -> dict[str, Any]:
    said = {k: v for k, v in choice.items() if k != "message"} | {"finish_reason": None}
    return said | {"delta": _numbered(choice.get("message") or {})} if shape == "chat" else said


def _numbered(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    return message | {"tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]} if calls else message


def _closing(choice: dict[str, Any], shape: Shape) -> dict[str, Any]:
    nothing: dict[str, Any] = {"delta": {}} if shape == "chat" else {"text": ""}
    reason = choice.get("finish_reason") or "stop"
    return {"index": choice.get("index", 0), **nothing, "logprobs": None, "finish_reason": reason}


def reason_to_finish(has_called_tools: bool) -> str:
    """Why a backend that did not say ended."""
    return "tool_calls" if has_called_tools else "stop"


def calls_tools(chunk: Chunk) -> bool:
    """Whether a delta of this chunk calls a tool."""
    return any((choice.get("delta") or {}).get("tool_calls") for choice in chunk["choices"])


def finishes(chunk: Chunk) -> bool:
    """Whether a choice of this chunk says why it ended."""
    return any(choice.get("finish_reason") for choice in chunk["choices"])


def broken_off(stamp: Stamp, chunk: Chunk) -> BackendUnavailable:
    """What an upstream's error event means: its stream will not be completed."""
    error = chunk.get("error")
    message = error.get("message", error) if isinstance(error, dict) else error
    return stamp.failure("broke off its stream", said=str(message)[:500])
