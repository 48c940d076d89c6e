"""Dispatches each task to the backend that should serve it, and to the next backend if that one fails."""

from __future__ import annotations

import asyncio
import time
from functools import partial

from gateway.admit import Caller
from gateway.dispatch.attempt import Attempt
from gateway.dispatch.attempt_group import Answer, AttemptGroup
from gateway.dispatch.drains import DrainMonitor
from gateway.dispatch.leaks import LeakDetector
from gateway.dispatch.planner import Plan, Planner
from gateway.dispatch.response_spec import ResponseSpec
from gateway.dispatch.resume import FailoverBackends, FailoverStream
from gateway.dispatch.retry import DispatchState, RetryBudget, may_fail_over, retry_pause_s
from gateway.dispatch.timeouts import attempt_timeout_at, first_byte_deadline, hedged_timeout_at, postponed_timeout_at
from gateway.lanes import Scheduler
from gateway.measure.measurements import Measurements
from gateway.plugin import DeadlineExceeded, GatewayError, Task
from gateway.policy import Decision
from gateway.registry import ManagedBackend, Registry
from gateway.request_log import RequestRecord
from gateway.telemetry import log, metrics
from gateway.timing import Watch

CLOSE_S = 5.0  # attempts that ignore their cancellation for so long at the end are left behind


class Dispatcher:
    """Serves tasks. Close it after the last."""

    def __init__(self, registry: Registry, measurements: Measurements, scheduler: Scheduler) -> None:
        self.registry, self.measurements, self.scheduler = registry, measurements, scheduler
        self.planner = Planner(registry, measurements, scheduler)
        self._budget = RetryBudget()
        self._attempts: dict[asyncio.Task[None], Attempt] = {}
        self._leaks = LeakDetector()
        self._drains = DrainMonitor(self._attempts, scheduler)

    async def dispatch(
        self, task: Task, watch: Watch, record: RequestRecord, expected: ResponseSpec | None = None
    ) -> Answer:
        """Serve `task`. Returns when the whole result, or a stream's first content, is there.

        `task.may_leave` must follow the operator's edge-only rules already, see `Locality`. Facts about the request go
        into `record`, its time into `watch`. Raises GatewayError.
        """
        expected = expected or ResponseSpec()
        self._budget.on_request()
        until = first_byte_deadline(task, expected)
        state = DispatchState(task=task, watch=watch, record=record, expected=expected, until=until)
        answer = await self._serve(state)
        continuation = expected.continuation
        if answer.parts is not None and continuation is not None and answer.group.plan.work.repeatable:
            backends = FailoverBackends(self._serve, self.registry, state, answer)
            answer.parts = FailoverStream(task, answer, continuation, backends, expected.heartbeat_s).parts()
        return answer

    async def _serve(self, state: DispatchState) -> Answer:
        try:
            while (answer := await self._try_next(state)) is None:
                pass
        except GatewayError:
            state.failure = None  # it propagates to the caller, and its traceback holds this state
            raise
        return answer

    async def _try_next(self, state: DispatchState) -> Answer | None:
        """Try the next backend. None if it failed and another may be tried."""
        state.watch.enter("decide")
        plan = await self._next_plan(state)
        group = AttemptGroup(state, plan, self.scheduler, self._spawn)
        try:
            return await self._run(group, state)
        except GatewayError as exc:
            if not may_fail_over(exc, plan, has_begun=group.has_begun, until=state.until):
                raise
            state.tried |= dict.fromkeys(group.granted or plan.decision.order[:1], exc.message)
            state.note_failure(exc.with_traceback(None))
            return None

    # ── the next backend ─────────────────────────────────────────────────────────────────────────

    async def _next_plan(self, state: DispatchState) -> Plan:
        """Plan for the backends not tried yet, or for the only one again. Raises the error to report."""
        try:
            plan = self._plan(state)
        except GatewayError:
            pause_s = retry_pause_s(state, self.registry.members.get(state.record.backend), self._budget)
            if pause_s is None:
                raise
            await self._pause(state, pause_s)
            state.is_second_round = True
            state.tried.clear()
            plan = self._plan(state)
        state.is_probe = plan.is_probe
        self._note_plan(state, plan)
        return plan

    async def _pause(self, state: DispatchState, pause_s: float) -> None:
        if pause_s > 0:
            log.info("dispatch.waited", request_id=state.record.request_id, seconds=round(pause_s, 3))
            state.watch.enter("queue")
            await asyncio.sleep(pause_s)
            state.watch.enter("decide")

    def _plan(self, state: DispatchState) -> Plan:
        client_deadline = state.expected.client_deadline
        try:
            state.task = task = self.planner.locality.under_present_rules(state.task, state.expected.may_leave)
            plan = self.planner.plan(task, client_deadline=client_deadline, tried=state.tried)
            if state.failure is None:
                self._note_decision(state.record, plan.decision)  # before a refusal, so that the log line explains it
            self.planner.eligibility.note_demand(plan.decision.refused, task)
            if task.deadline <= time.monotonic():
                raise DeadlineExceeded("the deadline had passed before work could start")
            self.planner.check(plan, task, client_deadline=client_deadline and not state.tried)
        except GatewayError as exc:
            if (backend := self.registry.members.get(state.failed_backend)) is not None:
                self._note_backend(state.record, backend)
            raise state.failure or exc from None
        return plan

    def _note_decision(self, record: RequestRecord, decision: Decision) -> None:
        record.candidates, record.predicted_s = decision.candidates, decision.predicted_s
        record.queue, record.load = self.scheduler.waiting(), self.measurements.load()
        record.decided_at, record.reason = time.monotonic(), decision.reason

    def _note_plan(self, state: DispatchState, plan: Plan) -> None:
        record, decision = state.record, plan.decision
        if state.failure is not None:
            record.reason = "resumed" if state.how else "asked-again" if state.is_second_round else "fell-back"
            log.warning(
                "dispatch.resumed" if state.how else "dispatch.fell_back",
                request_id=record.request_id,
                backend=record.backend,
                error=state.tried.get(record.backend, state.failure.message),
                next=decision.order[0],
                **({"how": state.how} if state.how else {}),
            )
        metrics.DECISIONS.inc(backend=decision.order[0], reason=record.reason or "none")

    def _note_backend(self, record: RequestRecord, backend: ManagedBackend) -> None:
        record.backend, record.site = backend.name, backend.site
        record.link = self.measurements.link(backend.name) if backend.is_remote else None

    # ── attempts ─────────────────────────────────────────────────────────────────────────────────

    async def _run(self, group: AttemptGroup, state: DispatchState) -> Answer:
        """Run one attempt, or two after a hedge, to the first content."""
        record, plan, until = state.record, group.plan, state.until
        self._note_backend(record, self.registry.members[plan.decision.order[0]])
        answer: Answer | None = None
        try:
            group.start()
            record.attempts += 1  # after `start`: a task refused by a full queue has reached no backend
            answer = await group.first_content(
                attempt_timeout_at(plan, until),
                hedged_until=partial(hedged_timeout_at, plan, until),
                postponed_until=lambda: postponed_timeout_at(plan, self.planner.others(plan, state.task), until),
            )
        except DeadlineExceeded as exc:
            group.on_timeout(exc)
            raise
        finally:
            if answer is None:
                group.close()
            record.attempts += len(group.attempts) - 1 if group.attempts else 0
            attempt = group.winner if answer else next(iter(group.granted.values()), None)
            if attempt is not None and attempt.member is not None:
                self._note_backend(record, attempt.member)
        if len(group.attempts) > 1 and answer.backend != plan.decision.order[0]:
            record.reason = "rescued"
        return answer

    def _spawn(self, attempt: Attempt) -> asyncio.Task[None]:
        task = asyncio.create_task(attempt.run(self.registry.members, self.planner.locality))
        self._attempts[task] = attempt
        task.add_done_callback(self._attempts.pop)
        if attempt.task.parent_id is not None:
            self._drains.add_subtask(task, attempt.task.parent_id)
        return task

    def release(self, caller: Caller, request_id: str) -> None:
        """Count a request that has ended out for its key, as soon as its attempts have freed their slots."""
        self._drains.release(caller, request_id)

    def look_for_leaks(self) -> None:
        """Find attempts that still run after their cancellation; call it regularly."""
        now = time.monotonic()
        self._leaks.check(self._attempts, self.registry.members, now)
        self._drains.check(self.registry.members, now)

    def attempt_at(self, task_id: str) -> Attempt | None:
        """Return the running attempt at the task with this id."""
        return next((attempt for attempt in self._attempts.values() if attempt.task.id == task_id), None)

    @property
    def is_stuck(self) -> bool:
        """Whether an attempt still runs; after `close` it will never stop."""
        return bool(self._attempts)

    def stuck(self) -> list[str]:
        """Return the backends with attempts that still run."""
        return sorted({attempt.member.name for attempt in self._attempts.values() if attempt.member is not None})

    async def close(self) -> None:
        """Cancel all attempts, and wait until they have stopped, or for CLOSE_S."""
        for task, attempt in self._attempts.items():
            attempt.stop(task)
        if self._attempts:
            await asyncio.wait(set(self._attempts), timeout=CLOSE_S)
