"""An attempt is cut short only if another backend is predicted to finish in the time that is kept back."""

from __future__ import annotations

import time

import pytest

from gateway.dispatch.planner import Plan
from gateway.dispatch.timeouts import attempt_timeout_at, postponed_timeout_at
from gateway.lanes import Work
from gateway.policy import Candidate, Policy, Query, decide
from gateway.registry import ServingBackends

QUERY = Query("task", "add")
BOX = Candidate("box", "edge", service_s=4.0, p95_s=4.4, samples=9)


def plan_with(first: Candidate, *others: Candidate) -> Plan:
    decision = decide(QUERY, [first, *others], Policy())
    assert decision.order[0] == first.name
    names = dict.fromkeys(decision.order, "add")
    work = Work(
        id="1", kind="task", name="add", models=names, sizes=dict.fromkeys(names, 1.0), body_bytes=1, repeatable=True
    )
    return Plan(ServingBackends(names, None, {}), work, QUERY, decision)


def cloud(seconds: float, samples: int = 9) -> Candidate:
    return Candidate("cloud", "cloud", service_s=seconds, p95_s=seconds, samples=samples)


@pytest.mark.parametrize("first_s", [0.01, 4.0])
@pytest.mark.parametrize("samples", [0, 9])
def test_attempt_gets_all_the_time_if_no_other_backend_is_predicted_to_finish(first_s: float, samples: int) -> None:
    until = time.monotonic() + 6.0
    plan = plan_with(BOX._replace(service_s=first_s, p95_s=first_s), cloud(7.7, samples))
    assert attempt_timeout_at(plan, until) == until


@pytest.mark.parametrize(("other_s", "samples"), [(0.2, 9), (2.0, 9), (2.0, 0)])
def test_time_is_kept_back_for_a_backend_that_is_predicted_to_finish_in_it(other_s: float, samples: int) -> None:
    until = time.monotonic() + 6.0
    plan = plan_with(BOX._replace(service_s=0.1, p95_s=0.1), cloud(other_s, samples))
    assert attempt_timeout_at(plan, until) <= until - other_s


@pytest.mark.parametrize(
    ("other", "is_cut"),
    [(cloud(1.0), True), (cloud(7.7), False), (cloud(1.0)._replace(refused="its link is down: refused"), False)],
)
def test_cut_is_made_only_if_another_backend_can_finish_then(other: Candidate, is_cut: bool) -> None:
    until = time.monotonic() + 3.0
    assert (postponed_timeout_at(plan_with(BOX._replace(service_s=0.1), cloud(1.0)), [other], until) < until) == is_cut


def test_half_of_the_time_is_kept_back_while_no_backend_has_a_sample() -> None:
    until = time.monotonic() + 0.4
    plan = plan_with(BOX._replace(service_s=0.2, p95_s=0.6, samples=0), cloud(0.3, samples=0))
    assert attempt_timeout_at(plan, until) <= until - 0.19
    assert postponed_timeout_at(plan, [cloud(0.3, samples=0)], time.monotonic() + 0.2) < until
