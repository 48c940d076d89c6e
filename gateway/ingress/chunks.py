"""Chunks of OpenAI's streams: made from a backend's parts, taken from a whole answer, put back together.

What `chunks_of` takes apart, `Merger` makes the answer again. A delta grows what is there: texts are joined, lists of
numbered entries (tool calls) grow entry by entry, and what names a thing is said once and stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from gateway.ingress.framing import Stamp
from gateway.plugin import BackendUnavailable

Shape = Literal["chat", "completion"]
Chunk = dict[str, Any]

# A server that repeats these in every chunk means the same thing again, not more of it.
_SAID_ONCE = frozenset(
    {"content_filter_results", "finish_reason", "id", "index", "name", "prompt_filter_results", "role", "type"}
)


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


# ── putting them back together ───────────────────────────────────────────────────────────────────


class Merger:
    """Puts chunks together as they come, in time linear in them."""

    def __init__(self, stamp: Stamp, shape: Shape) -> None:
        self._stamp, self._shape = stamp, shape
        self._rest: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, chunk: Chunk) -> None:
        """The next chunk. Raises BackendUnavailable on an error event."""
        if chunk.get("error"):
            raise broken_off(self._stamp, chunk)
        self._rest |= {k: v for k, v in chunk.items() if v is not None and k not in ("choices", "object")}
        for choice in chunk.get("choices") or ():
            _grow(self._choices.setdefault(choice.get("index") or 0, {}), choice)

    def answer(self) -> dict[str, Any]:
        """All of it as one."""
        choices = [_whole(_plain(self._choices[index]), self._shape) for index in sorted(self._choices)]
        return self._rest | {"choices": choices}


def broken_off(stamp: Stamp, chunk: Chunk) -> BackendUnavailable:
    """What an upstream's error event means: its stream will not be completed."""
    error = chunk.get("error")
    message = error.get("message", error) if isinstance(error, dict) else error
    return stamp.failure("broke off its stream", said=str(message)[:500])


def _whole(choice: dict[str, Any], shape: Shape) -> dict[str, Any]:
    if shape == "completion":
        return {"logprobs": None, **choice, "finish_reason": choice.get("finish_reason") or "stop"}
    said = choice.pop("delta", {})
    calls = said.get("tool_calls") or []
    if calls:
        said["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in calls]
    message = {"role": "assistant", "content": None, "refusal": None, **said}
    reason = choice.get("finish_reason") or reason_to_finish(bool(calls))
    return {"logprobs": None, **choice, "message": message, "finish_reason": reason}


class _Text:
    """A text that grows: its pieces, joined at the end."""

    __slots__ = ("pieces",)

    def __init__(self, piece: str) -> None:
        self.pieces = [piece]


def _plain(value: Any) -> Any:
    """The value with all texts joined."""
    if isinstance(value, _Text):
        return "".join(value.pieces)
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


def _grow(whole: dict[str, Any], delta: dict[str, Any]) -> None:
    for key, new in delta.items():
        old = whole.get(key)
        if key in _SAID_ONCE:
            whole[key] = old if new is None else new
        elif isinstance(new, dict):
            whole[key] = old if isinstance(old, dict) else {}
            _grow(whole[key], new)
        elif isinstance(new, list):
            whole[key] = _grown_list(old if isinstance(old, list) else [], new)
        elif isinstance(new, str):
            if isinstance(old, _Text):
                old.pieces.append(new)
            else:
                whole[key] = _Text(new)
        elif new is not None or key not in whole:
            whole[key] = new


def _grown_list(old: list[Any], new: list[Any]) -> list[Any]:
    """Entries with an `index` grow the entry of that index; others are appended."""
    grown = list(old)
    by_index = {entry["index"]: entry for entry in grown if _is_numbered(entry)}
    for entry in new:
        if not isinstance(entry, dict):
            grown.append(entry)
            continue
        known = by_index.get(entry["index"]) if _is_numbered(entry) else None
        if known is None:
            known = {}
            grown.append(known)
        _grow(known, entry)
        if _is_numbered(entry):
            by_index[entry["index"]] = known
    return grown


def _is_numbered(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("index"), int)
