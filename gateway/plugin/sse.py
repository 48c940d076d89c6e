"""Server-sent events, taken from a byte stream one by one, whatever way the bytes arrive.

The format is WHATWG HTML §9.2.6: lines end in LF, CR or CRLF, a blank line ends an event, a line that
begins with a colon is a comment. Comments, other fields than these two and events without data are dropped; what
remains is framed anew, with LF. Time is linear in the bytes fed and memory bounded by one event's cap.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

BOM = b"\xef\xbb\xbf"
# Without `id` and `retry`: nobody can go on with a POST, and openai-python takes a comment after an id for an event.
FIELDS = frozenset({b"data", b"event"})


class EventTooLarge(ValueError):
    """An event went over the cap."""


class SseEvent(NamedTuple):
    """`raw`: framed, ending in a blank line. `data`: its data lines joined. `name`: the event's type, or empty."""

    raw: bytes
    data: bytes
    name: bytes


class SseParser:
    """Feed it chunks; it gives the events they complete. Raises EventTooLarge, after which it is of no use."""

    __slots__ = ("_begun", "_data", "_lines", "_max", "_name", "_partial", "_size", "_skip_lf")

    def __init__(self, max_event_bytes: int) -> None:
        self._max = max_event_bytes
        self._partial = bytearray()  # a line whose end has not arrived
        self._begun = False  # the place where a BOM may stand has passed
        self._skip_lf = False  # the last byte was CR: a LF that follows belongs to it
        self._reset()

    def _reset(self) -> None:
        self._lines: list[bytes] = []
        self._data: list[bytes] = []
        self._name = b""
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[SseEvent]:
        """The events that `chunk` completes; every one is taken before more is fed."""
        if not self._begun:
            chunk = self._begin(chunk)
        if self._skip_lf and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._skip_lf = False
        if not chunk:
            return
        self._skip_lf = chunk.endswith(b"\r")
        for piece in chunk.splitlines(keepends=True):
            line = piece.rstrip(b"\r\n")
            if self._partial or len(line) == len(piece):
                self._partial += line
                self._check(len(self._partial))
                if len(line) == len(piece):
                    return
                line = bytes(self._partial)
                self._partial.clear()
            if line:
                self._take(line)
            elif (event := self._complete()) is not None:
                yield event

    def finish(self) -> SseEvent | None:
        """The event the stream ended in without its blank line, if any. For streams known to be whole only."""
        if self._partial:
            self._take(bytes(self._partial))
            self._partial.clear()
        return self._complete()

    def _begin(self, chunk: bytes) -> bytes:
        self._partial += chunk
        held = bytes(self._partial)
        if len(held) < len(BOM) and BOM.startswith(held):
            return b""
        self._begun = True
        self._partial.clear()
        return held.removeprefix(BOM)

    def _check(self, more: int) -> None:
        if self._size + more > self._max:
            raise EventTooLarge(f"an event of more than {self._max} bytes")

    def _take(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        if field not in FIELDS:
            return
        self._check(len(line))
        self._size += len(line) + 1
        self._lines.append(line)
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value

    def _complete(self) -> SseEvent | None:
        lines, data, name = self._lines, self._data, self._name
        if not lines:
            return None
        self._reset()
        if not data:
            return None
        return SseEvent(b"\n".join(lines) + b"\n\n", b"\n".join(data), name)
