"""Authentication by API key, and what each key allows. `rate_limiter` limits rate and concurrency.

Without configured keys every request is admitted, and credentials are ignored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from gateway.admit.keys import Key, is_secret_of, parse_key
from gateway.admit.rate_limiter import RateLimiter
from gateway.plugin import GatewayError, Kind


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request, by its key. Without a key, the caller is anonymous."""

    id: str | None = None
    key: Key | None = None
    limiter: RateLimiter = field(default_factory=RateLimiter, repr=False, compare=False)

    @property
    def may_leave(self) -> bool:
        """Whether its requests may leave the site."""
        return self.key is None or self.key.allow_cloud

    def check(self, kind: Kind, name: str) -> None:
        """Raise GatewayError `forbidden` unless the caller may use this model or task."""
        if self.key is not None and not self.key.allows(kind, name):
            noun = "task" if kind == "task" else "model"
            raise GatewayError(f"the key {self.id} may not use the {noun} {name[:80]!r}", code="forbidden")

    def check_any(self, kind: Kind) -> None:
        """Raise GatewayError `forbidden` if the caller may use no model, or no task: before its body is read."""
        if self.key is not None and (self.key.tasks if kind == "task" else self.key.models) == ():
            noun = "task" if kind == "task" else "model"
            raise GatewayError(f"the key {self.id} may use no {noun}", code="forbidden")

    def allows(self, kind: Kind, name: str) -> bool:
        """Whether the caller may use this model or task."""
        return self.key is None or self.key.allows(kind, name)

    def max_bytes(self, limit: int) -> int:
        """The maximum size of a body, in bytes; `limit` is the maximum for all callers."""
        own = self.key.max_body_bytes if self.key is not None else None
        return limit if own is None else min(limit, own)

    def release(self) -> None:
        """Count out a request that has ended, and whose work has stopped."""
        if self.key is not None:
            self.limiter.release()

    @property
    def has_refused(self) -> bool:
        """Whether a request was refused because those in progress use up the concurrency of the key."""
        return self.limiter.has_refused


ANONYMOUS = Caller()


class Gate:
    """All keys, and the usage of each. clock: monotonic seconds. wall: seconds since 1970, for expiry."""

    def __init__(
        self,
        keys: Mapping[str, Key] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._clock, self._wall = clock, wall
        self._limiters: dict[str, RateLimiter] = {}
        self.replace(keys)

    @property
    def is_open(self) -> bool:
        """Whether requests need no key."""
        return self._keys is None

    def replace(self, keys: Mapping[str, Key] | None) -> None:
        """Replace the keys. Requests in progress continue; a key that remains keeps its usage."""
        self._keys = keys
        self._certified = {
            key.certificate: key_id for key_id, key in (keys or {}).items() if key.certificate is not None
        }
        self._limiters = {key_id: limiter for key_id, limiter in self._limiters.items() if key_id in (keys or {})}

    def revoke_all_but(self, current: Mapping[str, Key]) -> list[str]:
        """Revoke each key that is missing from `current` or has another secret or certificate; return their ids."""
        keys = self._keys or {}
        revoked = sorted(key_id for key_id, key in keys.items() if not _is_same(key, current.get(key_id)))
        if revoked:
            self.replace({key_id: key for key_id, key in keys.items() if key_id not in revoked})
        return revoked

    def authenticate(self, credentials: Iterable[str], certificate_names: Iterable[str] = ()) -> Caller:
        """Return the caller with these credentials.

        certificate_names: the names in the client's verified certificate. Raises GatewayError `unauthorized`. A wrong
        credential is refused even if the certificate alone would be accepted.
        """
        if self._keys is None:
            return ANONYMOUS
        presented = set(credentials)
        if not presented:
            for name in certificate_names:
                if name in self._certified:
                    return self.caller_for(self._certified[name])
            raise _unauthorized("an API key is required: send it as `Authorization: Bearer egw_…`")
        if len(presented) > 1:
            raise _unauthorized("the request has two different API keys; send one")
        parts = parse_key(presented.pop())
        key = self._keys.get(parts.id) if parts else None
        if not is_secret_of(key, parts.secret if parts else "") or parts is None:
            raise _unauthorized("the API key is wrong, or was revoked")
        return self.caller_for(parts.id)

    def caller_for(self, key_id: str) -> Caller:
        """Return the caller of a key that the transport or a certificate names. Raises GatewayError `unauthorized`."""
        key = (self._keys or {}).get(key_id)
        if key is None:
            raise _unauthorized(f"the API key {key_id!r} does not exist")
        if key.has_expired(self._wall()):
            raise _unauthorized(f"the API key {key_id} has expired")
        return Caller(key_id, key, self._limiters.setdefault(key_id, RateLimiter()))

    def current(self, caller: Caller) -> Caller:
        """Return the caller with the rules that its key has now; with a key that is gone, no data may leave."""
        if caller.key is None or caller.id is None or self._keys is None:
            return caller
        key = self._keys.get(caller.id)
        if key is None or not _is_same(caller.key, key) or key.has_expired(self._wall()):
            key = msgspec.structs.replace(caller.key, allow_cloud=False)
        return caller if key is caller.key else Caller(caller.id, key, caller.limiter)

    def admit(self, caller: Caller) -> None:
        """Count a request; call `caller.release()` at its end. Raises TaskRefused above the caller's limits."""
        if caller.key is not None:
            caller.limiter.acquire(caller.id, caller.key, self._clock())


def _unauthorized(message: str) -> GatewayError:
    return GatewayError(message, code="unauthorized")


def _is_same(key: Key, other: Key | None) -> bool:
    return other is not None and (key.sha256, key.certificate) == (other.sha256, other.certificate)
