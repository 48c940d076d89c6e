"""Merge the chunks of a stream into one whole response.

This reverses `ChunkFormat.chunks_of`.

Each delta extends the response: texts are joined, numbered entries of a list (tool calls) are extended entry by entry,
other lists are appended to, and an identifying member such as `id` or `name` is set, not extended. All values stay the
JSON they came as. So a chunk costs time by its own length only, nothing is left to encode at the end, and a response of
a million chunks takes no more memory than its text. The members and entries visited at the end are counted and limited.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.api.chunks import ChunkFormat, Members, finish_reason, stream_error
from gateway.api.response_json import ResponseContext, decode_object

MAX_PLACES = 8192  # members and numbered entries of one response; more is taken for an attack
MAX_LEVELS = 6  # a call's arguments are at the fourth; a deeper member is replaced by its last value

# Members that identify: a server that repeats them in every chunk does not extend them.
_IDENTIFYING = frozenset(
    {"content_filter_results", "finish_reason", "id", "index", "name", "prompt_filter_results", "role", "type"}
)
_NO_ID = (b"null", b'""')


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
    """A growing text: the bytes between its quotes."""

    def __init__(self) -> None:
        self._inside = bytearray()

    def add(self, raw: msgspec.Raw) -> None:
        self._inside += memoryview(raw)[1:-1]

    def raw(self) -> msgspec.Raw:
        return msgspec.Raw(b"".join((b'"', self._inside, b'"')))


class _List:
    """A growing list: numbered entries grow, other entries are only appended."""

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
        """Return the entry that `new` extends, or an empty entry."""
        known = self._by_index.get(number)
        if known is None or _is_another(known, new):
            known = self._by_index[number] = {}
            self._pieces.append(known)
        return known

    def raw(self) -> msgspec.Raw:
        pieces = (piece if isinstance(piece, bytearray) else msgspec.json.encode(_raw(piece)) for piece in self._pieces)
        return msgspec.Raw(b"".join((b"[", b",".join(pieces), b"]")))


class ChunkMerger:
    """Merges chunks as they come, in time and memory linear in their size."""

    def __init__(self, context: ResponseContext, chunk_format: ChunkFormat) -> None:
        self._context, self._uses_deltas = context, chunk_format.uses_deltas
        self._rest: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._places = 0

    def add(self, data: bytes) -> None:
        """Add a chunk.

        Raises BackendUnavailable on an error event, ValueError for a chunk that cannot be read.
        """
        data.decode()  # msgspec does not check the encoding of raw members
        members = decode_object(data, self._context)
        if error := msgspec.json.decode(members.pop("error", b"null")):
            raise stream_error(self._context, {"error": error})
        choices = _CHOICES.decode(members.pop("choices", b"null"))
        if choices is None:
            members = {name: raw for name, raw in members.items() if name == "usage"}
        for choice in choices or ():
            index = _INDEX.decode(choice.get("index", b"null")) or 0
            self._grow(self._choices.setdefault(index, {}), choice, MAX_LEVELS)
        self._grow(self._rest, members, levels=0)

    def answer(self) -> dict[str, Any]:
        """Return the whole response."""
        choices = [_whole_choice(self._choices[index], self._uses_deltas) for index in sorted(self._choices)]
        rest = {name: value for name, value in self._rest.items() if value is not None and name != "object"}
        return rest | {"choices": choices}

    def _grow(self, whole: dict[str, Any], delta: Members, levels: int) -> None:
        self._count(sum(name not in whole for name in delta))
        for name, raw in delta.items():
            kind = bytes(memoryview(raw)[:1])
            if kind == b"n":
                whole.setdefault(name, None)
            elif not levels or name in _IDENTIFYING or kind not in b'"[{':
                whole[name] = raw.copy()
            elif kind == b"{":
                self._grow(_growing(whole, name, dict), _MEMBERS.decode(raw), levels - 1)
            elif kind == b"[":
                self._lengthen(_growing(whole, name, _List), raw, levels - 1)
            else:
                _growing(whole, name, _Text).add(raw)

    def _lengthen(self, whole: _List, raw: msgspec.Raw, levels: int) -> None:
        numbers = _numbers_in(raw)
        if numbers is None:
            whole.extend(raw)
            return
        self._check(len(numbers))  # before so many are decoded
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
            raise self._context.failure(f"sent a response of more than {MAX_PLACES} members")


def _growing(whole: dict[str, Any], name: str, kind: type[Any]) -> Any:
    """Return the growing value under this name.

    Replaces a value of another type by an empty value.
    """
    value = whole.get(name)
    if not isinstance(value, kind):
        value = whole[name] = kind()
    return value


def _numbers_in(entries: msgspec.Raw) -> list[int] | None:
    """Return the `index` of each entry; None if an entry has none."""
    if b'"index"' not in bytes(entries):
        return None
    try:
        return [entry.index for entry in _NUMBERS.decode(entries)]
    except msgspec.ValidationError:
        return None


def _is_another(known: dict[str, Any], new: Members) -> bool:
    """Whether `new` is another entry, with its own id and name, under a used number."""
    old_id, new_id = bytes(known.get("id") or b"null"), bytes(new.get("id", b"null"))
    if old_id in _NO_ID or new_id in (*_NO_ID, old_id):
        return False
    function = _FUNCTION.decode(new.get("function", b"null"))
    return function is None or bool(function.name)


def _whole_choice(choice: dict[str, Any], uses_deltas: bool) -> dict[str, Any]:
    whole = {"logprobs": None, **choice, "finish_reason": choice.get("finish_reason") or "stop"}
    if uses_deltas:
        delta = whole.pop("delta", None) or {}
        calls = delta.get("tool_calls")
        if isinstance(calls, _List):
            calls.unnumber()
        whole["message"] = {"role": "assistant", "content": None, "refusal": None, **delta}
        whole["finish_reason"] = choice.get("finish_reason") or finish_reason(bool(calls))
    return {name: _raw(value) for name, value in whole.items()}


def _raw(value: Any) -> Any:
    """Return a growing value as JSON; a text is copied once, because it may be long."""
    if isinstance(value, dict):
        return {name: _raw(inner) for name, inner in value.items()}
    return value.raw() if isinstance(value, _Text | _List) else value
