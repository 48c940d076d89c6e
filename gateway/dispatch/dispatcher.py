"""Gives each task to the backend that should serve it, and to the next where that one cannot."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping
from typing import Any

from gateway.dispatch.planner import Plan, Planner
from gateway.dispatch.race import Answer, Expectations, Race
from gateway.journal import Record
from gateway.lanes import Lanes
from gateway.measure.board import Board
from gateway.plugin import BackendUnavailable, DeadlineExceeded, GatewayError, Task
from gateway.registry import Registry
from gateway.telemetry import log, metrics
from gateway.timing import Watch

PATIENCE = 4.0  # an attempt that could be made elsewhere is given this many predicted times, at least
PATIENCE_SHARE = 0.5  # or this share of the time that is left, whichever is more


class Dispatcher:
    """Serves tasks. Close it after the last."""

    def __init__(self, registry: Registry, board: Board, lanes: Lanes) -> None:
        self.registry, self.board, self.lanes = registry, board, lanes
        self.planner = Planner(registry, board, lanes)
        self._attempts: set[asyncio.Task[None]] = set()

    async def dispatch(self, task: Task, watch: Watch, record: Record, expected: Expectations | None = None) -> Answer:
        """Have `task` served. Returns when the whole result, or a stream's first content, is there.

        What is learned on the way goes into `record`, the time into `watch`. Raises GatewayError.
        """
        expected = expected or Expectations()
        tried: dict[str, str] = {}
        failure: GatewayError | None = None
        began_at = time.monotonic()
        until = task.deadline
        if task.stream:
            until = min(until, began_at + expected.limits.first_byte_s)
        while True:
            watch.enter("decide")
            plan = self._plan(task, record, expected, tried, failure)
            race = Race(task, plan, expected, watch, self.lanes, self.registry.members, self._spawn)
            try:
                return await self._run(race, plan, record, until)
            except GatewayError as exc:
                if not self._may_try_elsewhere(exc, race, plan, until):
                    raise
                failure = exc
                tried |= dict.fromkeys(race.asked or plan.decision.order[:1], exc.message)

    def _plan(
        self, task: Task, record: Record, expected: Expectations, tried: dict[str, str], failure: GatewayError | None
    ) -> Plan:
        if task.deadline <= time.monotonic():
            raise failure or DeadlineExceeded("the deadline had passed before work could start")
        try:
            plan = self.planner.plan(task, client_deadline=expected.client_deadline, tried=tried)
        except GatewayError as exc:
            if failure is None or not self._may_ask_again(record, tried, failure):
                raise failure or exc from None
            return self._plan(task, record, expected, {}, failure)
        decision = plan.decision
        if failure is None:
            record.candidates, record.predicted_s = decision.candidates, decision.predicted_s
            record.queue, record.load = self.lanes.waiting(), self.board.load()
            record.decided_at, record.reason = time.monotonic(), decision.reason
        else:
            record.reason = "fell-back"
            log.warning(
                "dispatch.fell_back",
                request_id=record.request_id,
                backend=record.backend,
                error=failure.message,
                next=decision.order[0],
            )
        metrics.DECISIONS.inc(backend=decision.order[0], reason=record.reason or "none")
        return plan

    def _may_ask_again(self, record: Record, tried: Mapping[str, str], failure: GatewayError) -> bool:
        """Where nobody else is left: a pool whose worker died has others, and is asked once more."""
        each_once = 0 < record.attempts <= len(tried)
        return each_once and failure.code == "unavailable" and self.registry.members[record.backend].is_pool

    async def _run(self, race: Race, plan: Plan, record: Record, until: float) -> Answer:
        record.attempts += 1
        self._note(record, plan.decision.order[0])
        answer: Answer | None = None
        try:
            race.start()
            answer = await race.first(self._patience(plan, until))
        except DeadlineExceeded as exc:
            race.timed_out(exc)
            raise
        finally:
            if answer is None:
                race.close()
            record.attempts += len(race.attempts) - 1 if race.attempts else 0
            if who := answer.backend if answer else next(iter(race.asked), None):
                self._note(record, who)
        if len(race.attempts) > 1 and answer.backend != plan.decision.order[0]:
            record.reason = "rescued"
        return answer

    def _patience(self, plan: Plan, until: float) -> float:
        """How long to wait for this attempt: to the end, or less where another could still be made after it."""
        if len(plan.decision.order) < 2 or not plan.work.repeatable:
            return until
        now = time.monotonic()
        least_s = PATIENCE * (plan.decision.predicted_s or 0.0)
        return min(until, now + max(PATIENCE_SHARE * (until - now), least_s))

    def _may_try_elsewhere(self, error: GatewayError, race: Race, plan: Plan, until: float) -> bool:
        if isinstance(error, DeadlineExceeded):
            return time.monotonic() < until and plan.work.repeatable
        if not isinstance(error, BackendUnavailable):
            return False
        return plan.work.repeatable or not error.began or not race.began

    def _note(self, record: Record, backend: str) -> None:
        record.backend, record.site = backend, self.registry.members[backend].site
        record.link = self.board.link(backend) if self.registry.members[backend].is_remote else None

    # ── the tasks that own slots ─────────────────────────────────────────────────────────────────

    def _spawn(self, attempt: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(attempt)
        self._attempts.add(task)
        task.add_done_callback(self._attempts.discard)
        return task

    async def close(self) -> None:
        """Cancel what still runs, and wait until it has stopped."""
        for task in self._attempts:
            task.cancel()
        if self._attempts:
            await asyncio.wait(self._attempts)
