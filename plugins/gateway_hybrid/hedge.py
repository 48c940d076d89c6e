"""Hedge: one side first, the other too if the first takes longer than usual; the first good answer is returned.

"Longer than usual" is the 95th percentile that the gateway has learned for this class and size. The model of the tail
is rough, so a factor corrects the delay towards the true quantile (Robbins and Monro 1951): it rises if a request was
late and falls by a small part of that if it was not. Second calls use tokens of a bucket that each request fills by
`budget`. The quantile is chosen so that the bucket rarely runs empty.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any

from gateway.plugin import DeadlineExceeded, GatewayError, Result, Services, Task, TaskInvalid, View
from gateway_hybrid.settings import HybridSettings
from gateway_hybrid.sides import EdgeCloudPair, as_whole_subtask, is_final, may_have_run

MIN_QUANTILE = 0.95
BUDGET_USED = 0.7
STEP = 0.3  # of the logarithm of the factor
MAX_FACTOR = 100.0
BURST = 5.0  # tokens kept
MAX_CLASSES = 1024


class DelayFactor:
    """A factor on the predicted delay, such that a share `late` of the requests takes longer."""

    def __init__(self, late: float) -> None:
        self.factor, self._late = 1.0, late

    def learn(self, *, was_late: bool) -> None:
        """Record whether one request was late."""
        step = STEP * (1.0 - self._late) if was_late else -STEP * self._late
        self.factor = min(max(self.factor * math.exp(step), 1 / MAX_FACTOR), MAX_FACTOR)


class Hedge:
    """The mode `hedge`."""

    def __init__(self, settings: HybridSettings, services: Services) -> None:
        self.settings, self.services = settings, services
        self.sides = EdgeCloudPair(settings, services)
        self.tokens = 1.0
        self._factors: dict[tuple[str, str, str], DelayFactor] = {}

    async def run(self, task: Task) -> Result:
        """Return the first good answer of either side."""
        task.terms.leave()
        view = self.services.view
        self.tokens = min(self.tokens + self.settings.budget, BURST)
        first = self._first(task, view)
        calls: dict[asyncio.Future[Result], str] = {}
        try:
            calls[asyncio.ensure_future(self.sides.dispatch(first, as_whole_subtask(task)))] = first
            await self._wait_until_late(calls, first, task, view)
            return await self._first_good(calls, first, task)
        finally:
            for each in calls:
                each.cancel()
            for loser in (await asyncio.wait(calls))[0]:
                _ = loser.cancelled() or loser.exception()  # retrieved, or asyncio logs the exception
            task.terms.enter("aggregate")

    def _first(self, task: Task, view: View) -> str:
        predicted = self.sides.seconds(task, view)
        return min(self.sides.eligible(task), key=lambda side: predicted.get(side, math.inf))

    async def _wait_until_late(
        self, calls: dict[asyncio.Future[Result], str], first: str, task: Task, view: View
    ) -> None:
        """Return when the first side has answered, or is late and the second side has been called."""
        second = self.sides.other(first)
        factor = self._factor(first, task)
        p95_s = view.p95_s(first, task)
        is_able = task.may_leave and self.settings.repeatable is not False and view.seconds(second, task) is not None
        if p95_s is None or not is_able:
            return
        delay_s = p95_s * factor.factor
        done, _ = await asyncio.wait(calls, timeout=delay_s)
        factor.learn(was_late=not done)
        if not done and self.tokens >= 1.0:
            self.tokens -= 1.0
            self.services.log.info(
                "hybrid.hedged", parent_id=task.id, before=first, after=second, delay_ms=round(delay_s * 1e3, 3)
            )
            calls[asyncio.ensure_future(self.sides.dispatch(second, as_whole_subtask(task)))] = second

    async def _first_good(self, calls: dict[asyncio.Future[Result], str], first: str, task: Task) -> Result:
        """Return the first good answer. If a side fails alone, call the other; raise the last failure."""
        open_, last = set(calls), None
        while open_:
            done, open_ = await asyncio.wait(open_, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                answer = _outcome_of(each)
                if isinstance(answer, Result) and is_final(answer):
                    return answer
                last = answer
                if len(calls) == 1 and self._may_call_other(answer, task):
                    calls[
                        other := asyncio.ensure_future(
                            self.sides.dispatch(self.sides.other(first), as_whole_subtask(task))
                        )
                    ] = ""
                    open_.add(other)
        if isinstance(last, Result):
            return last
        assert last is not None
        raise last

    def _may_call_other(self, answer: Result | GatewayError, task: Task) -> bool:
        if not task.may_leave or isinstance(answer, TaskInvalid | DeadlineExceeded):
            return False
        ran = isinstance(answer, Result) or may_have_run(answer)
        return not (ran and self.settings.repeatable is False)

    def _factor(self, side: str, task: Task) -> DelayFactor:
        key = (side, task.kind, task.name)
        if key not in self._factors and len(self._factors) >= MAX_CLASSES:
            self._factors.clear()
        late = min(1.0 - MIN_QUANTILE, BUDGET_USED * self.settings.budget)
        return self._factors.setdefault(key, DelayFactor(late))

    def estimate(self, task: Task, view: View) -> float | None:
        """The time of the faster side: hedging shortens only the tail."""
        return min(self.sides.seconds(task, view).values(), default=None)

    def plan(self, task: Task, view: View) -> Mapping[str, Any] | None:
        """The side that is called first, and the delay before the other."""
        first = self._first(task, view)
        p95_s = view.p95_s(first, task)
        after_s = None if p95_s is None else p95_s * self._factor(first, task).factor
        return {"mode": "hedge", "first": first, "second_after_s": after_s if task.may_leave else None}


def _outcome_of(call: asyncio.Future[Result]) -> Result | GatewayError:
    """Return the answer or the backend's error; any other exception is raised."""
    try:
        return call.result()
    except GatewayError as exc:
        return exc
