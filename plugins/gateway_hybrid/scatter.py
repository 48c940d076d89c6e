"""Scatter: one batch over both sides at once. `deal` says who does what; here it is done.

The estimate follows from the theory of divisible loads: both sides begin at once and end together, so

    T = (N + o_edge / t_edge + o_cloud / t_cloud) / (1 / t_edge + 1 / t_cloud)

with o what a side needs before its first item (round trip, wait) and t for each further one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from gateway.plugin import (
    BackendFailed,
    DeadlineExceeded,
    GatewayError,
    Result,
    Services,
    Task,
    TaskInvalid,
    View,
)
from gateway_hybrid.assignment import Assignment, Group
from gateway_hybrid.divisible import Work, work_of
from gateway_hybrid.settings import HybridSettings
from gateway_hybrid.sides import PASSED_ON, EdgeCloudPair, may_have_run
from gateway_hybrid.throughput import MIN_S, Throughput

FIRST_GROUPS = 2  # in flight far away, whatever is known: one on its way, one being done
HANDLING_S = 0.003  # of dividing and joining, for the estimate
REMEMBERED = 1024  # classes of work


class Speed(NamedTuple):
    """One side's prediction for a batch: seconds before its first item, and for each."""

    overhead_s: float
    per_item_s: float


class Memory(NamedTuple):
    """What the last batch of a class taught of a side: seconds for each item, and how many it does at once."""

    per_item_s: float
    servers: float


class Scatter:
    """The mode `scatter`. It remembers the speed of each side by class of work; its waits, the view knows better."""

    def __init__(self, settings: HybridSettings, services: Services) -> None:
        self.settings, self.services = settings, services
        self.sides = EdgeCloudPair(settings, services)
        self._memory: dict[tuple[str, str, str], Memory] = {}

    async def run(self, task: Task) -> Result:
        """Divide, assign, run, put together. What cannot be divided is done by the side that is faster at it."""
        task.terms.enter("split")
        work = work_of(task, self.settings.argument, self.settings.piece_s)
        if work is not None:
            await work.prepare()
        if work is None:
            task.terms.leave()
            return await self._undivided(task)
        batch = _Batch(self, task, work, self._paces(task, work))
        task.terms.leave()
        answers = await batch.work_off()
        task.terms.enter("aggregate")
        if isinstance(answers, Result):
            return answers
        self._remember(task, batch.paces)
        return work.join(answers)

    async def _undivided(self, task: Task) -> Result:
        predicted = self.sides.seconds(task, self.services.view)
        order = sorted(self.sides.of(task), key=lambda side: predicted.get(side, float("inf")))
        for side in order[:-1]:
            try:
                return await self.sides.ask(side, task.subtask())
            except (TaskInvalid, DeadlineExceeded):
                raise
            except GatewayError as exc:
                if may_have_run(exc) and self.settings.repeatable is False:
                    raise
        return await self.sides.ask(order[-1], task.subtask())

    # ── how fast the sides are ───────────────────────────────────────────────────────────────────

    def _paces(self, task: Task, work: Work) -> dict[str, Throughput]:
        view = self.services.view
        speeds = self._speeds(task, work, view)
        return {side: self._pace(side, task, view, speeds.get(side)) for side in self.sides.of(task)}

    def _pace(self, side: str, task: Task, view: View, speed: Speed | None) -> Throughput:
        most = max(1, view.slots(side))
        at_first = most if side == self.sides.edge else FIRST_GROUPS
        if speed is None or speed.overhead_s <= 0.0:
            return Throughput(most=most, at_first=at_first)
        return Throughput(
            most=most,
            at_first=at_first,
            per_item_s=speed.per_item_s,
            overhead_s=speed.overhead_s,
            servers=self._servers(side, task, view),
        )

    def _servers(self, side: str, task: Task, view: View) -> float:
        known = self._memory.get((side, task.kind, task.name))
        if known is not None:
            return known.servers
        return float(max(1, view.slots(side))) if side == self.sides.edge else 1.0

    def _remember(self, task: Task, paces: Mapping[str, Throughput]) -> None:
        if len(self._memory) >= REMEMBERED:
            self._memory.clear()
        for side, pace in paces.items():
            if pace.is_measured and pace.per_item_s is not None:
                self._memory[side, task.kind, task.name] = Memory(pace.per_item_s, pace.servers)

    def _speeds(self, task: Task, work: Work, view: View) -> dict[str, Speed]:
        """What is predicted of each side. An overhead of 0 means that sizes have told nothing apart yet."""
        if work.count < 2:
            return {}
        one = work.part(0, 1)
        out: dict[str, Speed] = {}
        for side, whole_s in self.sides.seconds(task, view).items():
            first_s = view.seconds(side, one)
            if first_s is None:
                continue
            known = self._memory.get((side, task.kind, task.name))
            per_item_s = known.per_item_s if known else (whole_s - first_s) / (work.count - 1)
            is_told_apart = per_item_s > 0.01 * whole_s / work.count
            out[side] = (
                Speed(max(first_s - per_item_s, MIN_S), per_item_s)
                if is_told_apart
                else Speed(0.0, whole_s / work.count)
            )
        return out

    # ── what it will take ────────────────────────────────────────────────────────────────────────

    def estimate(self, task: Task, view: View) -> float | None:
        """Seconds for the batch divided; for what cannot be divided, a little more than the faster side."""
        alone = self.sides.seconds(task, view)
        if not alone:
            return None
        return self._shares(task, view, alone)[0]

    def plan(self, task: Task, view: View) -> dict[str, Any] | None:
        """The shares it would aim for; the pulling decides."""
        alone = self.sides.seconds(task, view)
        if not alone:
            return None
        seconds, shares = self._shares(task, view, alone)
        return {"mode": "scatter", "items": self._count(task), "shares": shares, "predicted_s": seconds}

    def _count(self, task: Task) -> int:
        work = self._work(task)
        return work.count if work else 1

    def _work(self, task: Task) -> Work | None:
        try:
            return work_of(task, self.settings.argument, self.settings.piece_s)
        except TaskInvalid:
            return None

    def _shares(self, task: Task, view: View, alone: Mapping[str, float]) -> tuple[float, dict[str, float]]:
        best = min(alone, key=lambda side: alone[side])
        whole = alone[best] + HANDLING_S, {side: float(side == best) for side in alone}
        work = self._work(task)
        if work is None or work.count < 2:
            return whole
        speeds = {
            side: Speed(speed.overhead_s, speed.per_item_s / self._servers(side, task, view))
            for side, speed in self._speeds(task, work, view).items()
        }
        divided = divide(work.count, speeds)
        return divided if divided[0] < whole[0] else whole


def divide(count: int, speeds: Mapping[str, Speed]) -> tuple[float, dict[str, float]]:
    """Seconds, and each side's part, when all begin at once and end together. A side too slow to help gets nothing."""
    useful = dict(speeds)
    while useful:
        rate = sum(1 / speed.per_item_s for speed in useful.values())
        begun = sum(speed.overhead_s / speed.per_item_s for speed in useful.values())
        seconds = (count + begun) / rate
        late = [side for side, speed in useful.items() if speed.overhead_s + speed.per_item_s > seconds]
        if not late or len(useful) == 1:
            last_s = max(speed.per_item_s for speed in useful.values()) / 2 if len(useful) > 1 else 0.0
            shares = dict.fromkeys(speeds, 0.0)
            for side, speed in useful.items():
                shares[side] = round((seconds - speed.overhead_s) / speed.per_item_s / count, 4)
            return seconds + last_s + HANDLING_S, shares
        del useful[max(late, key=lambda side: useful[side].overhead_s + useful[side].per_item_s)]
    return float("inf"), dict.fromkeys(speeds, 0.0)


class _Batch:
    """One batch on its way: which groups run, and what came back for each."""

    def __init__(self, scatter: Scatter, task: Task, work: Work, paces: dict[str, Throughput]) -> None:
        self.sides, self.services, self.task = scatter.sides, scatter.services, task
        self.work, self.paces = work, paces
        self._repeatable = scatter.settings.repeatable is not False
        self._deal = Assignment(work.count, paces, groups=scatter.settings.groups, repeatable=self._repeatable)
        self._running: dict[asyncio.Task[Any], Group] = {}
        self._answers: dict[int, Any] = {}
        self._refusal: Result | None = None
        self._now = asyncio.get_running_loop().time

    async def work_off(self) -> list[Any] | Result:
        """The answers to all parts, in order; or a side's refusal, which is the answer to the whole.

        Raises the first failure that neither side could mend. What still runs then is cancelled.
        """
        try:
            while not self._deal.is_done and self._refusal is None:
                self._start(self._deal.assign(self._now()))
                await self._news()
        finally:
            await self._cancel(self._running)
        return self._refusal or [self._answers[start] for start in sorted(self._answers)]

    def _start(self, groups: Iterable[Group]) -> None:
        for late in self._deal.reclaimed:
            self._moved(late, "stalled")
            self._drop(late)
        self._deal.reclaimed.clear()
        for group in groups:
            part = self.work.part(group.start, group.stop)
            asked = asyncio.ensure_future(self.sides.ask(group.side, part))
            asked.add_done_callback(_seen)
            self._running[asked] = group

    async def _news(self) -> None:
        """Wait until something came back, or it is time to look again."""
        wait_s = self._deal.look_again_s(self._now())
        if not self._running:
            await asyncio.sleep(wait_s or 0.0)
            if self._now() >= self.task.deadline:
                raise DeadlineExceeded("the time was over before both sides could be asked again")
            return
        done, _ = await asyncio.wait(self._running, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        for asked in done:
            if (group := self._running.pop(asked, None)) is not None and not asked.cancelled():
                self._settle(group, asked)

    def _settle(self, group: Group, asked: asyncio.Task[Any]) -> None:
        try:
            answer = asked.result()
            if answer.status in PASSED_ON:
                self._refusal = answer
                return
            if answer.status >= 400:
                self._failed(group, BackendFailed(f"{group.side} refused it with status {answer.status}"), answer)
                return
            checked = self.work.check(answer, group.items)
        except (TaskInvalid, DeadlineExceeded):
            raise
        except GatewayError as exc:
            self._failed(group, exc, None)
            return
        self._answers[group.start] = checked
        self._deal.answered(group, self._now())
        if group.twin is not None:
            self._drop(group.twin)

    def _failed(self, group: Group, error: GatewayError, refusal: Result | None) -> None:
        ran = may_have_run(error)
        if ran and not self._repeatable:
            raise error
        is_open = self._deal.failed(group, self._now(), is_refusal=not ran, retry_after_s=error.retry_after_s)
        if is_open:
            self._moved(group, error.code)
        elif refusal is not None:
            self._refusal = refusal
        else:
            raise error

    def _moved(self, group: Group, why: str) -> None:
        self.services.log.info(
            "hybrid.group_moved",
            parent_id=self.task.id,
            before=group.side,
            after=self.sides.other(group.side) if self.task.may_leave else group.side,
            error=why,
        )

    def _drop(self, group: Group) -> None:
        for asked, running in list(self._running.items()):
            if running is group:
                del self._running[asked]
                asked.cancel()

    async def _cancel(self, asked: Iterable[asyncio.Task[Any]]) -> None:
        left = list(asked)
        for each in left:
            each.cancel()
        if left:
            await asyncio.wait(left)


def _seen(asked: asyncio.Future[Any]) -> None:
    """Whoever has lost interest in it needs no report of how it failed."""
    if not asked.cancelled():
        asked.exception()
