"""An incremental parser for server-sent events.

The format is WHATWG HTML §9.2.6: lines end in LF, CR or CRLF, a blank line ends an event, and a line that begins with a
colon is a comment. Comments, fields other than `data` and `event`, and events without data are dropped. The remaining
lines are framed again, with LF. Time is linear in the number of bytes. Memory is bounded by the size limit of an event.

Three deviations of servers are read, and framed correctly: field names in capitals, JSON objects without `data:`, and
events that are parted by one newline. Data that is a whole JSON object, with another one after it, is an event: as data
of one event they would not be JSON.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

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

    __slots__ = (
        "_data",
        "_has_single_newlines",
        "_is_past_bom",
        "_lines",
        "_max",
        "_name",
        "_partial",
        "_size",
        "_skip_lf",
    )

    def __init__(self, max_event_bytes: int) -> None:
        self._max = max_event_bytes
        self._partial = bytearray()  # the beginning of an incomplete line
        self._is_past_bom = False  # a BOM is only recognised at the start
        self._has_single_newlines = False  # known since the second event
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
            if not line:
                if (event := self._complete()) is not None:
                    yield event
                continue
            if self._data and (event := self._complete_before(line)) is not None:
                yield event
            self._add_line(line)
            if self._has_single_newlines and self._data and (event := self._complete_after()) is not None:
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

    def _complete_before(self, line: bytes) -> SseEvent | None:
        """Return the event that ends before this line although no blank line parts them, else None."""
        value = _value_in(line)
        if not (value.startswith(b"{") or value == b"[DONE]") or not _is_object(b"\n".join(self._data)):
            return None
        self._has_single_newlines = True
        count = max(at for at, known in enumerate(self._lines) if known.startswith(b"data")) + 1
        rest = self._lines[count:]  # the next event's name
        self._lines = self._lines[:count]
        self._name = next((each[6:].removeprefix(b" ") for each in reversed(self._lines) if each[:6] == b"event:"), b"")
        event = self._complete()
        for each in rest:
            self._add_line(each)
        return event

    def _complete_after(self) -> SseEvent | None:
        data = b"\n".join(self._data)
        return self._complete() if data == b"[DONE]" or _is_object(data) else None

    def _add_line(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        if field not in FIELDS:
            if field.lower() in FIELDS:
                field = field.lower()
                line = field + line[len(field) :]
            elif line.startswith(b"{"):
                field, value, line = b"data", line, b"data: " + line
            else:
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


def _value_in(line: bytes) -> bytes:
    """Return the data in this line; empty if it has none."""
    if line.startswith(b"{"):
        return line
    return line[5:].strip() if line[:5].lower() == b"data:" else b""


def _is_object(data: bytes) -> bool:
    """Return whether the data is a whole JSON object."""
    if not (data.startswith(b"{") and data.rstrip().endswith(b"}")):
        return False
    try:
        msgspec.json.decode(data, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
