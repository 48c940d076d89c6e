"""Timeouts of a request and of its attempts: when an attempt ends so that another can still follow."""

from __future__ import annotations

import time
from collections.abc import Iterable

from gateway.dispatch.planner import Plan
from gateway.dispatch.response_spec import ResponseSpec
from gateway.plugin import Task
from gateway.policy import Candidate, Decision

TIMEOUT_PREDICTIONS = 4.0  # an attempt that another can follow gets at least this many predicted times
TIMEOUT_SHARE = 0.5  # or this share of the time that is left, whichever is more
RESERVE_PREDICTIONS = 2.0  # reserved for the next attempt: this many of its predicted times,
RESERVE_SHARE = 0.1  # and at least this share of the time


def first_byte_deadline(task: Task, expected: ResponseSpec) -> float:
    """Return the instant by which the result, or a stream's first content, must be there."""
    return min(task.deadline, time.monotonic() + expected.limits.first_byte_s) if task.stream else task.deadline


def attempt_timeout_at(plan: Plan, until: float) -> float:
    """Return when the first attempt is to be cut short: at `until`, or earlier if a better attempt can still follow."""
    if len(plan.decision.order) < 2 or not plan.work.repeatable:
        return until
    now = time.monotonic()
    left_s = until - now
    reserve_s = _reserve_s(plan.decision, left_s)
    if reserve_s <= 0.0:
        return until
    min_s = max(TIMEOUT_SHARE * left_s, TIMEOUT_PREDICTIONS * (plan.decision.predicted_s or 0.0))
    return min(now + min_s, until - reserve_s)


def postponed_timeout_at(plan: Plan, others: Iterable[Candidate], until: float) -> float:
    """Return the new timeout of an attempt that is to be cut short now; the present instant if it is to be cut.

    others: the present predictions of the other backends. It is cut only if one of them is predicted to finish in the
    time that is left.
    """
    now = time.monotonic()
    needs_s = _needs_any_s if _is_unmeasured(plan.decision) else _needs_s
    is_better = any(other.refused is None and needs_s(other) <= until - now for other in others)
    return now if is_better else until


def hedged_timeout_at(plan: Plan, until: float) -> float:
    """Return when two parallel attempts time out: at `until`, or after half of the time if a third backend is left."""
    now = time.monotonic()
    return until if len(plan.decision.order) < 3 else now + TIMEOUT_SHARE * (until - now)


def _reserve_s(decision: Decision, left_s: float) -> float:
    """Return the seconds reserved for the next attempt; 0 if no other backend is predicted to finish in half of the
    time left.

    It does not depend on this attempt's prediction: a backend that hangs is learned to take long.
    """
    half_s = (1 - TIMEOUT_SHARE) * left_s
    others = [ranked[-1] for ranked in decision.ranked[1:]]
    if _is_unmeasured(decision):
        return half_s
    fastest_s = min(_needs_s(each) for each in others)
    if fastest_s > half_s:
        return 0.0
    if any(each.samples == 0 and _needs_s(each) <= half_s for each in others):
        return half_s
    return min(max(RESERVE_PREDICTIONS * fastest_s, RESERVE_SHARE * left_s), half_s)


def _is_unmeasured(decision: Decision) -> bool:
    """Whether no backend has a sample: the predictions are priors, which exclude nothing."""
    return all(ranked[-1].samples == 0 for ranked in decision.ranked)


def _needs_any_s(other: Candidate) -> float:
    return other.wait_s + other.upload_s


def _needs_s(other: Candidate) -> float:
    """Return the seconds that an attempt at `other` is predicted to take: at p95 if it is measured."""
    return other.wait_s + other.upload_s + (other.p95_s if other.samples else other.service_s)
