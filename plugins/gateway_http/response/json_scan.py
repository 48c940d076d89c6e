"""JSON looked at while it arrives, so that what is none is given up at its first bytes and not kept to its last.

A piece is looked at in C only and in time linear in its length, whatever is in it: its strings are taken out,
what is between them may consist of JSON's own characters only, and of that the brackets must match.
It proves no grammar (`{,}` passes), but finds garbage, NaN, a cut and a depth bomb. What is small enough is decoded
after this anyway; what is not cannot be, without holding up the loop.
"""

from __future__ import annotations

import codecs
import re

ANY = b'{["-0123456789tfn'
OBJECT = b"{"
BOM = b"\xef\xbb\xbf"
BLANK = b" \t\r\n"
MAX_DEPTH = 512  # msgspec's own is a little more

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_CONTROL = bytes(set(range(32)) - set(BLANK))
_BETWEEN = b'{}[]:,0123456789+-.eE"\\' + BLANK + bytes(set(b"truefalsenull"))
_NO_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))
_OPENING = {ord("}"): ord("{"), ord("]"): ord("[")}


class JsonScanner:
    """Feed it the pieces in turn. `first`: the bytes it may begin with."""

    __slots__ = ("_decoder", "_first", "_has_begun", "_in_string", "_open")

    def __init__(self, first: bytes = ANY) -> None:
        self._first = first
        self._has_begun = False
        self._open = bytearray()  # the brackets that wait for theirs
        self._in_string = b""  # what a string that goes on began with, as far as its escapes need to know
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def feed(self, piece: bytes) -> bool:
        """Whether it may still become JSON."""
        return self._begins(piece) and self._is_text(piece) and self._is_between_strings(self._without_strings(piece))

    @property
    def is_over(self) -> bool:
        """Whether it may end here."""
        return self._has_begun and not self._open and not self._in_string and not self._decoder.getstate()[0]

    def _begins(self, piece: bytes) -> bool:
        if self._has_begun:
            return True
        start = piece.removeprefix(BOM).lstrip(BLANK)[:1]
        self._has_begun = bool(start)
        return start in self._first

    def _is_text(self, piece: bytes) -> bool:
        """UTF-8 without control characters."""
        if piece.translate(None, _CONTROL) != piece:
            return False
        try:
            if not piece.isascii() or self._decoder.getstate()[0]:
                self._decoder.decode(piece)
        except UnicodeDecodeError:
            return False
        return True

    def _without_strings(self, piece: bytes) -> bytes:
        rest, quote, inside = _STRING.sub(b"", self._in_string + piece).partition(b'"')
        is_escaping = (len(inside) - len(inside.rstrip(b"\\"))) % 2
        self._in_string = quote + b"\\" * is_escaping
        return rest

    def _is_between_strings(self, text: bytes) -> bool:
        if text.removeprefix(BOM).translate(None, _BETWEEN):
            return False
        brackets, before = text.translate(None, _NO_BRACKETS), -1
        for _ in range(MAX_DEPTH):
            if len(brackets) == before:
                break
            before = len(brackets)
            brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
        return len(brackets) <= 2 * MAX_DEPTH and all(map(self._matches, brackets)) and len(self._open) <= MAX_DEPTH

    def _matches(self, bracket: int) -> bool:
        opening = _OPENING.get(bracket)
        if opening is None:
            self._open.append(bracket)
            return True
        return bool(self._open) and self._open.pop() == opening
