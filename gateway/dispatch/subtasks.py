"""The gateway's services for one backend: subtasks, network samples, a logger and a view of the other backends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from gateway.dispatch.attempt_group import Answer
from gateway.dispatch.dispatcher import Dispatcher
from gateway.dispatch.response_spec import ResponseSpec
from gateway.measure.measurements import Measurements
from gateway.plugin import BackendFailed, DeadlineExceeded, GatewayError, LinkSample, Log, Result, Task, View
from gateway.request_log import RequestRecord, log_request, outcome_of
from gateway.timing import Watch

MAX_DEPTH = 4  # subtasks of subtasks of …


@dataclass(slots=True)
class BackendServices:
    """`gateway.plugin.Services` for one backend.

    find_dispatcher: returns the gateway's dispatcher, or None while the gateway is being built. peer: the IP address
    that the backend last connected to.
    """

    name: str
    measurements: Measurements
    log: Log
    find_dispatcher: Callable[[], Dispatcher | None] = field(repr=False)
    peer: str | None = None

    def observe(self, sample: LinkSample) -> None:
        """Add a sample to the measurements."""
        self.peer = sample.peer or self.peer
        self.measurements.observe(self.name, sample)

    @property
    def view(self) -> View:
        """The other backends, with predictions as the planner makes them."""
        return self._dispatcher.planner.view

    @property
    def _dispatcher(self) -> Dispatcher:
        dispatcher = self.find_dispatcher()
        if dispatcher is None:
            raise BackendFailed("the gateway is still starting; subtasks can be dispatched once it serves")
        return dispatcher

    async def dispatch(self, task: Task) -> Result:
        """Serve a subtask like any request. Its account is laid over its parent's, and it is logged."""
        dispatcher, expected = self._dispatcher, ResponseSpec()
        if task.parent_id is not None and (parent := dispatcher.attempt_at(task.parent_id)) is not None:
            expected = ResponseSpec(has_own_limits=parent.has_own_limits, may_leave=parent.may_leave)
            # A plugin may build the task itself, with a later deadline or permission to leave the site.
            task = task.replace(deadline=parent.task.deadline, may_leave=parent.task.may_leave)
        if task.depth > MAX_DEPTH:
            raise BackendFailed(f"subtasks are nested more than {MAX_DEPTH} deep")
        task = dispatcher.planner.locality.with_locality(task)
        terms = task.terms
        watch = terms.fork() if isinstance(terms, Watch) else Watch()
        record = RequestRecord(
            request_id=task.id,
            parent_id=task.parent_id,
            kind=task.kind,
            model=task.name,
            items=task.items,
            bytes_in=len(task.body),
        )
        return await _serve(dispatcher, task, watch, record, expected)


async def _serve(
    dispatcher: Dispatcher, task: Task, watch: Watch, record: RequestRecord, expected: ResponseSpec
) -> Result:
    answer: Answer | None = None
    try:
        answer = await dispatcher.dispatch(task, watch, record, expected)
        if answer.result is None:
            raise BackendFailed("the response to a subtask is a stream", code="upstream_bad_response")
        record.status, record.outcome = answer.result.status, outcome_of(answer.result.status)
        return replace(answer.result, backend=answer.backend, site=answer.site)
    except GatewayError as exc:
        record.error, record.reason = exc.message, exc.code
        record.outcome = "timed_out" if isinstance(exc, DeadlineExceeded) else "failed"
        exc.is_of_subtask = True
        raise
    except asyncio.CancelledError:
        record.outcome = "cancelled"
        raise
    finally:
        if answer is not None:
            answer.close()
        log_request(record, watch)
