"""`edge-gateway keys`: creates, lists and revokes API keys of the keys file. A secret is printed once, not stored."""

from __future__ import annotations

import argparse
import math
import re
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gateway.admit.keyfile import editing_keys
from gateway.admit.keys import ID, Key, KeysInvalid, Names, hash_of, may_administer, new_secret

_DAYS = re.compile(r"([0-9]{1,5})d")


def create(path: Path, args: argparse.Namespace) -> str:
    """Add a key to the file, creating the file if necessary; return the key as clients send it. Raises KeysInvalid."""
    if not ID.fullmatch(args.id):
        raise KeysInvalid(f"{args.id!r} cannot be a key's name: use one to forty letters, digits and hyphens")
    secret = new_secret()
    key = _key(secret, args)
    with editing_keys(path, may_be_new=True) as keys:
        if args.id in keys:
            raise KeysInvalid(f"the key {args.id} exists already; revoke it first, or use another name")
        if args.certificate is not None and args.certificate in {key.certificate for key in keys.values()}:
            raise KeysInvalid(f"another key has the certificate {args.certificate!r}; use another name")
        keys[args.id] = key
    return f"egw_{args.id}_{secret}"


def _default_burst(requests_per_minute: float | None) -> int:
    """The burst without --burst: ten requests, but at most the requests of one minute."""
    return 10 if requests_per_minute is None else max(1, min(10, int(requests_per_minute)))


def _key(secret: str, args: argparse.Namespace) -> Key:
    now = datetime.now(UTC).replace(microsecond=0)
    for name in ("requests_per_minute", "burst", "concurrency", "max_body_bytes"):
        if (value := getattr(args, name)) is not None and not 0 < value < math.inf:
            raise KeysInvalid(f"--{name.replace('_', '-')} must be greater than 0")
    return Key(
        sha256=hash_of(secret),
        models=_names(args.models),
        tasks=_names(args.tasks),
        requests_per_minute=args.requests_per_minute,
        burst=args.burst or _default_burst(args.requests_per_minute),
        concurrency=args.concurrency,
        max_body_bytes=args.max_body_bytes,
        expires=_expiry(args.expires, now),
        allow_cloud=not args.edge_only,
        admin=args.admin,
        certificate=_certificate(args.certificate),
        created=now,
    )


def _names(text: str | None) -> Names | None:
    return None if text is None else tuple(name.strip() for name in _plain("a name", text).split(",") if name.strip())


def _certificate(name: str | None) -> str | None:
    if name is not None and (name.strip() in ("", "*") or name != name.strip()):
        raise KeysInvalid(f"--certificate {name!r} is not a certificate's name; write the whole name, without `*`")
    return None if name is None else _plain("--certificate", name)


def _plain(subject: str, text: str) -> str:
    """Return the text. Raises KeysInvalid if it contains control characters or bytes of another encoding."""
    if not text.isprintable():
        raise KeysInvalid(f"{subject} contains control characters, or is not UTF-8: {text[:80]!a}")
    return text


def _expiry(text: str | None, now: datetime) -> datetime | None:
    if text is None:
        return None
    if days := _DAYS.fullmatch(text):
        return now + timedelta(days=int(days[1]))
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise KeysInvalid(f"--expires {text!r} is neither days, such as 90d, nor a date, such as 2030-01-31") from None
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def revoke(path: Path, name: str) -> bool:
    """Remove a key from the file; return whether it was the last valid key with `admin`.

    Raises KeysInvalid if the file does not have the key.
    """
    with editing_keys(path) as keys:
        if name not in keys:
            raise KeysInvalid(f"{path} has no key {name!r}")
        revoked = keys.pop(name)
        now_s = time.time()
        return may_administer([revoked], now_s) and not may_administer(keys.values(), now_s)


def listing(keys: Mapping[str, Key]) -> Iterator[str]:
    """One line for each key, with its rules and without its hash."""
    for name, key in keys.items():
        yield f"{name}: {', '.join(_rules(key)) or 'everything'}"


def _rules(key: Key) -> Iterator[str]:
    for word, names in (("models", key.models), ("tasks", key.tasks)):
        if names is not None:
            yield f"{word} {' '.join(names) or '(none)'}"
    if key.requests_per_minute is not None:
        yield f"{key.requests_per_minute:g} requests a minute, {key.burst} at once"
    if key.concurrency is not None:
        yield f"{key.concurrency} open"
    if key.max_body_bytes is not None:
        yield f"bodies to {key.max_body_bytes} bytes"
    if not key.allow_cloud:
        yield "edge only"
    if key.admin:
        yield "admin"
    if key.certificate is not None:
        yield f"certificate {key.certificate}"
    if key.expires is not None:
        yield f"{'expired' if key.has_expired(time.time()) else 'expires'} {key.expires.isoformat()}"
