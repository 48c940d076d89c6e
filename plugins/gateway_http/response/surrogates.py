"""Repair characters that an upstream has cut in two.

A server that streams token by token may send an emoji as two escaped UTF-16 surrogates: U+D83D in one event and U+DE00
in the next. The parsers of Python and JavaScript accept that; stricter parsers, and readers of events behind this
gateway, do not. The first surrogate is held until the event with the second arrives. A lone surrogate becomes U+FFFD,
also in a whole response. If a text ends after its first surrogate (a token limit fell between the two), the surrogate
is dropped.
"""

from __future__ import annotations

import json
import re
from typing import Any

from gateway.plugin import SseEvent

MAX_BYTES = 64 << 10  # a larger event is not a token; its surrogates are left unchanged
MAX_HELD = 256
MAX_WHOLE_BYTES = 1 << 20  # a larger response is not a text with a damaged character
MAX_REPLACED = 4096
REPLACEMENT = "\ufffd"

_HIGH, _LOW, _DIGITS = rb"\\u[dD][89abAB]", rb"\\u[dD][c-fC-F]", rb"[0-9a-fA-F]{2}"
_LONE = re.compile(_HIGH + _DIGITS + rb"(?!" + _LOW + rb")|(?<!" + _HIGH + rb"..)" + _LOW + _DIGITS)
# An escaped backslash does not begin an escape: an even number of backslashes may precede the surrogate.
_LONE_ESCAPE = re.compile(rb"(?<!\\)((?:\\\\)*)(?:" + _LONE.pattern + rb")")
_SURROGATE = re.compile("[\ud800-\udfff]")

Path = tuple[object, ...]


class SurrogateJoiner:
    """Joins the surrogates of one stream; `join` receives its events in turn."""

    def __init__(self) -> None:
        self._held: dict[Path, str] = {}  # first surrogates, by the position of their text in the event

    def join(self, event: SseEvent) -> SseEvent:
        """Return the same event, or an event with whole characters only."""
        if not self._held and b"\\u" not in event.data:
            return event
        if len(event.data) > MAX_BYTES or not (self._held or _LONE.search(event.data)):
            return event
        try:
            data = json.dumps(self._repair(json.loads(event.data), ()), separators=(",", ":")).encode()
        except (ValueError, RecursionError):  # malformed: the next check reports it
            return event
        name = b"event: " + event.name + b"\n" if event.name else b""
        return SseEvent(name + b"data: " + data + b"\n\n", data, event.name)

    def _repair(self, value: Any, path: Path) -> Any:
        if isinstance(value, str):
            return self._repair_text(value, path)
        if isinstance(value, list):
            return [self._repair(item, path) for item in value]
        if isinstance(value, dict):
            inside = (*path, value.get("index") if isinstance(value.get("index"), int) else None)
            return {self._repair_text(name, ()): self._repair(item, (*inside, name)) for name, item in value.items()}
        return value

    def _repair_text(self, text: str, path: Path) -> str:
        if text and path:
            text = self._held.pop(path, "") + text
            if "\ud800" <= text[-1] <= "\udbff" and len(self._held) < MAX_HELD:
                text, self._held[path] = text[:-1], text[-1]
        return _SURROGATE.sub(REPLACEMENT, text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass"))


def replace_lone_surrogates(body: bytes) -> bytes:
    """Return the same JSON with U+FFFD for every lone surrogate in it."""
    if len(body) > MAX_WHOLE_BYTES or b"\\ud" not in body.lower():
        return body
    return _LONE_ESCAPE.sub(rb"\1\\ufffd", body, MAX_REPLACED)
