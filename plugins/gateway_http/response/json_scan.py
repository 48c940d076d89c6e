"""Scan JSON while it arrives.

So a body that is not JSON fails at its first wrong bytes and is not held to its end.
The scan of a piece runs in C and in time linear in its length, whatever it holds: strings are removed, the rest may
consist of JSON's own characters only, and its brackets must match.
It does not prove the grammar (`{,}` passes), but finds garbage, truncation and depth bombs. Bodies up to
MAX_DECODED_BYTES are decoded afterwards anyway; to decode longer bodies would block the event loop.
"""

from __future__ import annotations

import codecs
import re

import msgspec

ANY = b'{["-0123456789tfn'
OBJECT = b"{"
BOM = b"\xef\xbb\xbf"
BLANK = b" \t\r\n"
MAX_DEPTH = 512  # msgspec's own limit is a little higher
MAX_DECODED_BYTES = 16 << 20  # decoded in one call (11 ms); for longer bodies only the scan counts

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_CONTROL = bytes(set(range(32)) - set(BLANK))
_BETWEEN = b'{}[]:,0123456789+-.eE"\\' + BLANK + bytes(set(b"truefalsenull"))
_NOT_FINITE_ONLY = b"NIiy"  # what NaN and Infinity have beside the letters of true, false and null
_NOT_FINITE = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|-?(?:NaN|Infinity)', re.DOTALL)
_REPLACED = {b"-Infinity": b"-9999.0", b"Infinity": b"null", b"NaN": b"null"}  # OpenAI's value for an impossible token
_NO_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))
_OPENING = {ord("}"): ord("{"), ord("]"): ord("[")}


class JsonScanner:
    """Scans the pieces of one body in turn.

    first: the bytes that the value may begin with. has_not_finite: it may hold NaN or Infinity, as Python writes them.
    """

    __slots__ = ("_decoder", "_first", "_has_begun", "_in_string", "_open", "has_not_finite")

    def __init__(self, first: bytes = ANY) -> None:
        self._first = first
        self._has_begun = False
        self.has_not_finite = False
        self._open = bytearray()  # brackets that are still open
        self._in_string = b""  # of an unfinished string: its quote, and a backslash that escapes the next byte
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def feed(self, piece: bytes) -> bool:
        """Return whether the pieces so far can be the beginning of JSON."""
        return self._begins(piece) and self._is_text(piece) and self._is_between_strings(self._without_strings(piece))

    @property
    def is_complete(self) -> bool:
        """Whether the body may end here."""
        return self._has_begun and not self._open and not self._in_string and not self._decoder.getstate()[0]

    def _begins(self, piece: bytes) -> bool:
        if self._has_begun:
            return True
        start = piece.removeprefix(BOM).lstrip(BLANK)[:1]
        self._has_begun = bool(start)
        return start in self._first

    def _is_text(self, piece: bytes) -> bool:
        """Return whether it is UTF-8 without control characters."""
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
        if others := text.removeprefix(BOM).translate(None, _BETWEEN):
            if others.translate(None, _NOT_FINITE_ONLY):
                return False
            self.has_not_finite = True
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


def replace_not_finite(data: bytes) -> bytes:
    """Return the JSON with numbers in place of NaN and Infinity, which JSON does not have.

    Python's servers write them, such as a logprob of -Infinity.
    """
    if b"NaN" not in data and b"Infinity" not in data:
        return data
    return _NOT_FINITE.sub(lambda found: _REPLACED.get(found[0], found[0]), data)


def is_json(body: bytes) -> bool:
    """Return whether the body is JSON, without building it.

    Above MAX_DECODED_BYTES it returns True: a scanner has checked such a body while it arrived.
    """
    if len(body) > MAX_DECODED_BYTES:
        return True
    try:
        body.isascii() or body.decode()
        msgspec.json.decode(body, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
