"""The bytes every answer is made of: JSON, server-sent events, and the few words a client waits for.

An upstream's bytes pass as they are; only what must change is decoded, and `msgspec.Raw` keeps the rest
of it byte for byte. Whatever cannot be read here is the backend's fault: BackendUnavailable.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import msgspec

from gateway.plugin import BackendFailed, BackendUnavailable

JSON = "application/json"
DONE = b"data: [DONE]\n\n"
HEARTBEAT = b": keep-alive\n\n"
STREAM_HEADERS: Mapping[str, str] = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx in front would hold events back
}

_RAW_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_EVENT_END = re.compile(rb"(?:\r\n){2}|\n\n|\r\r")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What OpenAI's answers carry besides the answer.

    model: the client's name for it. served_as: the name the backend was asked for; where that is `model`,
    an answer's own `model` stands, such as the dated version of it; where it is unknown (None) or another
    name, the client's is put in its place. created: seconds since 1970.
    """

    request_id: str
    model: str
    backend: str = "the backend"
    served_as: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def failure(self, what: str, said: str = "") -> BackendUnavailable:
        """An answer that cannot be passed on, another might; said: the backend's own words, for the client alone."""
        message = f"{self.backend} {what}"
        return BackendUnavailable(message, code="upstream_bad_response", again=False, detail=said)


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────


def encode_json(value: Any) -> bytes:
    """JSON; bytes as base64. Raises BackendFailed for what has no JSON form."""
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise BackendFailed(f"the backend's answer has no JSON form: {exc}") from exc


def decode_object(body: bytes, stamp: Stamp) -> dict[str, msgspec.Raw]:
    """A JSON object's members, undecoded. Raises BackendUnavailable when it is none."""
    try:
        return _RAW_OBJECT.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise stamp.failure(f"gave no JSON object: {exc}") from exc


def renamed(body: bytes, stamp: Stamp) -> bytes:
    """The JSON object with the client's name of the model, the same bytes where there is nothing to change."""
    if stamp.served_as == stamp.model or b'"model"' not in body:
        return body
    members = decode_object(body, stamp)
    ours = msgspec.json.encode(stamp.model)
    if "model" not in members or bytes(members["model"]) == ours:
        return body
    members["model"] = msgspec.Raw(ours)
    return msgspec.json.encode(members)


_HOLDERS = ("response", "message")  # of the Responses and the Messages API: what an event is about


def renamed_within(body: bytes, stamp: Stamp) -> bytes:
    """As `renamed`, for answers of any shape, where the model may stand in the object that an event carries."""
    if stamp.served_as in (None, stamp.model) or not stamp.model or b'"model"' not in body:
        return body
    try:
        members = _RAW_OBJECT.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body  # no JSON object: what it is, is not for us to say
    inner = {name: renamed_within(bytes(members[name]), stamp) for name in _HOLDERS if name in members}
    if "model" in members:
        inner["model"] = msgspec.json.encode(stamp.model)
    changed = {name: msgspec.Raw(value) for name, value in inner.items() if value != bytes(members[name])}
    return msgspec.json.encode(members | changed) if changed else body


# ── server-sent events ───────────────────────────────────────────────────────────────────────────


def event(data: bytes) -> bytes:
    """One event; `data` must be one line, as JSON is."""
    return b"data: %b\n\n" % data


def reframed(framed: bytes, data: bytes) -> bytes:
    """An event with `data` in the place of its own; what else it says, its name among it, stays."""
    kept = [line for line in framed.splitlines() if line and line.partition(b":")[0] != b"data"]
    return b"\n".join([*kept, *(b"data: " + line for line in data.splitlines())]) + b"\n\n"


def comment(text: bytes) -> bytes:
    """What clients skip."""
    return b": %b\n\n" % text


def events_of(raw: bytes) -> list[tuple[bytes, bytes]]:
    """The events in a piece of a stream that holds whole ones, each framed and as its data; comments are dropped."""
    if raw.startswith(b"data: ") and raw.find(b"\n") == len(raw) - 2 and raw.endswith(b"\n") and b"\r" not in raw:
        return [(raw, raw[6:-2])]  # what nearly always comes: one event of one line
    return [(framed, data) for framed in _split(raw) if (data := _data_of(framed)) is not None]


def _split(raw: bytes) -> list[bytes]:
    ends = [found.end() for found in _EVENT_END.finditer(raw)]
    if not ends or ends[-1] < len(raw):
        raw, ends = raw + b"\n\n", [*ends, len(raw) + 2]
    return [raw[start:end] for start, end in pairwise([0, *ends])]


def _data_of(framed: bytes) -> bytes | None:
    # WHATWG HTML §9.2.6: one space after the colon is taken off; several data lines are joined by newlines.
    lines = [line[5:].removeprefix(b" ") for line in framed.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
