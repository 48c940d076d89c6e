"""What a backend lacks is believed for a while, and not of too many paths."""

from __future__ import annotations

from gateway.health.missing_endpoints import LACKS_S, MAX_PATHS, MissingEndpoints
from support.clock import Clock


def test_a_lack_is_believed_for_a_while_whatever_the_query() -> None:
    clock = Clock()
    lacks = MissingEndpoints(clock)
    lacks.note("/v1/responses?a=1")
    assert lacks.has("/v1/responses?b=2")
    assert not lacks.has("/v1/messages")
    clock.now += LACKS_S
    assert not lacks.has("/v1/responses")


def test_the_oldest_of_too_many_is_forgotten() -> None:
    lacks = MissingEndpoints(Clock())
    for n in range(MAX_PATHS + 1):
        lacks.note(f"/v1/images/{n}")
    assert not lacks.has("/v1/images/0")
    assert lacks.has("/v1/images/1")
    assert lacks.has(f"/v1/images/{MAX_PATHS}")


def test_what_is_noted_again_costs_no_other_its_place_and_keeps_its_own_longest() -> None:
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
