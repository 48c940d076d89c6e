"""A task on its way through the backends: what is known of it, and by when it must be answered."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from gateway.dispatch.continuation import How
from gateway.dispatch.expectations import Expectations
from gateway.journal import Record
from gateway.plugin import GatewayError, Task
from gateway.timing import Watch


@dataclass(slots=True, kw_only=True)
class Call:
    """A task on its way through the backends.

    until: the instant by which the result, or a stream's first content, must be there. tried: who cannot serve
    it, and why. how: it goes on with an answer that broke off. asked_again: its one more round is over.
    """

    task: Task
    watch: Watch
    record: Record
    expected: Expectations
    until: float
    tried: dict[str, str] = field(default_factory=dict)
    failure: GatewayError | None = None
    how: How | None = None
    asked_again: bool = False


def until_of(task: Task, expected: Expectations) -> float:
    """The instant by which the result, or a stream's first content, must be there."""
    return min(task.deadline, time.monotonic() + expected.limits.first_byte_s) if task.stream else task.deadline
