"""A task on its way through the backends: what is known of it, and by when it must be answered."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from gateway.dispatch.continuation import How
from gateway.dispatch.response_spec import ResponseSpec
from gateway.plugin import GatewayError, NotServed, Task
from gateway.request_log import RequestRecord
from gateway.timing import Watch


@dataclass(slots=True, kw_only=True)
class DispatchState:
    """A task on its way through the backends.

    until: the instant by which the result, or a stream's first content, must be there. tried: who cannot serve
    it, and why. how: it goes on with an answer that broke off. failure: what the client is told where nobody
    serves it; failed: whose that is, "" where nobody here was asked. asked_again: its one more round is over.
    """

    task: Task
    watch: Watch
    record: RequestRecord
    expected: ResponseSpec
    until: float
    tried: dict[str, str] = field(default_factory=dict)
    failure: GatewayError | None = None
    failed: str = ""
    how: How | None = None
    asked_again: bool = False


def error_to_report(earlier: GatewayError | None, later: GatewayError) -> GatewayError:
    """Of two failures the one that the client hears of: that somebody does not serve this hides nobody's own fault."""
    if earlier is None or earlier.code == "not_found" or not isinstance(later, NotServed):
        return later
    return earlier


def first_byte_deadline(task: Task, expected: ResponseSpec) -> float:
    """The instant by which the result, or a stream's first content, must be there."""
    return min(task.deadline, time.monotonic() + expected.limits.first_byte_s) if task.stream else task.deadline
