"""When a task is tried again, where, and how long one attempt may take.

    another backend     free: the next backend has not had this load yet
    the same backend    only if no other backend is left, after a pause, once, and out of a budget

Without a budget, retries double the load on a backend exactly when it is overloaded. The budget is a token bucket (as
in linkerd's retry budgets): every request adds a fifth of a token, and every retry takes a whole one, so at most one
request in five is retried.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from gateway.dispatch.planner import Plan
from gateway.dispatch.response_spec import ResponseSpec, ResumeMode
from gateway.plugin import BackendUnavailable, DeadlineExceeded, GatewayError, NotServed, Task, TaskRefused
from gateway.policy import Candidate, Decision
from gateway.registry import ManagedBackend
from gateway.request_log import RequestRecord
from gateway.timing import Watch

TOKENS_PER_REQUEST = 0.2
BURST_TOKENS = 10.0

RETRY_PAUSE_S = 0.1  # if the backend has sent no Retry-After
MAX_RETRY_PAUSE_S = 5.0  # for a longer pause the client gets the error and its Retry-After, and holds no connection
PAUSE_MARGIN_S = 0.01  # a breaker that opened at the same instant has passed its time by then

TIMEOUT_PREDICTIONS = 4.0  # an attempt that another can follow gets at least this many predicted times
TIMEOUT_SHARE = 0.5  # or this share of the time that is left, whichever is more
RESERVE_PREDICTIONS = 2.0  # reserved for the next attempt: this many of its predicted times,
RESERVE_SHARE = 0.1  # and at least this share of the time


@dataclass(slots=True, kw_only=True)
class DispatchState:
    """One task on its way through the backends.

    until: the instant by which the result, or a stream's first content, must be there. tried: the backends that failed
    or cannot serve it, and why. how: the task continues a broken stream in this mode. failure: the error that the
    client gets if no backend serves it; failed_backend: the backend that raised it, "" if it was raised elsewhere.
    is_second_round: the one retry of the same backend has been used. is_probe: the attempt goes over a link that is
    down, because every backend is excluded.
    """

    task: Task
    watch: Watch
    record: RequestRecord
    expected: ResponseSpec
    until: float
    tried: dict[str, str] = field(default_factory=dict)
    failure: GatewayError | None = None
    failed_backend: str = ""
    how: ResumeMode | None = None
    is_second_round: bool = False
    is_probe: bool = False

    def note_failure(self, failure: GatewayError) -> None:
        """Keep the failure if it is the one to report; that of a probe only if there is no other."""
        if self.is_probe and self.failure is not None:
            return
        if error_to_report(self.failure, failure) is failure:
            self.failure, self.failed_backend = failure, self.record.backend


def error_to_report(earlier: GatewayError | None, later: GatewayError) -> GatewayError:
    """Return the one of two failures to report: NotServed never replaces another failure, but a missing endpoint."""
    if earlier is None or earlier.code == "not_found" or not isinstance(later, NotServed):
        return later
    return earlier


def first_byte_deadline(task: Task, expected: ResponseSpec) -> float:
    """Return the instant by which the result, or a stream's first content, must be there."""
    return min(task.deadline, time.monotonic() + expected.limits.first_byte_s) if task.stream else task.deadline


class RetryBudget:
    """A token bucket over all requests, full at the start."""

    def __init__(self) -> None:
        self._tokens = BURST_TOKENS

    def on_request(self) -> None:
        """Add the share of one request."""
        self._tokens = min(self._tokens + TOKENS_PER_REQUEST, BURST_TOKENS)

    def take(self) -> bool:
        """Take a token for one retry; return False if the bucket is empty."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


def may_fail_over(error: GatewayError, plan: Plan, *, has_begun: bool, until: float) -> bool:
    """Whether another backend may be tried after this failure of an attempt. has_begun: work may have started."""
    if isinstance(error, TaskRefused):
        return error.code in ("overloaded", "unavailable")  # the queue is full or gone; nothing has run
    if isinstance(error, DeadlineExceeded):
        return time.monotonic() < until and plan.work.repeatable
    if not isinstance(error, BackendUnavailable):
        return False
    return plan.work.repeatable or not error.began or not has_begun


def retry_pause_s(state: DispatchState, backend: ManagedBackend | None, budget: RetryBudget) -> float | None:
    """Return the seconds to wait before the only backend is tried again; None if it must not be, or is of no use.

    backend: the one that was tried; None if a reload has removed it.
    """
    failure = state.failure
    if not isinstance(failure, BackendUnavailable) or not failure.again:
        return None
    if len(state.tried) != 1 or state.is_second_round or state.is_probe or state.how:
        return None
    if failure.code == "unavailable" and backend is not None and backend.has_workers:
        return 0.0 if budget.take() else None  # a worker died; the pool has others
    pause_s = failure.retry_after_s
    if pause_s is None:
        pause_s = random.uniform(RETRY_PAUSE_S / 2, RETRY_PAUSE_S)
    pause_s += PAUSE_MARGIN_S
    is_in_time = time.monotonic() + pause_s + (state.record.predicted_s or 0.0) < state.until
    return pause_s if pause_s <= MAX_RETRY_PAUSE_S and is_in_time and budget.take() else None


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
