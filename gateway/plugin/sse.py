"""An incremental parser for server-sent events.

The format is WHATWG HTML §9.2.6: lines end in LF, CR or CRLF, a blank line ends an event, and a line that begins with a
colon is a comment. Comments, fields other than `data` and `event`, and events without data are dropped. The remaining
lines are framed again, with LF. Time is linear in the number of bytes. Memory is bounded by the size limit of an event.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

BOM = b"\xef\xbb\xbf"
# Not `id` and `retry`: a POST cannot be resumed, and openai-python treats a comment after an id as an event.
FIELDS = frozenset({b"data", b"event"})


class EventTooLarge(ValueError):
    """An event exceeds the parser's `max_event_bytes`."""


class SseEvent(NamedTuple):
    """One event: `raw`, its lines with LF and a blank line; `data`, its data lines joined by LF; `name`, its type."""

    raw: bytes
    data: bytes
    name: bytes


class SseParser:
    """Parses a byte stream that arrives in chunks of any size.

    max_event_bytes: the size limit of one event. After EventTooLarge the parser cannot be used any more.
    """

    __slots__ = ("_data", "_is_past_bom", "_lines", "_max", "_name", "_partial", "_size", "_skip_lf")

    def __init__(self, max_event_bytes: int) -> None:
        self._max = max_event_bytes
        self._partial = bytearray()  # the beginning of an incomplete line
        self._is_past_bom = False  # a BOM is only recognised at the start
        self._skip_lf = False  # the last byte was CR, so a LF that follows ends the same line
        self._reset()

    def _reset(self) -> None:
        self._lines: list[bytes] = []
        self._data: list[bytes] = []
        self._name = b""
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[SseEvent]:
        """Yield the events that `chunk` completes; exhaust the iterator before the next call.

        Raises EventTooLarge if an event, complete or not, exceeds the limit.
        """
        if not self._is_past_bom:
            chunk = self._without_bom(chunk)
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
                self._check_size(len(self._partial))
                if len(line) == len(piece):
                    return
                line = bytes(self._partial)
                self._partial.clear()
            if line:
                self._add_line(line)
            elif (event := self._complete()) is not None:
                yield event

    def finish(self) -> SseEvent | None:
        """Return the last event if the stream ended without a blank line after it, else None.

        Call it only if the stream is known to be complete.
        """
        if self._partial:
            self._add_line(bytes(self._partial))
            self._partial.clear()
        return self._complete()

    def _without_bom(self, chunk: bytes) -> bytes:
        self._partial += chunk
        start = bytes(self._partial)
        if len(start) < len(BOM) and BOM.startswith(start):
            return b""
        self._is_past_bom = True
        self._partial.clear()
        return start.removeprefix(BOM)

    def _check_size(self, more: int) -> None:
        if self._size + more > self._max:
            raise EventTooLarge(f"an event has more than {self._max} bytes")

    def _add_line(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        if field not in FIELDS:
            return
        self._check_size(len(line))
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
