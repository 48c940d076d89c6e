"""API keys: their text form, their limits, and the format of the keys file.

A key is `egw_<id>_<secret>`. The file contains the SHA-256 of the secret, never the secret itself. The secret has 43
random characters of 62, which is 256 bits, so a slow hash would add no protection.
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

_KEY = re.compile(rf"egw_({ID.pattern})_([A-Za-z0-9]{{{SECRET_CHARS}}})")
_ALPHABET = string.ascii_letters + string.digits
_UNUSED_SHA256 = "0" * 64  # no secret with this hash is known

Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Names = tuple[str, ...]


class KeysInvalid(ValueError):
    """The keys file is invalid. The message gives the reason and quotes nothing of the file: it may be secret."""


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The limits of one key. None: no limit beyond those for all requests.

    sha256: of the secret, hexadecimal. models, tasks: names as clients write them. `*` at the end matches any rest;
    `auto` and `backend/model` are names too. burst: requests that may arrive at once. expires: with its time zone.
    allow_cloud: requests may leave the site. admin: may read the admin listener. certificate: the name in a client
    certificate that replaces the secret.
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
        """Whether the key has expired. now_s: seconds since 1970."""
        return self.expires is not None and self.expires.timestamp() <= now_s

    def allows(self, kind: Kind, name: str) -> bool:
        """Whether the key may be used for the task or model of this name."""
        return matches(self.tasks if kind == "task" else self.models, name)


class _File(msgspec.Struct, forbid_unknown_fields=True):
    keys: dict[str, Key]


class KeyParts(NamedTuple):
    """The parts of a key's text."""

    id: str
    secret: str


def matches(names: Names | None, name: str) -> bool:
    """Whether `name` matches a list of names, some of which end in `*`. None matches every name."""
    if names is None:
        return True
    return any(name.startswith(each[:-1]) if each.endswith("*") else name == each for each in names)


def may_administer(keys: Iterable[Key], now_s: float) -> bool:
    """Whether at least one key can read the admin listener."""
    return any(key.admin and not key.has_expired(now_s) for key in keys)


def new_secret() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(SECRET_CHARS))


def hash_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def parse_key(text: str) -> KeyParts | None:
    """Split a key's text into its parts; None if the text is not a key."""
    found = _KEY.fullmatch(text)
    return KeyParts(found[1], found[2]) if found else None


def is_secret_of(key: Key | None, secret: str) -> bool:
    """Whether the key has this secret. Takes as long without a key, so that ids stay secret (timing attack)."""
    expected = key.sha256 if key is not None else _UNUSED_SHA256
    return hmac.compare_digest(hash_of(secret), expected) and key is not None


def parse_keys(data: bytes) -> dict[str, Key]:
    """Parse a keys file: keys by id. Raises KeysInvalid."""
    try:
        keys = msgspec.json.decode(data, type=_File).keys
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise KeysInvalid(f"not a valid keys file: {exc}") from None
    for name in keys:
        if not ID.fullmatch(name):
            raise KeysInvalid("a key's id must have 1 to 40 letters, digits and hyphens")
    certificates = [key.certificate for key in keys.values() if key.certificate is not None]
    if len(set(certificates)) < len(certificates):
        raise KeysInvalid("two keys have the same certificate; give each key its own")
    return keys


def render_keys(keys: Mapping[str, Key]) -> bytes:
    """The content of a keys file. Raises KeysInvalid for a name that is not valid UTF-8."""
    plain: Any = {"keys": dict(sorted(keys.items()))}
    try:
        return msgspec.json.format(msgspec.json.encode(plain), indent=2) + b"\n"
    except UnicodeEncodeError:
        raise KeysInvalid("a model or task name is not valid UTF-8") from None
