"""Refusal of requests that cannot meet their deadline.

They are refused before they start, except for periodic trials.
"""

from __future__ import annotations

import pytest

from gateway.dispatch.deadline_check import SURE_SAMPLES, TRY_EVERY_S, DeadlineCheck
from gateway.plugin import DeadlineExceeded, Task
from gateway.policy import Candidate
from gateway.testing.clock import FakeClock

TASK = Task(kind="task", name="add", deadline=0.0)


def known(name: str, takes_s: float, samples: int = SURE_SAMPLES, refused: str | None = None) -> Candidate:
    return Candidate(name, "edge", refused, wait_s=takes_s / 2, service_s=takes_s / 2, samples=samples)


def is_let_through(slack_s: float, *candidates: Candidate, feasibility: DeadlineCheck | None = None) -> bool:
    try:
        (feasibility or DeadlineCheck(FakeClock())).check(TASK, candidates, slack_s)
    except DeadlineExceeded:
        return False
    return True


def test_request_is_refused_with_reasons_when_every_backend_is_too_slow() -> None:
    with pytest.raises(DeadlineExceeded, match=r"near 2 s, far 3 s\), and 1 s are left") as caught:
        DeadlineCheck(FakeClock()).check(TASK, [known("near", 2.0), known("far", 3.0)], 1.0)
    assert caught.value.began is False


def test_request_is_admitted_when_one_backend_is_fast_enough_or_unmeasured() -> None:
    assert is_let_through(1.0, known("near", 2.0), known("far", 0.9))
    assert is_let_through(1.0, known("near", 2.0), known("far", 9.0, samples=SURE_SAMPLES - 1))
    assert is_let_through(1.0, known("near", 9.0, samples=0))


def test_excluded_backends_do_not_affect_feasibility() -> None:
    assert not is_let_through(1.0, known("near", 2.0), known("far", 0.1, refused="breaker open"))
    assert is_let_through(1.0, known("far", 9.0, refused="breaker open"))


def test_infeasible_requests_are_admitted_periodically_as_trials() -> None:
    clock = FakeClock()
    feasibility, passed = DeadlineCheck(clock), 0
    for _ in range(50):
        passed += is_let_through(1.0, known("near", 2.0), feasibility=feasibility)
        clock.move(1.0)
    assert passed == int(50 / TRY_EVERY_S) - 1
