"""Characters that a server cut in two, put together again.

A server that streams token by token may send an emoji as its two UTF-16 halves, U+D83D in one event and U+DE00 in
the next, escaped. Python's and JavaScript's parsers take that; stricter ones, and what reads events after us, do not.
The first half waits for the event that brings the second one; a half that stays alone is U+FFFD, in a whole answer too.
One whose text has ended (a limit of tokens fell between the two) is half of nothing, and is left out.
"""

from __future__ import annotations

import json
import re
from typing import Any

from gateway.plugin import SseEvent

MAX_BYTES = 64 << 10  # larger events are no tokens; a half in one is left as it is
MAX_HELD = 256
MAX_WHOLE_BYTES = 1 << 20  # larger answers are no texts with a character missing
MAX_ALONE = 4096
ALONE = "\ufffd"

_HIGH, _LOW, _DIGITS = rb"\\u[dD][89abAB]", rb"\\u[dD][c-fC-F]", rb"[0-9a-fA-F]{2}"
_HALF = re.compile(_HIGH + _DIGITS + rb"(?!" + _LOW + rb")|(?<!" + _HIGH + rb"..)" + _LOW + _DIGITS)
# A backslash that is itself escaped begins nothing: those before the half come in pairs.
_ALONE = re.compile(rb"(?<!\\)((?:\\\\)*)(?:" + _HALF.pattern + rb")")
_SURROGATE = re.compile("[\ud800-\udfff]")

Path = tuple[object, ...]


class SurrogateJoiner:
    """`joined` of every event of a stream, in turn."""

    def __init__(self) -> None:
        self._held: dict[Path, str] = {}

    def joined(self, event: SseEvent) -> SseEvent:
        """The same event, or one with whole characters only."""
        if not self._held and b"\\u" not in event.data:
            return event
        if len(event.data) > MAX_BYTES or not (self._held or _HALF.search(event.data)):
            return event
        try:
            data = json.dumps(self._mended(json.loads(event.data), ()), separators=(",", ":")).encode()
        except (ValueError, RecursionError):  # malformed in another way, too
            return event
        name = b"event: " + event.name + b"\n" if event.name else b""
        return SseEvent(name + b"data: " + data + b"\n\n", data, event.name)

    def _mended(self, value: Any, path: Path) -> Any:
        if isinstance(value, str):
            return self._whole(value, path)
        if isinstance(value, list):
            return [self._mended(item, path) for item in value]
        if isinstance(value, dict):
            inside = (*path, value.get("index") if isinstance(value.get("index"), int) else None)
            return {self._whole(name, ()): self._mended(item, (*inside, name)) for name, item in value.items()}
        return value

    def _whole(self, text: str, path: Path) -> str:
        if text and path:
            text = self._held.pop(path, "") + text
            if "\ud800" <= text[-1] <= "\udbff" and len(self._held) < MAX_HELD:
                text, self._held[path] = text[:-1], text[-1]
        return _SURROGATE.sub(ALONE, text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass"))


def without_halves(body: bytes) -> bytes:
    """The same JSON, with U+FFFD for every half that stands alone in it."""
    if len(body) > MAX_WHOLE_BYTES or b"\\ud" not in body.lower():
        return body
    return _ALONE.sub(rb"\1\\ufffd", body, MAX_ALONE)
