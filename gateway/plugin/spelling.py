"""Normal forms of names, so that a rule and the server behind the gateway read a name alike (parser differential)."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote, unquote_plus

MAX_ESCAPES = 4  # layers of percent escapes that are undone; no server on the way undoes more
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


def is_like(name: str, known: str) -> bool:
    """Whether some server reads the name of a form field or a query parameter as `known`, a name in lower case.

    Servers differ in whether they ignore case, escapes, quotes and outer spaces, and what follows a `[` or a NUL.
    """
    text = unescaped(unquote_plus(name)).lstrip(" \t'\"\\")
    return folded(_NAME_END.split(text, maxsplit=1)[0].rstrip(" \t'\"\\")) == known
