"""What a backend asks of the gateway: its subtasks served, its network samples heard, its lines logged."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from gateway.dispatch.dispatcher import Dispatcher
from gateway.dispatch.race import Answer
from gateway.dispatch.response_spec import ResponseSpec
from gateway.measure.measurements import Measurements
from gateway.plugin import BackendFailed, DeadlineExceeded, GatewayError, LinkSample, Log, Result, Task, View
from gateway.request_log import RequestRecord, log_request, outcome_of
from gateway.timing import Watch

MAX_DEPTH = 4  # subtasks of subtasks of …


@dataclass(slots=True)
class BackendServices:
    """`gateway.plugin.Services` for one backend. The dispatcher is put in once it exists."""

    name: str
    board: Measurements
    log: Log
    dispatcher: Dispatcher | None = field(default=None, repr=False)
    peer: str | None = None  # the IP address its backend last spoke to

    def observe(self, sample: LinkSample) -> None:
        """Tell the board what the network did."""
        self.peer = sample.peer or self.peer
        self.board.observe(self.name, sample)

    @property
    def view(self) -> View:
        """The other backends, as the planner sees them."""
        return self._dispatcher.planner

    @property
    def _dispatcher(self) -> Dispatcher:
        if self.dispatcher is None:
            raise BackendFailed("subtasks can be dispatched once the gateway serves, not before")
        return self.dispatcher

    async def dispatch(self, task: Task) -> Result:
        """Serve a subtask like any request. Its account is laid over its parent's; its line is written."""
        dispatcher, expected = self._dispatcher, ResponseSpec()
        if task.parent_id is not None and (whole := dispatcher.served(task.parent_id)) is not None:
            expected = ResponseSpec(has_own_limits=whole.has_own_limits)
            task = task.replace(deadline=whole.task.deadline, may_leave=whole.task.may_leave)  # it may be made by hand
        if task.depth > MAX_DEPTH:
            raise BackendFailed(f"subtasks are nested more than {MAX_DEPTH} deep")
        parent = task.terms
        watch = parent.fork() if isinstance(parent, Watch) else Watch()
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
            raise BackendFailed("a subtask was answered by a stream", code="upstream_bad_response")
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
