"""Cache of paths for which a backend returned 404: expiry and size limit."""

from __future__ import annotations

from gateway.health.missing_endpoints import EXPIRE_S, MAX_PATHS, MissingEndpoints
from support.clock import Clock


def test_missing_path_is_cached_without_its_query_until_it_expires() -> None:
    clock = Clock()
    endpoints = MissingEndpoints(clock)
    endpoints.record("/v1/responses?a=1")
    assert endpoints.is_missing("/v1/responses?b=2")
    assert not endpoints.is_missing("/v1/messages")
    clock.now += EXPIRE_S
    assert not endpoints.is_missing("/v1/responses")


def test_oldest_path_is_evicted_when_the_cache_is_full() -> None:
    endpoints = MissingEndpoints(Clock())
    for n in range(MAX_PATHS + 1):
        endpoints.record(f"/v1/images/{n}")
    assert not endpoints.is_missing("/v1/images/0")
    assert endpoints.is_missing("/v1/images/1")
    assert endpoints.is_missing(f"/v1/images/{MAX_PATHS}")


def test_path_noted_again_is_refreshed_without_evicting_another() -> None:
    endpoints = MissingEndpoints(Clock())
    for n in range(MAX_PATHS):
        endpoints.record(f"/v1/images/{n}")
    endpoints.record("/v1/images/5?again=1")
    assert all(endpoints.is_missing(f"/v1/images/{n}") for n in range(MAX_PATHS))
    endpoints.record("/v1/images/one-more")
    assert not endpoints.is_missing("/v1/images/0")
    for n in range(1, 6):
        endpoints.record(f"/v1/images/one-more-{n}")
    assert endpoints.is_missing("/v1/images/5")
