"""Write server-sent events, and split a part of a backend's stream into events.

`gateway.plugin.SseParser` reads a byte stream and frames its events anew. Here a part already holds whole events, and
each keeps its bytes, because an upstream's events reach the client unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise

DONE = b"data: [DONE]\n\n"
HEARTBEAT = b": keep-alive\n\n"
STREAM_HEADERS: Mapping[str, str] = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx in front of the gateway would buffer events
}

_EVENT_END = re.compile(rb"(?:\r\n){2}|\n\n|\r\r")


def encode_event(data: bytes) -> bytes:
    """Frame `data`, which must be a single line, as JSON is."""
    return b"data: %b\n\n" % data


def encode_comment(text: bytes) -> bytes:
    """Frame a comment, which clients skip."""
    return b": %b\n\n" % text


def replace_data(framed: bytes, data: bytes) -> bytes:
    """Replace the data of an event; its other fields, such as its name, stay."""
    others = [line for line in framed.splitlines() if line and line.partition(b":")[0] != b"data"]
    return b"\n".join([*others, *(b"data: " + line for line in data.splitlines())]) + b"\n\n"


def split_events(raw: bytes) -> list[tuple[bytes, bytes]]:
    """Split whole events into (framed, data) pairs.

    Comments, and events without data, are dropped.
    """
    if raw.startswith(b"data: ") and raw.find(b"\n") == len(raw) - 2 and raw.endswith(b"\n") and b"\r" not in raw:
        return [(raw, raw[6:-2])]  # the usual case: one event of one line
    return [(framed, data) for framed in _split(raw) if (data := _data_of(framed)) is not None]


def _split(raw: bytes) -> list[bytes]:
    ends = [found.end() for found in _EVENT_END.finditer(raw)]
    if not ends or ends[-1] < len(raw):
        raw, ends = raw + b"\n\n", [*ends, len(raw) + 2]
    return [raw[start:end] for start, end in pairwise([0, *ends])]


def _data_of(framed: bytes) -> bytes | None:
    # WHATWG HTML §9.2.6: one space after the colon is removed; several data lines are joined by newlines.
    lines = [line[5:].removeprefix(b" ") for line in framed.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
