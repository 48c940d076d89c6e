"""Cache of paths for which a backend returned 404: expiry and size limit."""

from __future__ import annotations

from gateway.health.missing_endpoints import LACKS_S, MAX_PATHS, MissingEndpoints
from support.clock import Clock


def test_missing_path_is_cached_without_its_query_until_it_expires() -> None:
    clock = Clock()
    lacks = MissingEndpoints(clock)
    lacks.note("/v1/responses?a=1")
    assert lacks.has("/v1/responses?b=2")
    assert not lacks.has("/v1/messages")
    clock.now += LACKS_S
    assert not lacks.has("/v1/responses")


def test_oldest_path_is_evicted_when_the_cache_is_full() -> None:
    lacks = MissingEndpoints(Clock())
    for n in range(MAX_PATHS + 1):
        lacks.note(f"/v1/images/{n}")
    assert not lacks.has("/v1/images/0")
    assert lacks.has("/v1/images/1")
    assert lacks.has(f"/v1/images/{MAX_PATHS}")


def test_path_noted_again_is_refreshed_without_evicting_another() -> None:
    lacks = MissingEndpoints(Clock())
    for n in range(MAX_PATHS):
        lacks.note(f"/v1/images/{n}")
    lacks.note("/v1/images/5?again=1")
    assert all(lacks.has(f"/v1/images/{n}") for n in range(MAX_PATHS))
    lacks.note("/v1/images/one-more")
    assert not lacks.has("/v1/images/0")
    for n in range(1, 6):
        lacks.note(f"/v1/images/one-more-{n}")
    assert lacks.has("/v1/images/5")
