"""Conceals known secrets in text from workers: as they are, quoted, encoded, coloured, or split over two lines."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, SecretBytes, SecretStr

CONCEALED = "***"
MIN_CHARS = 6  # shorter secrets occur in ordinary words
MIN_PART_CHARS = 8  # of a secret that is cut off at the end or the start of a line
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class SecretMask:
    """The secrets of the gateway that are known so far. One that a reload replaces stays known."""

    def __init__(self) -> None:
        self._secrets: set[str] = set()
        self._whole: re.Pattern[str] | None = None
        self._parts: tuple[str, ...] = ()

    def add(self, secrets: Iterable[str]) -> None:
        """Conceal these as well."""
        new = {secret for secret in secrets if len(secret) >= MIN_CHARS} - self._secrets
        if not new:
            return
        self._secrets |= new
        spellings = {spelling for secret in self._secrets for spelling in _spellings(secret)}
        self._whole = re.compile("|".join(map(re.escape, sorted(spellings, key=len, reverse=True))))
        self._parts = tuple(secret for secret in self._secrets if len(secret) > MIN_PART_CHARS)

    def conceal(self, text: str) -> str:
        """Return a line of text with each secret replaced. If a colour code hides one, the codes are removed."""
        if self._whole is None:
            return text
        plain = _COLOURS.sub("", text)
        concealed = self._conceal(plain)
        return text if concealed == plain else concealed

    def _conceal(self, text: str) -> str:
        assert self._whole is not None
        text = self._whole.sub(CONCEALED, text)
        for secret in self._parts:
            for length in range(len(secret) - 1, MIN_PART_CHARS - 1, -1):
                if text.endswith(secret[:length]):
                    text = text[:-length] + CONCEALED
                if text.startswith(secret[-length:]):
                    text = CONCEALED + text[length:]
        return text

    def conceal_all(self, keys: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keys of a log event with each secret in a value replaced."""
        return {name: self._conceal_value(value) for name, value in keys.items()}

    def _conceal_value(self, value: Any) -> Any:
        if self._whole is None:
            return value
        if isinstance(value, str):
            return "\n".join(map(self.conceal, value.split("\n")))
        if isinstance(value, Mapping):
            return {self._conceal_value(name): self._conceal_value(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._conceal_value(item) for item in value]
        return value


NO_SECRETS = SecretMask()


def secrets_in(value: Any) -> Iterator[str]:
    """Yield every secret in settings, in groups, lists and maps as well."""
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, SecretBytes):
        yield value.get_secret_value().decode(errors="replace")
    elif isinstance(value, BaseModel):
        for _, item in value:
            yield from secrets_in(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from secrets_in(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from secrets_in(item)


def _spellings(secret: str) -> Iterator[str]:
    yield from (secret, quote(secret, safe=""), json.dumps(secret)[1:-1], repr(secret)[1:-1])
    data = secret.encode()
    yield from (binascii.hexlify(data).decode(), binascii.hexlify(data).decode().upper())
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for offset in range(3):  # the text depends on the number of bytes ahead: `user:` of Basic credentials
            encoded = encode(bytes(offset) + data).decode()
            first = (offset * 8 + 5) // 6  # characters that contain a bit of the bytes ahead
            last = (offset + len(data)) * 8 // 6  # after it, characters with bits of the bytes behind
            if last - first >= MIN_CHARS:
                yield encoded[first:last]
