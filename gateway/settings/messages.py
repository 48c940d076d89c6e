"""Text for the operator: problems of a configuration, and values as an environment file has them, without secrets."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, SecretBytes, SecretStr

REDACTED = "********"

_PLAIN = re.compile(r"[\w.,:;/@%+=~\[\]{}^-]+", re.ASCII)
_USERINFO = re.compile(r"(?<=://)[^/@\s]*(?=@)")


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem of one variable, with a fix. Never contains a secret's value."""

    variable: str
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.variable}: {self.message}. Fix: {self.fix}"


class SettingsError(Exception):
    """The configuration is invalid; `problems` lists everything that is wrong with it."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name most similar to `name`; None if no similarity reaches `cutoff` (0 to 1)."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)


def nearest_of_all(name: str, known: Iterable[str]) -> str:
    """The known name most similar to `name`, however different; `known` is not empty."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


# ── values ───────────────────────────────────────────────────────────────────────────────────────


def render(value: Any) -> str:
    """A value as text, as its variable would have it; an unset value is the empty text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, SecretStr | SecretBytes):
        return REDACTED
    if isinstance(value, BaseModel):
        value = dict(value)
    if isinstance(value, Mapping):
        return json.dumps({str(k): render(v) for k, v in value.items()}, ensure_ascii=False) if value else ""
    if isinstance(value, tuple | list | set | frozenset):
        return _list(sorted(value, key=str) if isinstance(value, set | frozenset) else value)
    return str(value)


def _list(values: tuple[Any, ...] | list[Any]) -> str:
    texts = [render(value) for value in values]
    plain = all(text and text == text.strip() and "," not in text and text[0] not in "[{" for text in texts)
    return ",".join(texts) if plain else json.dumps(texts, ensure_ascii=False)


def redact_urls(text: str) -> str:
    """The text with the user and password of every URL in it redacted."""
    return _USERINFO.sub(REDACTED, text)


def quote(text: str) -> str:
    """The text as the right side of `NAME=` in an environment file, quoted if necessary."""
    if not text or _PLAIN.fullmatch(text):
        return text
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
