"""The breaker: its table, what opens it, and how it finds out that all is well again."""

from __future__ import annotations

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.health.breaker import TRANSITIONS, Breaker, Event, State
from support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(clock)


def trip(breaker: Breaker) -> None:
    for _ in range(5):
        breaker.failed("it answered 500")


def test_the_table_names_states_and_events_that_exist() -> None:
    assert set(TRANSITIONS) == set(get_args(State))
    for row in TRANSITIONS.values():
        assert set(row) <= set(get_args(Event))
        assert set(row.values()) <= set(get_args(State))


def test_five_failures_in_a_row_open_it_and_four_do_not(breaker: Breaker) -> None:
    for _ in range(4):
        breaker.failed()
    assert breaker.allows()
    breaker.failed("it answered 503")
    assert (breaker.state, breaker.allows(), breaker.why_open) == ("open", False, "it answered 503")


def test_half_of_the_last_ones_failing_opens_it(breaker: Breaker) -> None:
    for _ in range(5):
        breaker.succeeded()
        breaker.failed()
    assert breaker.state == "open"


def test_a_clients_mistakes_never_count(breaker: Breaker) -> None:
    for _ in range(100):
        breaker.ignored()
    assert breaker.state == "closed"


def test_after_its_time_one_try_is_let_through_at_a_time(breaker: Breaker, clock: Clock) -> None:
    trip(breaker)
    clock.now += 10.0
    assert breaker.state == "half_open"
    assert [breaker.allows(), breaker.allows(), breaker.would_allow()] == [True, False, False]


def test_a_try_that_succeeds_closes_it_and_one_that_fails_opens_it_again(breaker: Breaker, clock: Clock) -> None:
    trip(breaker)
    clock.now += 10.0
    assert breaker.allows()
    breaker.failed("still ill")
    assert (breaker.state, breaker.why_open) == ("open", "still ill")
    clock.now += 10.0
    assert breaker.allows()
    breaker.succeeded()
    assert (breaker.state, breaker.why_open) == ("closed", None)


def test_a_try_that_told_nothing_is_free_again(breaker: Breaker, clock: Clock) -> None:
    trip(breaker)
    clock.now += 10.0
    assert breaker.allows()
    breaker.ignored()
    assert breaker.allows()


def test_a_try_nobody_reported_blocks_no_longer_than_ten_seconds(breaker: Breaker, clock: Clock) -> None:
    trip(breaker)
    clock.now += 10.0
    assert breaker.allows()
    clock.now += 10.0
    assert breaker.allows()


def test_a_pinned_request_gets_through_at_least_every_ten_seconds(breaker: Breaker, clock: Clock) -> None:
    trip(breaker)
    assert breaker.allows(pinned=True)
    breaker.failed(retry_after_s=60.0)
    passed = 0
    for _ in range(60):
        clock.now += 1.0
        if breaker.allows(pinned=True):
            passed += 1
            breaker.failed(retry_after_s=60.0)
    assert 5 <= passed <= 6


def test_an_answered_probe_half_opens_it_early(breaker: Breaker) -> None:
    trip(breaker)
    breaker.probe_ok()
    assert breaker.state == "half_open"
    assert breaker.allows()


def test_retry_after_opens_it_at_once_and_no_probe_shortens_that(breaker: Breaker, clock: Clock) -> None:
    breaker.failed("it answered 429", retry_after_s=30.0)
    assert breaker.state == "open"
    breaker.probe_ok()
    clock.now += 29.0
    assert breaker.state == "open"
    clock.now += 1.5
    assert breaker.state == "half_open"


@pytest.mark.parametrize("retry_after_s", [math.nan, -5.0, 0.0, None])
def test_a_senseless_retry_after_is_no_retry_after(breaker: Breaker, retry_after_s: float | None) -> None:
    breaker.failed(retry_after_s=retry_after_s)
    assert breaker.state == "closed"


def test_a_retry_after_of_a_year_is_a_minute(breaker: Breaker, clock: Clock) -> None:
    breaker.failed(retry_after_s=3e7)
    clock.now += 60.0
    assert breaker.state == "half_open"


def test_changes_are_told_with_their_reason(clock: Clock) -> None:
    told: list[tuple[str, str, str]] = []
    breaker = Breaker(clock, lambda before, after, why: told.append((before, after, why)))
    trip(breaker)
    clock.now += 10.0
    assert breaker.allows()
    breaker.succeeded()
    assert [(before, after) for before, after, _ in told] == [
        ("closed", "open"),
        ("open", "half_open"),
        ("half_open", "closed"),
    ]
    assert told[0][2] == "it answered 500"


CALLS = st.sampled_from(["allows", "pinned", "succeeded", "failed", "retry", "ignored", "probe_ok", "wait"])


@given(st.lists(CALLS, max_size=200))
def test_no_history_leaves_the_table_or_shuts_it_for_good(calls: list[str]) -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for call in calls:
        if call == "pinned":
            breaker.allows(pinned=True)
        elif call == "retry":
            breaker.failed(retry_after_s=5.0)
        elif call == "wait":
            clock.now += 3.0
        else:
            getattr(breaker, call)()
    clock.now += 70.0
    assert breaker.allows()


def test_how_long_it_stays_open_is_told(breaker: Breaker, clock: Clock) -> None:
    assert breaker.wait_s == 0.0
    breaker.failed(retry_after_s=40.0, is_limit=True)
    clock.now += 5.0
    assert (breaker.wait_s, breaker.is_rate_limit) == (35.0, True)
    breaker.failed()  # one that was under way says nothing of when; the pause stands
    assert (breaker.wait_s, breaker.is_rate_limit) == (35.0, False)
    clock.now += 35.0
    assert (breaker.wait_s, breaker.is_rate_limit) == (0.0, False)
