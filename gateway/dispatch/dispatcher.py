"""Gives each task to the backend that should serve it, and to the next where that one cannot."""

from __future__ import annotations

import asyncio
import random
import time
from functools import partial

from gateway.dispatch.attempt import Attempt
from gateway.dispatch.call import DispatchState, error_to_report, first_byte_deadline
from gateway.dispatch.leaks import Leaks
from gateway.dispatch.patience import patience, patience_rescued
from gateway.dispatch.planner import Plan, Planner
from gateway.dispatch.race import Answer, AttemptGroup
from gateway.dispatch.response_spec import ResponseSpec
from gateway.dispatch.resume import FailoverStream
from gateway.dispatch.retry import RetryBudget
from gateway.dispatch.successors import FailoverBackends
from gateway.lanes import Scheduler
from gateway.measure.measurements import Measurements
from gateway.plugin import BackendUnavailable, DeadlineExceeded, GatewayError, Task, TaskRefused
from gateway.policy import Decision
from gateway.registry import ManagedBackend, Registry
from gateway.request_log import RequestRecord
from gateway.telemetry import log, metrics
from gateway.timing import Watch

CLOSE_S = 5.0  # what runs at the end, and ignores that it is told to stop, is left behind then
PAUSE_S = 0.1  # before somebody is asked again who did not say when
MAX_PAUSE_S = 5.0  # who must wait longer is told so, and need not hold a connection for it
PAUSE_MARGIN_S = 0.01  # a breaker that opened at the same instant is open no longer than that


class Dispatcher:
    """Serves tasks. Close it after the last."""

    def __init__(self, registry: Registry, board: Measurements, lanes: Scheduler) -> None:
        self.registry, self.board, self.lanes = registry, board, lanes
        self.planner = Planner(registry, board, lanes)
        self._budget = RetryBudget()
        self._attempts: dict[asyncio.Task[None], Attempt] = {}
        self._leaks = Leaks()

    async def dispatch(
        self, task: Task, watch: Watch, record: RequestRecord, expected: ResponseSpec | None = None
    ) -> Answer:
        """Have `task` served. Returns when the whole result, or a stream's first content, is there.

        What is learned on the way goes into `record`, the time into `watch`. Raises GatewayError.
        """
        task, expected = self.planner.kept(task), expected or ResponseSpec()
        self._budget.note_request()
        call = DispatchState(
            task=task, watch=watch, record=record, expected=expected, until=first_byte_deadline(task, expected)
        )
        answer = await self._served(call)
        said = expected.said
        if answer.parts is not None and said is not None and answer.race.plan.work.repeatable:
            successors = FailoverBackends(self._served, self.registry, call, answer)
            answer.parts = FailoverStream(task, answer, said, successors.ask, expected.quiet_s).parts()
        return answer

    async def _served(self, call: DispatchState) -> Answer:
        try:
            while (answer := await self._attempted(call)) is None:
                pass
        except GatewayError:
            call.failure = None  # it is on its way up, and its traceback holds this call
            raise
        return answer

    async def _attempted(self, call: DispatchState) -> Answer | None:
        """What whoever is next answers; None where somebody else may be asked after that."""
        call.watch.enter("decide")
        plan = await self._next_plan(call)
        race = AttemptGroup(call.task, plan, call.expected, call.watch, self.lanes, self._spawn)
        try:
            return await self._run(race, plan, call)
        except GatewayError as exc:
            if not self._may_try_elsewhere(exc, race, plan, call.until):
                raise
            call.tried |= dict.fromkeys(race.asked or plan.decision.order[:1], exc.message)
            self._note_failure(call, exc.with_traceback(None))
            return None

    def _note_failure(self, call: DispatchState, failure: GatewayError) -> None:
        if error_to_report(call.failure, failure) is failure:
            call.failure, call.failed = failure, call.record.backend

    # ── who is next ──────────────────────────────────────────────────────────────────────────────

    async def _next_plan(self, call: DispatchState) -> Plan:
        """Who has not been asked yet; where only one could be, that one again. Raises the last failure."""
        try:
            plan = self._plan(call)
        except GatewayError:
            if (pause_s := self._pause_s(call)) is None:
                raise
            await self._pause(call, pause_s)
            call.asked_again = True
            call.tried.clear()
            plan = self._plan(call)
        self._note_plan(call, plan)
        return plan

    async def _pause(self, call: DispatchState, pause_s: float) -> None:
        if pause_s > 0:
            log.info("dispatch.waited", request_id=call.record.request_id, seconds=round(pause_s, 3))
            call.watch.enter("queue")
            await asyncio.sleep(pause_s)
            call.watch.enter("decide")

    def _plan(self, call: DispatchState) -> Plan:
        try:
            plan = self.planner.plan(call.task, client_deadline=call.expected.client_deadline, tried=call.tried)
            if call.failure is None:
                self._note_decision(call.record, plan.decision)  # before it is refused: the line says why
            if call.task.deadline <= time.monotonic():
                raise DeadlineExceeded("the deadline had passed before work could start")
            is_to_be_feasible = call.expected.client_deadline and not call.tried
            self.planner.check(plan, call.task, client_deadline=is_to_be_feasible)
        except GatewayError as exc:
            if (member := self.registry.members.get(call.failed)) is not None:
                self._note(call.record, member)
            raise call.failure or exc from None
        return plan

    def _pause_s(self, call: DispatchState) -> float | None:
        """How long to wait before asking the only one again; None where that may not be, or is of no use."""
        failure = call.failure
        if not isinstance(failure, BackendUnavailable) or not failure.again:
            return None
        if len(call.tried) != 1 or call.asked_again or call.how:
            return None
        member = self.registry.members.get(call.record.backend)  # None: a reload has removed it meanwhile
        if failure.code == "unavailable" and member is not None and member.has_workers:
            return 0.0 if self._budget.take() else None  # a worker died; the pool has others
        pause_s = failure.retry_after_s
        if pause_s is None:
            pause_s = random.uniform(PAUSE_S / 2, PAUSE_S)
        pause_s += PAUSE_MARGIN_S
        is_in_time = time.monotonic() + pause_s + (call.record.predicted_s or 0.0) < call.until
        return pause_s if pause_s <= MAX_PAUSE_S and is_in_time and self._budget.take() else None

    def _note_decision(self, record: RequestRecord, decision: Decision) -> None:
        record.candidates, record.predicted_s = decision.candidates, decision.predicted_s
        record.queue, record.load = self.lanes.waiting(), self.board.load()
        record.decided_at, record.reason = time.monotonic(), decision.reason

    def _note_plan(self, call: DispatchState, plan: Plan) -> None:
        record, decision = call.record, plan.decision
        if call.failure is not None:
            record.reason = "resumed" if call.how else "asked-again" if call.asked_again else "fell-back"
            log.warning(
                "dispatch.resumed" if call.how else "dispatch.fell_back",
                request_id=record.request_id,
                backend=record.backend,
                error=call.tried.get(record.backend, call.failure.message),
                next=decision.order[0],
                **({"how": call.how} if call.how else {}),
            )
        metrics.DECISIONS.inc(backend=decision.order[0], reason=record.reason or "none")

    # ── one attempt, or two after a rescue ───────────────────────────────────────────────────────

    async def _run(self, race: AttemptGroup, plan: Plan, call: DispatchState) -> Answer:
        record = call.record
        self._note(record, self.registry.members[plan.decision.order[0]])
        answer: Answer | None = None
        try:
            race.start()
            record.attempts += 1  # not before: who is refused a place in line has asked nobody
            answer = await race.first(patience(plan, call.until), partial(patience_rescued, plan, call.until))
        except DeadlineExceeded as exc:
            race.timed_out(exc)
            raise
        finally:
            if answer is None:
                race.close()
            record.attempts += len(race.attempts) - 1 if race.attempts else 0
            who = race.winner if answer else next(iter(race.asked.values()), None)
            if who is not None and who.member is not None:
                self._note(record, who.member)
        if len(race.attempts) > 1 and answer.backend != plan.decision.order[0]:
            record.reason = "rescued"
        return answer

    def _may_try_elsewhere(self, error: GatewayError, race: AttemptGroup, plan: Plan, until: float) -> bool:
        if isinstance(error, TaskRefused):
            return error.code in ("overloaded", "unavailable")  # its line is full, or gone; nothing was run
        if isinstance(error, DeadlineExceeded):
            return time.monotonic() < until and plan.work.repeatable
        if not isinstance(error, BackendUnavailable):
            return False
        return plan.work.repeatable or not error.began or not race.began

    def _note(self, record: RequestRecord, member: ManagedBackend) -> None:
        record.backend, record.site = member.name, member.site
        record.link = self.board.link(member.name) if member.is_remote else None

    # ── the tasks that own slots ─────────────────────────────────────────────────────────────────

    def _spawn(self, attempt: Attempt) -> asyncio.Task[None]:
        task = asyncio.create_task(attempt.run(self.registry.members, self.planner.handed))
        self._attempts[task] = attempt
        task.add_done_callback(self._attempts.pop)
        return task

    def look_for_leaks(self) -> None:
        """Find attempts that were cancelled and go on; call it every now and then."""
        self._leaks.look(self._attempts, self.registry.members, time.monotonic())

    def served(self, task_id: str) -> Attempt | None:
        """Who serves the task of that id, while a backend has it."""
        return next((attempt for attempt in self._attempts.values() if attempt.task.id == task_id), None)

    @property
    def is_stuck(self) -> bool:
        """Whether something still runs; after `close`, that is what will never stop."""
        return bool(self._attempts)

    def stuck(self) -> list[str]:
        """Whose it is."""
        return sorted({attempt.member.name for attempt in self._attempts.values() if attempt.member is not None})

    async def close(self) -> None:
        """Cancel what still runs, and wait until it has stopped, or CLOSE_S have passed."""
        for task, attempt in self._attempts.items():
            attempt.stop(task)
        if self._attempts:
            await asyncio.wait(set(self._attempts), timeout=CLOSE_S)
