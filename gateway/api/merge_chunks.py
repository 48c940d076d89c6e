"""Chunks of one answer, put together: what `chunks_of` takes apart is the answer again.

A delta grows what is there: texts are joined, lists of numbered entries (tool calls) grow entry by entry, other lists
get longer, and what names a thing is said once and stands. All that is said is kept as the JSON it came as. So a chunk
costs what it is long, whatever came before it; nothing is left to encode at the end; and an answer in a million
pieces takes no more memory than its text. What must be walked through at the end is counted.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.api.chunks import Shape, broken_off, reason_to_finish
from gateway.api.sse import Stamp, decode_object

MAX_PLACES = 8192  # members and numbered entries of one answer: no answer that is meant has more
MAX_LEVELS = 6  # a call's arguments are at the fourth; what is deeper does not grow, the last word stands

# A server that repeats these in every chunk means the same thing again, not more of it.
_SAID_ONCE = frozenset(
    {"content_filter_results", "finish_reason", "id", "index", "name", "prompt_filter_results", "role", "type"}
)
_NO_ID = (b"null", b'""')

Members = dict[str, msgspec.Raw]


class _Numbered(msgspec.Struct):
    index: int


class _Function(msgspec.Struct):
    name: str | None = None


_CHOICES = msgspec.json.Decoder(list[Members] | None)
_MEMBERS = msgspec.json.Decoder(Members)
_INDEX = msgspec.json.Decoder(int | None)
_FUNCTION = msgspec.json.Decoder(_Function | None)
_NUMBERS = msgspec.json.Decoder(list[_Numbered])
_ENTRIES = msgspec.json.Decoder(list[Members])


class _Text:
    """A text that grows: what stands between its quotes."""

    def __init__(self) -> None:
        self._inside = bytearray()

    def add(self, raw: msgspec.Raw) -> None:
        self._inside += memoryview(raw)[1:-1]

    def raw(self) -> msgspec.Raw:
        return msgspec.Raw(b"".join((b'"', self._inside, b'"')))


class _List:
    """A list that grows: by numbered entries, each of which grows, and by others, which stay as they are."""

    def __init__(self) -> None:
        self._pieces: list[bytearray | dict[str, Any]] = []
        self._by_index: dict[int, dict[str, Any]] = {}

    def __bool__(self) -> bool:
        return bool(self._pieces)

    def unnumber(self) -> None:
        for piece in self._pieces:
            if isinstance(piece, dict):
                piece.pop("index", None)

    def extend(self, raw: msgspec.Raw) -> None:
        inside = bytes(memoryview(raw)[1:-1]).strip()
        if not inside:
            return
        if self._pieces and isinstance(last := self._pieces[-1], bytearray):
            last += b"," + inside
        else:
            self._pieces.append(bytearray(inside))

    def entry(self, number: int, new: Members) -> dict[str, Any]:
        """The one that this is more of, or a new one."""
        known = self._by_index.get(number)
        if known is None or _is_another(known, new):
            known = self._by_index[number] = {}
            self._pieces.append(known)
        return known

    def raw(self) -> msgspec.Raw:
        pieces = (piece if isinstance(piece, bytearray) else msgspec.json.encode(_raw(piece)) for piece in self._pieces)
        return msgspec.Raw(b"".join((b"[", b",".join(pieces), b"]")))


class ChunkMerger:
    """Puts chunks together as they come, in time and memory linear in them."""

    def __init__(self, stamp: Stamp, shape: Shape) -> None:
        self._stamp, self._shape = stamp, shape
        self._rest: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._places = 0

    def add(self, data: bytes) -> None:
        """The next chunk. Raises BackendUnavailable on an error event, ValueError for what cannot be read."""
        data.decode()  # raw members may be no UTF-8
        members = decode_object(data, self._stamp)
        if error := msgspec.json.decode(members.pop("error", b"null")):
            raise broken_off(self._stamp, {"error": error})
        choices = _CHOICES.decode(members.pop("choices", b"null"))
        if choices is None:
            members = {name: raw for name, raw in members.items() if name == "usage"}
        for choice in choices or ():
            index = _INDEX.decode(choice.get("index", b"null")) or 0
            self._grow(self._choices.setdefault(index, {}), choice, MAX_LEVELS)
        self._grow(self._rest, members, levels=0)

    def answer(self) -> dict[str, Any]:
        """All of it as one."""
        choices = [_whole(self._choices[index], self._shape) for index in sorted(self._choices)]
        told = {name: value for name, value in self._rest.items() if value is not None and name != "object"}
        return told | {"choices": choices}

    def _grow(self, whole: dict[str, Any], delta: Members, levels: int) -> None:
        self._count(sum(name not in whole for name in delta))
        for name, raw in delta.items():
            kind = bytes(memoryview(raw)[:1])
            if kind == b"n":
                whole.setdefault(name, None)
            elif not levels or name in _SAID_ONCE or kind not in b'"[{':
                whole[name] = raw.copy()
            elif kind == b"{":
                self._grow(_held(whole, name, dict), _MEMBERS.decode(raw), levels - 1)
            elif kind == b"[":
                self._lengthen(_held(whole, name, _List), raw, levels - 1)
            else:
                _held(whole, name, _Text).add(raw)

    def _lengthen(self, whole: _List, raw: msgspec.Raw, levels: int) -> None:
        numbers = _numbers_in(raw)
        if numbers is None:
            whole.extend(raw)
            return
        self._check(len(numbers))  # before so many are looked at
        for number, entry in zip(numbers, _ENTRIES.decode(raw), strict=True):
            known = whole.entry(number, entry)
            if not known:
                self._count(1)
            self._grow(known, entry, levels)

    def _count(self, places: int) -> None:
        self._places += places
        self._check(self._places)

    def _check(self, places: int) -> None:
        if places > MAX_PLACES:
            raise self._stamp.failure("sent an answer in more pieces than any that is meant has")


def _held(whole: dict[str, Any], name: str, kind: type[Any]) -> Any:
    """What grows under this name; from nothing, where something else stands."""
    held = whole.get(name)
    if not isinstance(held, kind):
        held = whole[name] = kind()
    return held


def _numbers_in(entries: msgspec.Raw) -> list[int] | None:
    """The `index` of each entry; None where there is one without."""
    if b'"index"' not in bytes(entries):
        return None
    try:
        return [entry.index for entry in _NUMBERS.decode(entries)]
    except msgspec.ValidationError:
        return None


def _is_another(known: dict[str, Any], new: Members) -> bool:
    """Whether a new entry has an old one's number: another id, and not only more of the same call's arguments."""
    old_id, new_id = bytes(known.get("id") or b"null"), bytes(new.get("id", b"null"))
    if old_id in _NO_ID or new_id in (*_NO_ID, old_id):
        return False
    function = _FUNCTION.decode(new.get("function", b"null"))
    return function is None or bool(function.name)


def _whole(choice: dict[str, Any], shape: Shape) -> dict[str, Any]:
    whole = {"logprobs": None, **choice, "finish_reason": choice.get("finish_reason") or "stop"}
    if shape == "chat":
        said = whole.pop("delta", None) or {}
        calls = said.get("tool_calls")
        if isinstance(calls, _List):
            calls.unnumber()
        whole["message"] = {"role": "assistant", "content": None, "refusal": None, **said}
        whole["finish_reason"] = choice.get("finish_reason") or reason_to_finish(bool(calls))
    return {name: _raw(value) for name, value in whole.items()}


def _raw(value: Any) -> Any:
    """What grew, as it is now: copied once, because it may be long."""
    if isinstance(value, dict):
        return {name: _raw(inner) for name, inner in value.items()}
    return value.raw() if isinstance(value, _Text | _List) else value
