"""API keys as values: how one is written, what it allows, and the file that holds them.

A key is `egw_<id>_<secret>`. The file holds the SHA-256 of the secret and never the secret: 43 random
characters of 62 are 256 bits, so a slow hash would protect nothing more.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, NamedTuple

import msgspec

from gateway.plugin import Kind

SECRET_CHARS = 43  # of 62 kinds: 256 bits
ID = re.compile(r"[A-Za-z0-9-]{1,40}")

_WRITTEN = re.compile(rf"egw_({ID.pattern})_([A-Za-z0-9]{{{SECRET_CHARS}}})")
_ALPHABET = string.ascii_letters + string.digits
_NOBODYS = "0" * 64  # no secret has this hash, as far as anybody knows

Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Names = tuple[str, ...]


class KeysInvalid(ValueError):
    """The keys file cannot be used; the message says why, and quotes nothing that is in it."""


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one key allows. None: no limit of its own.

    sha256: of the secret, hexadecimal. models, tasks: names as clients write them; `*` at the end stands for any
    rest, and `auto` and `backend/model` are names too. burst: requests that may come at once. expires: with its time
    zone. allow_cloud: whether what it asks for may leave the site. admin: may read the admin listener. certificate:
    the name in a client certificate that is as good as the secret.
    """

    sha256: Sha256
    models: Names | None = None
    tasks: Names | None = None
    requests_per_minute: Positive | None = None
    burst: Count = 10
    concurrency: Count | None = None
    max_body_bytes: Count | None = None
    expires: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    allow_cloud: bool = True
    admin: bool = False
    certificate: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    created: datetime | None = None

    def has_expired(self, now_s: float) -> bool:
        """Whether its time was over, `now_s` seconds after 1970."""
        return self.expires is not None and self.expires.timestamp() <= now_s

    def allows(self, kind: Kind, name: str) -> bool:
        """Whether it may ask for the task, or the model, of this name."""
        return matches(self.tasks if kind == "task" else self.models, name)


class _File(msgspec.Struct, forbid_unknown_fields=True):
    keys: dict[str, Key]


class Written(NamedTuple):
    """A key as a client sends it, taken apart."""

    id: str
    secret: str


def matches(names: Names | None, name: str) -> bool:
    """Whether a list of names, some ending in `*`, has this one; no list has all."""
    if names is None:
        return True
    return any(name.startswith(each[:-1]) if each.endswith("*") else name == each for each in names)


def may_administer(keys: Iterable[Key], now_s: float) -> bool:
    """Whether any of them may still read the admin listener."""
    return any(key.admin and not key.has_expired(now_s) for key in keys)


def new_secret() -> str:
    """A fresh secret."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(SECRET_CHARS))


def hash_of(secret: str) -> str:
    """What the file holds of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def written(text: str) -> Written | None:
    """A key taken apart; None where this is none."""
    found = _WRITTEN.fullmatch(text)
    return Written(found[1], found[2]) if found else None


def is_right(key: Key | None, secret: str) -> bool:
    """Whether this is the key's secret, in the same time whether there is such a key or not."""
    expected = key.sha256 if key is not None else _NOBODYS
    return hmac.compare_digest(hash_of(secret), expected) and key is not None


def parse_keys(data: bytes) -> dict[str, Key]:
    """The keys in a file, by id. Raises KeysInvalid."""
    try:
        keys = msgspec.json.decode(data, type=_File).keys
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise KeysInvalid(f"it is no keys file: {exc}") from None
    for name in keys:
        if not ID.fullmatch(name):
            raise KeysInvalid("a key's id is one to forty letters, digits and hyphens")
    certificates = [key.certificate for key in keys.values() if key.certificate is not None]
    if len(set(certificates)) < len(certificates):
        raise KeysInvalid("two keys have the same certificate; whose rules would hold?")
    return keys


def render_keys(keys: Mapping[str, Key]) -> bytes:
    """The file that holds these keys. Raises KeysInvalid where a name is no text."""
    plain: Any = {"keys": dict(sorted(keys.items()))}
    try:
        return msgspec.json.format(msgspec.json.encode(plain), indent=2) + b"\n"
    except UnicodeEncodeError:
        raise KeysInvalid("a name in it is not UTF-8") from None
