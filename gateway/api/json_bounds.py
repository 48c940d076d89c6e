"""Bounds of a JSON body, checked before objects are built from it (resource exhaustion).

Counting builds no objects. No step here takes more than a few milliseconds: a large body is parsed in a thread, and
Python can give the interpreter to the event loop only between steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from gateway.plugin import TaskInvalid

MAX_ITEMS = 100_000
SMALL_BYTES = 65_536  # a body up to this size cannot take long, whatever it holds
# Elements of all lists and objects together, for each item: tokens of an embedding, numbers of a tensor.
ELEMENTS_PER_ITEM = 8
SLICE_BYTES = 1 << 20
_STRUCTURE = re.compile(rb'["\[\]{}]')
_OPENING, _CLOSING = b"[{", b"]}"


class _Lists(msgspec.Struct):
    """The lists from which a request counts its units of work."""

    messages: msgspec.Raw = msgspec.Raw(b"null")
    prompt: msgspec.Raw = msgspec.Raw(b"null")
    input: msgspec.Raw = msgspec.Raw(b"null")
    items: msgspec.Raw = msgspec.Raw(b"null")


_LISTS = msgspec.json.Decoder(_Lists)


def check_bounds(body: bytes, max_items: int = MAX_ITEMS) -> None:
    """Raise TaskInvalid if the body has too many elements. A body that is not JSON passes: its parser refuses it."""
    if len(body) <= SMALL_BYTES:
        return
    most = max_items * ELEMENTS_PER_ITEM
    if count(body, b",") > most and sum(_commas_outside_strings(body, most)) > most:
        raise TaskInvalid(f"the body has more than {most} elements in all ({ELEMENTS_PER_ITEM} × GATEWAY_MAX_ITEMS)")
    try:
        lists = _LISTS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    for name in _Lists.__struct_fields__:
        raw = bytes(getattr(lists, name))
        is_text_of_tokens = name in ("prompt", "input") and raw[1:64].lstrip()[:1].isdigit()
        if not is_text_of_tokens and has_more_elements(raw, max_items):
            problem = f"`{name}` has more than {max_items} elements, the limit of GATEWAY_MAX_ITEMS"
            raise TaskInvalid(problem, param=name)


def count(body: bytes, needle: bytes, *, ignores_case: bool = False) -> int:
    """Count a needle, slice by slice."""
    found, size = 0, len(needle) - 1
    for start in range(0, len(body), SLICE_BYTES):
        end = start + SLICE_BYTES + size
        found += body[start:end].lower().count(needle) if ignores_case else body.count(needle, start, end)
    return found


def contains(body: bytes, pattern: re.Pattern[bytes], longest: int) -> bool:
    """Whether a pattern of at most `longest` bytes occurs, slice by slice."""
    slices = range(0, len(body), SLICE_BYTES)
    return any(pattern.search(body, start, start + SLICE_BYTES + longest) is not None for start in slices)


def has_more_elements(raw: bytes, most: int) -> bool:
    """Whether a valid JSON list has more elements than `most`."""
    if not raw.startswith(b"[") or count(raw, b",") < most:
        return False
    commas, depth, at = 0, 0, 0
    for place, mark in _marks(raw):
        if depth == 1:
            commas += raw.count(b",", at, place)
            if commas >= most:
                return True
        depth += 1 if mark in _OPENING else -1 if mark in _CLOSING else 0
        at = place + 1 if mark != 0x22 else _string_end(raw, place)
    return False


def _commas_outside_strings(body: bytes, most: int) -> Iterator[int]:
    """Yield counts; end once they, or the strings, are more than `most`."""
    at = found = strings = 0
    while found <= most:
        quote = body.find(b'"', at)
        found += (here := body.count(b",", at, len(body) if quote < 0 else quote))
        yield here
        if quote < 0:
            return
        strings += 1
        if strings > 2 * most:
            yield most + 1
            return
        at = _string_end(body, quote)


def _marks(raw: bytes) -> Iterator[tuple[int, int]]:
    """Yield each bracket and each string's first quote, with its place."""
    at = 0
    while at < len(raw):
        found = _STRUCTURE.search(raw, at, at + SLICE_BYTES)
        if found is None:
            at += SLICE_BYTES
            continue
        place, mark = found.start(), raw[found.start()]
        yield place, mark
        at = place + 1 if mark != 0x22 else _string_end(raw, place)


def _string_end(body: bytes, quote: int) -> int:
    """Return the place after the string that begins at `quote`."""
    at = quote + 1
    while (end := body.find(b'"', at)) >= 0:
        backslashes = end
        while body[backslashes - 1] == 0x5C and backslashes > quote + 1:
            backslashes -= 1
        if (end - backslashes) % 2 == 0:
            return end + 1
        at = end + 1
    return len(body)
