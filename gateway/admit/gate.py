"""Lets requests in by their key, and no oftener, nor more at once, than it allows.

Rates are GCRA (ITU-T I.371, annex A): one instant per key, the theoretical arrival time, says all. Where no keys
are configured anybody may ask, and whatever credentials come along mean nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from gateway.admit.keys import Key, is_right, written
from gateway.plugin import GatewayError, Kind, TaskRefused

BUSY_RETRY_S = 1.0


@dataclass(slots=True)
class _Usage:
    """What a key has used. due: the theoretical arrival time, monotonic seconds. active: requests inside now."""

    due: float = 0.0
    active: int = 0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the key's id and what it allows, or nobody in particular."""

    id: str | None = None
    key: Key | None = None
    _usage: _Usage = field(default_factory=_Usage, repr=False, compare=False)

    @property
    def is_known(self) -> bool:
        """Whether it came with a key."""
        return self.key is not None

    @property
    def may_leave(self) -> bool:
        """Whether what it asks for may leave the site."""
        return self.key is None or self.key.allow_cloud

    def check(self, kind: Kind, name: str) -> None:
        """Raises GatewayError unless it may ask for this model or task."""
        if self.key is not None and not self.key.allows(kind, name):
            what = "task" if kind == "task" else "model"
            raise GatewayError(f"the key {self.id} may not ask for the {what} {name[:80]!r}", code="forbidden")

    def allows(self, kind: Kind, name: str) -> bool:
        """Whether it may ask for it."""
        return self.key is None or self.key.allows(kind, name)

    def max_bytes(self, limit: int) -> int:
        """The largest body it may send, where everybody's limit is `limit`."""
        own = self.key.max_body_bytes if self.key is not None else None
        return limit if own is None else min(limit, own)

    def leave(self) -> None:
        """Its request has ended."""
        if self.key is not None:
            self._usage.active -= 1


ANYBODY = Caller()


class Gate:
    """The keys, and what each has used. clock: monotonic; wall: seconds since 1970, for expiry."""

    def __init__(
        self,
        keys: Mapping[str, Key] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._clock, self._wall = clock, wall
        self._used: dict[str, _Usage] = {}
        self.replace(keys)

    @property
    def is_open(self) -> bool:
        """Whether no key is needed."""
        return self._keys is None

    def replace(self, keys: Mapping[str, Key] | None) -> None:
        """Other keys from now on. Requests inside stay; a key that stays keeps what it has used."""
        self._keys = keys
        self._certified = {key.certificate: name for name, key in (keys or {}).items() if key.certificate is not None}
        self._used = {name: used for name, used in self._used.items() if keys is not None and name in keys}

    def keep(self, there_are: Mapping[str, Key]) -> list[str]:
        """Keep only the keys that are still there, with the same secret or certificate; the names of the others."""
        gone = sorted(name for name, key in (self._keys or {}).items() if not _is_same(key, there_are.get(name)))
        if self._keys is not None and gone:
            self.replace({name: key for name, key in self._keys.items() if name not in gone})
        return gone

    def known(self, presented: Iterable[str], certified: Iterable[str] = ()) -> Caller:
        """Who these credentials belong to; certified: the names in a client certificate that was checked.

        Raises GatewayError `unauthorized`: a wrong credential is never as good as none, whatever the certificate.
        """
        if self._keys is None:
            return ANYBODY
        credentials = set(presented)
        if not credentials:
            for name in certified:
                if name in self._certified:
                    return self.named(self._certified[name])
            raise _unauthorized("this needs an API key: send it as `Authorization: Bearer egw_…`")
        if len(credentials) > 1:
            raise _unauthorized("two different API keys came along; send one")
        parts = written(credentials.pop())
        key = self._keys.get(parts.id) if parts else None
        if not is_right(key, parts.secret if parts else "") or parts is None:
            raise _unauthorized("the API key is wrong, or was revoked")
        return self.named(parts.id)

    def named(self, key_id: str) -> Caller:
        """The caller a door knows by other means, such as a broker's. Raises GatewayError where it may not ask."""
        key = (self._keys or {}).get(key_id)
        if key is None:
            raise _unauthorized(f"there is no API key {key_id!r}")
        if key.has_expired(self._wall()):
            raise _unauthorized(f"the API key {key_id} has expired")
        return Caller(key_id, key, self._used.setdefault(key_id, _Usage()))

    def enter(self, caller: Caller) -> None:
        """Count one more request; call `caller.leave()` at its end. Raises TaskRefused where it is one too many."""
        key, used = caller.key, caller._usage
        if key is None:
            return
        if key.concurrency is not None and used.active >= key.concurrency:
            raise _too_many(f"the key {caller.id} may have {key.concurrency} requests open at once", BUSY_RETRY_S)
        self._pace(caller.id, key, used)
        used.active += 1

    def _pace(self, key_id: str | None, key: Key, used: _Usage) -> None:
        if key.requests_per_minute is None:
            return
        pause_s = 60.0 / key.requests_per_minute
        now = self._clock()
        due = max(used.due, now)
        early_s = due - now - pause_s * (key.burst - 1)
        if early_s > 1e-9:
            raise _too_many(f"the key {key_id} may send {key.requests_per_minute:g} requests a minute", early_s)
        used.due = due + pause_s


def _unauthorized(message: str) -> GatewayError:
    return GatewayError(message, code="unauthorized")


def _too_many(message: str, retry_after_s: float) -> TaskRefused:
    return TaskRefused(message, code="rate_limited", retry_after_s=retry_after_s)


def _is_same(key: Key, other: Key | None) -> bool:
    return other is not None and (key.sha256, key.certificate) == (other.sha256, other.certificate)
