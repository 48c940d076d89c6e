"""Hedge: one side first, the other too where the first is later than usual; the first good answer is the answer.

"Later than usual" is the 95th percentile the gateway has learned for this class and size. Its model of the tail is a
rough one, so the delay is corrected by a factor that follows the true quantile (Robbins and Monro 1951): up when a
request was late, down by a small part of that when it was not. Second calls are paid from a token bucket, filled by
`budget` per request; the quantile is such that it is not quite used up, and there is one when it matters.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any

from gateway.plugin import DeadlineExceeded, GatewayError, Result, Services, Task, TaskInvalid, View
from gateway_hybrid.settings import HybridSettings
from gateway_hybrid.sides import EdgeCloudPair, is_final, may_have_run, whole

MIN_QUANTILE = 0.95
BUDGET_USED = 0.7
STEP = 0.3  # of the logarithm of the factor
MAX_FACTOR = 100.0
BURST = 5.0  # tokens kept
REMEMBERED = 1024


class Quantile:
    """A factor on a predicted delay, such that a `late` share of the requests takes longer than that."""

    def __init__(self, late: float) -> None:
        self.factor, self._late = 1.0, late

    def learn(self, *, was_late: bool) -> None:
        """One request that was late, or was not."""
        step = STEP * (1.0 - self._late) if was_late else -STEP * self._late
        self.factor = min(max(self.factor * math.exp(step), 1 / MAX_FACTOR), MAX_FACTOR)


class Hedge:
    """The mode `hedge`."""

    def __init__(self, settings: HybridSettings, services: Services) -> None:
        self.settings, self.services = settings, services
        self.sides = EdgeCloudPair(settings, services)
        self.tokens = 1.0
        self._quantiles: dict[tuple[str, str, str], Quantile] = {}

    async def run(self, task: Task) -> Result:
        """The first good answer of either side."""
        task.terms.leave()
        view = self.services.view
        self.tokens = min(self.tokens + self.settings.budget, BURST)
        first = self._first(task, view)
        asked: dict[asyncio.Future[Result], str] = {}
        try:
            asked[asyncio.ensure_future(self.sides.ask(first, whole(task)))] = first
            await self._wait_until_late(asked, first, task, view)
            return await self._race(asked, first, task)
        finally:
            for each in asked:
                each.cancel()
            for loser in (await asyncio.wait(asked))[0]:
                _ = loser.cancelled() or loser.exception()  # heard, or asyncio reports it as forgotten
            task.terms.enter("aggregate")

    def _first(self, task: Task, view: View) -> str:
        predicted = self.sides.seconds(task, view)
        return min(self.sides.of(task), key=lambda side: predicted.get(side, math.inf))

    async def _wait_until_late(
        self, asked: dict[asyncio.Future[Result], str], first: str, task: Task, view: View
    ) -> None:
        """Returns when the first side has answered, or is late and may be helped; the second side is asked then."""
        second = self.sides.other(first)
        quantile = self._quantile(first, task)
        p95_s = view.p95_s(first, task)
        is_able = task.may_leave and self.settings.repeatable is not False and view.seconds(second, task) is not None
        if p95_s is None or not is_able:
            return
        delay_s = p95_s * quantile.factor
        done, _ = await asyncio.wait(asked, timeout=delay_s)
        quantile.learn(was_late=not done)
        if not done and self.tokens >= 1.0:
            self.tokens -= 1.0
            self.services.log.info(
                "hybrid.hedged", parent_id=task.id, before=first, after=second, delay_ms=round(delay_s * 1e3, 3)
            )
            asked[asyncio.ensure_future(self.sides.ask(second, whole(task)))] = second

    async def _race(self, asked: dict[asyncio.Future[Result], str], first: str, task: Task) -> Result:
        """The first good answer. A side that fails alone is followed by the other; the last failure is raised."""
        open_, last = set(asked), None
        while open_:
            done, open_ = await asyncio.wait(open_, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                answer = _settled(each)
                if isinstance(answer, Result) and is_final(answer):
                    return answer
                last = answer
                if len(asked) == 1 and self._may_ask_other(answer, task):
                    asked[other := asyncio.ensure_future(self.sides.ask(self.sides.other(first), whole(task)))] = ""
                    open_.add(other)
        if isinstance(last, Result):
            return last
        assert last is not None
        raise last

    def _may_ask_other(self, answer: Result | GatewayError, task: Task) -> bool:
        if not task.may_leave or isinstance(answer, TaskInvalid | DeadlineExceeded):
            return False
        ran = isinstance(answer, Result) or may_have_run(answer)
        return not (ran and self.settings.repeatable is False)

    def _quantile(self, side: str, task: Task) -> Quantile:
        key = (side, task.kind, task.name)
        if key not in self._quantiles and len(self._quantiles) >= REMEMBERED:
            self._quantiles.clear()
        late = min(1.0 - MIN_QUANTILE, BUDGET_USED * self.settings.budget)
        return self._quantiles.setdefault(key, Quantile(late))

    def estimate(self, task: Task, view: View) -> float | None:
        """The faster side's time: what hedging saves is in the tail."""
        return min(self.sides.seconds(task, view).values(), default=None)

    def plan(self, task: Task, view: View) -> Mapping[str, Any] | None:
        """Who is asked first, and after how long the other."""
        first = self._first(task, view)
        p95_s = view.p95_s(first, task)
        after_s = None if p95_s is None else p95_s * self._quantile(first, task).factor
        return {"mode": "hedge", "first": first, "second_after_s": after_s if task.may_leave else None}


def _settled(asked: asyncio.Future[Result]) -> Result | GatewayError:
    """What came of it. Raises what is no failure of a backend."""
    try:
        return asked.result()
    except GatewayError as exc:
        return exc
