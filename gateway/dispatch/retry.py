"""When a task is tried again, and where. `timeouts` says how long one attempt may take.

    another backend     free: the next backend has not had this load yet
    the same backend    only if no other backend is left, after a pause, once, and out of a budget

Without a budget, retries double the load on a backend exactly when it is overloaded. The budget is a token bucket (as
in linkerd's retry budgets): every request adds a fifth of a token, and every retry takes a whole one, so at most one
request in five is retried.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

from gateway.dispatch.planner import Plan
from gateway.dispatch.response_spec import ResponseSpec, ResumeMode
from gateway.plugin import BackendUnavailable, DeadlineExceeded, GatewayError, NotServed, Task, TaskRefused
from gateway.registry import ManagedBackend
from gateway.request_log import RequestRecord
from gateway.timing import Watch

TOKENS_PER_REQUEST = 0.2
BURST_TOKENS = 10.0

RETRY_PAUSE_S = 0.1  # if the backend has sent no Retry-After
MAX_RETRY_PAUSE_S = 5.0  # for a longer pause the client gets the error and its Retry-After, and holds no connection
PAUSE_MARGIN_S = 0.01  # a breaker that opened at the same instant has passed its time by then


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
