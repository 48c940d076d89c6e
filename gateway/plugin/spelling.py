"""Normal forms of names, so that a rule and the server behind the gateway read a name alike (parser differential)."""

from __future__ import annotations

import difflib
import heapq
import re
import unicodedata
from collections.abc import Iterable
from itertools import islice
from urllib.parse import unquote, unquote_plus

MAX_ESCAPES = 4  # layers of percent escapes that are undone; no server on the way undoes more
_COMPARED_CHARS, _COMPARED, _MAX_KNOWN = 64, 8, 1000
_INVISIBLE = ("Cc", "Cf")  # controls, and formats such as zero-width spaces
_BLANK = dict.fromkeys((0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0, *range(0xFE00, 0xFE10)))
_NAME_END = re.compile(r"[\[\x00-\x08\x0a-\x1f]")  # a list, or the end of a C string


def folded(text: str) -> str:
    """Return the text without differences of case, width, composition, invisible characters and outer spaces."""
    if text.isascii():
        return text.casefold().strip()
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text.translate(_BLANK)).casefold())
    return "".join(each for each in text if unicodedata.category(each) not in _INVISIBLE).strip()


def unescaped(text: str) -> str:
    """Return the text without percent escapes, also where it was escaped more than once."""
    for _ in range(MAX_ESCAPES):
        if "%" not in text or (plain := unquote(text)) == text:
            break
        text = plain
    return text


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that resembles `name` most, or None. Takes a few milliseconds at most."""
    name, wanted = name[:_COMPARED_CHARS], _pairs(name)
    ranked = heapq.nlargest(_COMPARED, islice(known, _MAX_KNOWN), key=lambda each: len(wanted & _pairs(each)))
    shown = {each[:_COMPARED_CHARS]: each for each in reversed(ranked)}
    return next((shown[each] for each in difflib.get_close_matches(name, shown, n=1)), None)


def _pairs(text: str) -> set[str]:
    text = text[:_COMPARED_CHARS]
    return {text[at : at + 2] for at in range(len(text) - 1)}


def is_like(name: str, known: str) -> bool:
    """Whether some server reads the name of a form field or a query parameter as `known`, a name in lower case.

    Servers differ in whether they ignore case, escapes, quotes and outer spaces, and what follows a `[` or a NUL.
    """
    text = unescaped(unquote_plus(name)).lstrip(" \t'\"\\")
    return folded(_NAME_END.split(text, maxsplit=1)[0].rstrip(" \t'\"\\")) == known
