"""How likely each token was, where a client has the beginning of a text already and is told the rest.

Logprobs go token by token, and a text is cut where the client's ends. Where that is between two tokens, those of the
rest are told; where it is within one, none are, for that chunk. A continued text's tokens also say where they begin.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import msgspec

from gateway.api.chunks import Shape


class _Offsets(msgspec.Struct):
    text_offset: list[int] | None = None


class _Choice(msgspec.Struct):
    logprobs: _Offsets | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice]


_CHUNK = msgspec.json.Decoder(_Chunk)


def first_offset(data: bytes) -> int | None:
    """Where this chunk's first token begins in the text, if it says so."""
    if b'"text_offset"' not in data:
        return None
    try:
        offsets = [choice.logprobs.text_offset for choice in _CHUNK.decode(data).choices if choice.logprobs]
    except msgspec.DecodeError:
        return None
    return offsets[0][0] if offsets and offsets[0] else None


def of_the_rest(logprobs: Any, text: str, rest: str, shape: Shape, *, begins_at: int) -> Any:
    """The logprobs of `text`, cut to those of `rest`, which is its end; None where they do not fit.

    begins_at: where the rest begins, as the client counts.
    """
    try:
        if shape == "chat":
            return _of_entries(logprobs, text, rest)
        return _of_lists(logprobs, text, rest, begins_at)
    except (LookupError, TypeError, AttributeError):
        return None


def _of_entries(logprobs: Any, text: str, rest: str) -> Any:
    if text == rest:
        return logprobs
    entries = logprobs["content"]
    seam = _seam([entry["token"] for entry in entries], text, rest)
    return None if seam is None else logprobs | {"content": entries[seam:]}


def _of_lists(logprobs: Any, text: str, rest: str, begins_at: int) -> Any:
    tokens = logprobs["tokens"]
    seam = 0 if text == rest else _seam(tokens, text, rest)
    if seam is None:
        return None
    of_tokens = {k: v for k, v in logprobs.items() if isinstance(v, list) and len(v) == len(tokens)}
    cut = logprobs | {k: v[seam:] for k, v in of_tokens.items()}
    if offsets := cut.get("text_offset"):
        cut["text_offset"] = [offset - offsets[0] + begins_at for offset in offsets]
    return cut


def _seam(tokens: list[str], text: str, rest: str) -> int | None:
    """How many tokens come before the rest; None where it begins within one, or they are not the text's."""
    if not rest or "".join(tokens) != text or not text.endswith(rest):
        return None
    ends = list(accumulate(map(len, tokens), initial=0))
    before = len(text) - len(rest)
    return ends.index(before) if before in ends else None
