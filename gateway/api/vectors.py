"""The members of a long list in a JSON object, found without decoding it: tens of megabytes at once hold up the loop.

Only brackets and quotes are looked at. Whether all of it is JSON shows when the members, and the object without them,
are decoded, each by itself.
"""

from __future__ import annotations

import asyncio
import re

_SLICE_BYTES = 65_536  # looked through without a pause
_MARK = re.compile(rb'["\\\[\]{}]')
_QUOTE, _BACKSLASH, _LIST = b'"\\['
_OPENING, _CLOSING, _SPACE = b"[{", b"]}", b" \t\r\n"


class Cut:
    """`body`, a JSON object, cut at the members of its list `name`; use `Cut.made`."""

    def __init__(self, body: bytes, name: str) -> None:
        self._body, self._name = body, f'"{name}"'.encode()
        self._depth = 0
        self._quote = self._escaped = self._from = self._begin = self._end = -1
        self._string = b""  # the last one beside the members, which may be the list's name
        self._spans: list[tuple[int, int]] = []

    @classmethod
    async def made(cls, body: bytes, name: str) -> Cut | None:
        """Cut it; None where the list is not found as it is usually written."""
        cut = cls(body, name)
        for start in range(0, len(body), _SLICE_BYTES):
            for mark in _MARK.finditer(body, start, min(start + _SLICE_BYTES, len(body))):
                cut._mark(mark.start())
            await asyncio.sleep(0)
        return cut if cut._end >= 0 else None

    @property
    def rest(self) -> bytes:
        """The object with an empty list in its place."""
        return self._body[: self._begin] + self._body[self._end :]

    def members(self) -> list[memoryview]:
        """The members' own bytes. Raises ValueError where something else than commas is between them."""
        view, at = memoryview(self._body), self._begin
        for number, (start, end) in enumerate(self._spans):
            if self._body[at:start].strip(_SPACE) != (b"," if number else b""):
                raise ValueError("a list of something else than objects")
            at = end
        if self._body[at : self._end].strip(_SPACE):
            raise ValueError("a list of something else than objects")
        return [view[start:end] for start, end in self._spans]

    def _mark(self, at: int) -> None:
        char = self._body[at]
        if self._quote >= 0:
            if at == self._escaped:
                return
            if char == _BACKSLASH:
                self._escaped = at + 1
            elif char == _QUOTE:
                self._string, self._quote = (self._body[self._quote : at + 1] if self._depth == 1 else b""), -1
        elif char == _QUOTE:
            self._quote = at
        elif char in _OPENING:
            self._open(at, char)
        elif char in _CLOSING:
            self._close(at)

    def _open(self, at: int, char: int) -> None:
        self._depth += 1
        if self._depth == 2 and char == _LIST and self._string == self._name:
            self._begin, self._end, self._spans = at + 1, -1, []  # the last of that name counts, as in any JSON
        elif self._depth == 3:
            self._from = at

    def _close(self, at: int) -> None:
        if self._begin >= 0 and self._end < 0:
            if self._depth == 3:
                self._spans.append((self._from, at + 1))
            elif self._depth == 2:
                self._end = at
        self._depth -= 1
