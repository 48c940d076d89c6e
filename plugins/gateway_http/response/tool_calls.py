"""Decide whether the tool calls of a stream are whole, from their arguments.

Some servers send no `finish_reason` after a tool call. Its arguments are a JSON object, so they show where it ends.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .json_scan import MAX_DECODED_BYTES


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, msgspec.Raw] | None = None


class _Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


_CALLS = msgspec.json.Decoder(list[_Call])
_FUNCTION = msgspec.json.Decoder(_Function)


class _Arguments:
    """The arguments of one call so far; `is_object`: they came as an object, not as text."""

    def __init__(self, call_id: str | None) -> None:
        self.id = call_id
        self.is_object = False
        self._text = bytearray()

    def add(self, arguments: str | dict[str, msgspec.Raw] | None) -> None:
        if isinstance(arguments, dict):
            self.is_object = True
        elif arguments and len(self._text) <= MAX_DECODED_BYTES:
            self._text += arguments.encode("utf-8", "replace")

    @property
    def are_whole(self) -> bool:
        """Whether they are a JSON object. Above MAX_DECODED_BYTES that is not known."""
        if self.is_object:
            return True
        try:
            msgspec.json.decode(self._text, type=dict[str, msgspec.Raw])
        except (msgspec.DecodeError, RecursionError):
            return False
        return len(self._text) <= MAX_DECODED_BYTES


class ToolCalls:
    """The tool calls of one choice."""

    def __init__(self) -> None:
        self._current: dict[int, _Arguments] = {}  # by the index of the call
        self._all: list[_Arguments] = []
        self._is_readable = True

    def add(self, name: str, raw: msgspec.Raw) -> None:
        """Add the member `tool_calls` or `function_call` of a delta."""
        try:
            calls: list[Any] = (
                _CALLS.decode(raw) if name == "tool_calls" else [_Call(index=-1, function=_FUNCTION.decode(raw))]
            )
        except (msgspec.DecodeError, RecursionError):
            self._is_readable = False
            return
        for place, call in enumerate(calls):
            self._add_call(place if call.index is None else call.index, call)

    @property
    def are_whole(self) -> bool:
        """Whether the arguments of every call are complete."""
        return self._is_readable and bool(self._all) and all(each.are_whole for each in self._all)

    def _add_call(self, index: int, call: _Call) -> None:
        known = self._current.get(index)
        function = call.function or _Function()
        if known is None or (call.id and known.id and call.id != known.id and function.name):
            known = self._current[index] = _Arguments(call.id)
            self._all.append(known)
        known.id = known.id or call.id
        known.add(function.arguments)
