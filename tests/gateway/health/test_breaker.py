"""Circuit breaker: transition table, opening conditions and recovery."""

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
        breaker.record_failure("it answered 500")


def test_transition_table_contains_only_known_states_and_events() -> None:
    assert set(TRANSITIONS) == set(get_args(State))
    for row in TRANSITIONS.values():
        assert set(row) <= set(get_args(Event))
        assert set(row.values()) <= set(get_args(State))


def test_breaker_opens_after_five_consecutive_failures_and_not_after_four(breaker: Breaker) -> None:
    for _ in range(4):
        breaker.record_failure()
    assert breaker.try_acquire()
    breaker.record_failure("it answered 503")
    assert (breaker.state, breaker.try_acquire(), breaker.why_open) == ("open", False, "it answered 503")


def test_breaker_opens_when_half_of_the_recent_requests_fail(breaker: Breaker) -> None:
    for _ in range(5):
        breaker.record_success()
        breaker.record_failure()
    assert breaker.state == "open"


def test_breaker_stays_closed_when_clients_send_invalid_requests(breaker: Breaker) -> None:
    for _ in range(100):
        breaker.record_ignored()
    assert breaker.state == "closed"


def test_breaker_admits_one_trial_at_a_time_after_its_open_period(breaker: Breaker, clock: Clock) -> None:
    trip(breaker)
    clock.now += 10.0
    assert breaker.state == "half_open"
    assert [breaker.try_acquire(), breaker.try_acquire(), breaker.is_available()] == [True, False, False]


def test_successful_trial_closes_the_breaker_and_failed_trial_reopens_it(breaker: Breaker, clock: Clock) -> None:
    trip(breaker)
    clock.now += 10.0
    assert breaker.try_acquire()
    breaker.record_failure("still ill")
    assert (breaker.state, breaker.why_open) == ("open", "still ill")
    clock.now += 10.0
    assert breaker.try_acquire()
    breaker.record_success()
    assert (breaker.state, breaker.why_open) == ("closed", None)


def test_ignored_trial_frees_the_half_open_permit(breaker: Breaker, clock: Clock) -> None:
    trip(breaker)
    clock.now += 10.0
    assert breaker.try_acquire()
    breaker.record_ignored()
    assert breaker.try_acquire()


def test_unreported_trial_blocks_the_half_open_permit_for_ten_seconds_at_most(breaker: Breaker, clock: Clock) -> None:
    trip(breaker)
    clock.now += 10.0
    assert breaker.try_acquire()
    clock.now += 10.0
    assert breaker.try_acquire()


def test_open_breaker_admits_a_pinned_request_every_ten_seconds(breaker: Breaker, clock: Clock) -> None:
    trip(breaker)
    assert breaker.try_acquire(pinned=True)
    breaker.record_failure(retry_after_s=60.0)
    passed = 0
    for _ in range(60):
        clock.now += 1.0
        if breaker.try_acquire(pinned=True):
            passed += 1
            breaker.record_failure(retry_after_s=60.0)
    assert 5 <= passed <= 6


def test_successful_probe_half_opens_the_breaker_early(breaker: Breaker) -> None:
    trip(breaker)
    breaker.record_probe_success()
    assert breaker.state == "half_open"
    assert breaker.try_acquire()


def test_retry_after_opens_the_breaker_at_once_and_probes_do_not_shorten_it(breaker: Breaker, clock: Clock) -> None:
    breaker.record_failure("it answered 429", retry_after_s=30.0)
    assert breaker.state == "open"
    breaker.record_probe_success()
    clock.now += 29.0
    assert breaker.state == "open"
    clock.now += 1.5
    assert breaker.state == "half_open"


@pytest.mark.parametrize("retry_after_s", [math.nan, -5.0, 0.0, None])
def test_invalid_retry_after_is_ignored(breaker: Breaker, retry_after_s: float | None) -> None:
    breaker.record_failure(retry_after_s=retry_after_s)
    assert breaker.state == "closed"


def test_retry_after_is_capped_at_one_minute(breaker: Breaker, clock: Clock) -> None:
    breaker.record_failure(retry_after_s=3e7)
    clock.now += 60.0
    assert breaker.state == "half_open"


def test_state_changes_are_reported_with_their_reason(clock: Clock) -> None:
    told: list[tuple[str, str, str]] = []
    breaker = Breaker(clock, lambda before, after, why: told.append((before, after, why)))
    trip(breaker)
    clock.now += 10.0
    assert breaker.try_acquire()
    breaker.record_success()
    assert [(before, after) for before, after, _ in told] == [
        ("closed", "open"),
        ("open", "half_open"),
        ("half_open", "closed"),
    ]
    assert told[0][2] == "it answered 500"


CALLS = st.sampled_from(
    [
        "try_acquire",
        "pinned",
        "record_success",
        "record_failure",
        "retry",
        "record_ignored",
        "record_probe_success",
        "wait",
    ]
)


@given(st.lists(CALLS, max_size=200))
def test_breaker_admits_a_trial_after_any_history_once_it_has_waited(calls: list[str]) -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for call in calls:
        if call == "pinned":
            breaker.try_acquire(pinned=True)
        elif call == "retry":
            breaker.record_failure(retry_after_s=5.0)
        elif call == "wait":
            clock.now += 3.0
        else:
            getattr(breaker, call)()
    clock.now += 70.0
    assert breaker.try_acquire()


def test_wait_s_is_the_remaining_open_time(breaker: Breaker, clock: Clock) -> None:
    assert breaker.wait_s == 0.0
    breaker.record_failure(retry_after_s=40.0, is_limit=True)
    clock.now += 5.0
    assert (breaker.wait_s, breaker.is_rate_limit) == (35.0, True)
    breaker.record_failure()  # an attempt already in flight has no Retry-After; the pause is kept
    assert (breaker.wait_s, breaker.is_rate_limit) == (35.0, False)
    clock.now += 35.0
    assert (breaker.wait_s, breaker.is_rate_limit) == (0.0, False)
