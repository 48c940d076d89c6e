"""Cut the logprobs of a text to those of its end.

The client already has the beginning of the text.

Logprobs are per token. If the rest begins between two tokens, it keeps its tokens' logprobs. If it begins within a
token, the chunk has none. The logprobs of a text completion also hold each token's offset.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import msgspec


class _Offsets(msgspec.Struct):
    text_offset: list[int] | None = None


class _Choice(msgspec.Struct):
    logprobs: _Offsets | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice]


_CHUNK = msgspec.json.Decoder(_Chunk)


def first_offset(data: bytes) -> int | None:
    """Return the offset of a chunk's first token in the text, if the chunk has one."""
    if b'"text_offset"' not in data:
        return None
    try:
        offsets = [choice.logprobs.text_offset for choice in _CHUNK.decode(data).choices if choice.logprobs]
    except msgspec.DecodeError:
        return None
    return offsets[0][0] if offsets and offsets[0] else None


def rest_of_entries(logprobs: Any, text: str, rest: str) -> Any:
    """Cut a chat's logprobs of `text` to those of its end, `rest`.

    None if they do not fit.
    """
    if text == rest:
        return logprobs
    try:
        entries = logprobs["content"]
        start = _first_token([entry["token"] for entry in entries], text, rest)
        return None if start is None else logprobs | {"content": entries[start:]}
    except (LookupError, TypeError, AttributeError):
        return None


def rest_of_lists(logprobs: Any, text: str, rest: str, *, begins_at: int) -> Any:
    """As `rest_of_entries`, for a text completion.

    begins_at: the offset of `rest` in the client's text.
    """
    try:
        tokens = logprobs["tokens"]
        start = 0 if text == rest else _first_token(tokens, text, rest)
        return None if start is None else _cut_lists(logprobs, len(tokens), start, begins_at)
    except (LookupError, TypeError, AttributeError):
        return None


def _cut_lists(logprobs: Any, length: int, start: int, begins_at: int) -> Any:
    of_tokens = {k: v for k, v in logprobs.items() if isinstance(v, list) and len(v) == length}
    cut = logprobs | {k: v[start:] for k, v in of_tokens.items()}
    if offsets := cut.get("text_offset"):
        cut["text_offset"] = [offset - offsets[0] + begins_at for offset in offsets]
    return cut


def _first_token(tokens: list[str], text: str, rest: str) -> int | None:
    """Return the index of the rest's first token.

    None if the rest begins within a token, or the tokens do not fit.
    """
    if not rest or "".join(tokens) != text or not text.endswith(rest):
        return None
    ends = list(accumulate(map(len, tokens), initial=0))
    before = len(text) - len(rest)
    return ends.index(before) if before in ends else None
