"""Scatter: divide one batch over both sides. `assignment` decides; this module dispatches.

The estimate follows from the theory of divisible loads: both sides begin at once and end together, so

    T = (N + o_edge / t_edge + o_cloud / t_cloud) / (1 / t_edge + 1 / t_cloud)

where o is the overhead of a side before its first item (round trip, wait) and t its time for each further item.
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
from gateway_hybrid.divisible import DivisibleWork, divide_task
from gateway_hybrid.settings import HybridSettings
from gateway_hybrid.sides import CLIENT_ERROR_STATUSES, EdgeCloudPair, may_have_run
from gateway_hybrid.throughput import MIN_S, Throughput

FIRST_GROUPS = 2  # groups in flight in the cloud at least: one in transit, one being computed
HANDLING_S = 0.003  # time to divide and to join, for the estimate
BUSY = ("overloaded", "rate_limited")  # errors of a side that works
MAX_CLASSES = 1024  # classes of tasks with a learned speed


class PredictedSpeed(NamedTuple):
    """The prediction for one side: seconds before its first item, and seconds for each item."""

    overhead_s: float
    per_item_s: float


class LearnedSpeed(NamedTuple):
    """The result of the last batch of a class on a side: seconds for each item, and items computed in parallel."""

    per_item_s: float
    servers: float


class Scatter:
    """The mode `scatter`. Keeps the learned speed of each side by class; the view supplies the waits."""

    def __init__(self, settings: HybridSettings, services: Services) -> None:
        self.settings, self.services = settings, services
        self.sides = EdgeCloudPair(settings, services)
        self._learned: dict[tuple[str, str, str], LearnedSpeed] = {}

    async def run(self, task: Task) -> Result:
        """Divide, assign, dispatch and join. An indivisible task goes to the faster side."""
        task.terms.enter("split")
        work = divide_task(task, self.settings.argument, self.settings.piece_s)
        if work is not None:
            await work.prepare()
        if work is None:
            task.terms.leave()
            return await self._undivided(task)
        batch = _Batch(self, task, work, self._throughputs(task, work))
        task.terms.leave()
        answers = await batch.run()
        task.terms.enter("aggregate")
        if isinstance(answers, Result):
            return answers
        self._remember(task, batch.throughputs)
        return work.join(answers)

    async def _undivided(self, task: Task) -> Result:
        predicted = self.sides.seconds(task, self.services.view)
        order = sorted(self.sides.eligible(task), key=lambda side: predicted.get(side, float("inf")))
        for side in order[:-1]:
            try:
                return await self.sides.dispatch(side, task.subtask())
            except (TaskInvalid, DeadlineExceeded):
                raise
            except GatewayError as exc:
                if may_have_run(exc) and self.settings.repeatable is False:
                    raise
        return await self.sides.dispatch(order[-1], task.subtask())

    # ── speed of the sides ───────────────────────────────────────────────────────────────────

    def _throughputs(self, task: Task, work: DivisibleWork) -> dict[str, Throughput]:
        view = self.services.view
        speeds = self._speeds(task, work, view)
        return {side: self._throughput(side, task, view, speeds.get(side)) for side in self.sides.eligible(task)}

    def _throughput(self, side: str, task: Task, view: View, speed: PredictedSpeed | None) -> Throughput:
        max_groups = max(1, view.slots(side))
        initial_groups = max_groups if side == self.sides.edge else FIRST_GROUPS
        if speed is None or speed.overhead_s <= 0.0:
            return Throughput(max_groups=max_groups, initial_groups=initial_groups)
        return Throughput(
            max_groups=max_groups,
            initial_groups=initial_groups,
            per_item_s=speed.per_item_s,
            overhead_s=speed.overhead_s,
            servers=self._servers(side, task, view),
        )

    def _servers(self, side: str, task: Task, view: View) -> float:
        known = self._learned.get((side, task.kind, task.name))
        if known is not None:
            return known.servers
        return float(max(1, view.slots(side))) if side == self.sides.edge else 1.0

    def _remember(self, task: Task, throughputs: Mapping[str, Throughput]) -> None:
        if len(self._learned) >= MAX_CLASSES:
            self._learned.clear()
        for side, throughput in throughputs.items():
            if throughput.is_measured and throughput.per_item_s is not None:
                self._learned[side, task.kind, task.name] = LearnedSpeed(throughput.per_item_s, throughput.servers)

    def _speeds(self, task: Task, work: DivisibleWork, view: View) -> dict[str, PredictedSpeed]:
        """Return the prediction for each side. An overhead of 0 means that no batch sizes have been compared yet."""
        if work.count < 2:
            return {}
        one = work.part(0, 1)
        out: dict[str, PredictedSpeed] = {}
        for side, whole_s in self.sides.seconds(task, view).items():
            first_s = view.seconds(side, one)
            if first_s is None:
                continue
            known = self._learned.get((side, task.kind, task.name))
            per_item_s = known.per_item_s if known else (whole_s - first_s) / (work.count - 1)
            is_distinct = per_item_s > 0.01 * whole_s / work.count
            out[side] = (
                PredictedSpeed(max(first_s - per_item_s, MIN_S), per_item_s)
                if is_distinct
                else PredictedSpeed(0.0, whole_s / work.count)
            )
        return out

    # ── estimate ────────────────────────────────────────────────────────────────────────

    def estimate(self, task: Task, view: View) -> float | None:
        """Seconds for the divided batch; for an indivisible task, slightly more than the faster side."""
        alone = self.sides.seconds(task, view)
        if not alone:
            return None
        return self._shares(task, view, alone)[0]

    def plan(self, task: Task, view: View) -> dict[str, Any] | None:
        """The predicted shares; the real ones follow from the speed of the sides."""
        alone = self.sides.seconds(task, view)
        if not alone:
            return None
        seconds, shares = self._shares(task, view, alone)
        return {"mode": "scatter", "items": self._count(task), "shares": shares, "predicted_s": seconds}

    def _count(self, task: Task) -> int:
        work = self._work(task)
        return work.count if work else 1

    def _work(self, task: Task) -> DivisibleWork | None:
        try:
            return divide_task(task, self.settings.argument, self.settings.piece_s)
        except TaskInvalid:
            return None

    def _shares(self, task: Task, view: View, alone: Mapping[str, float]) -> tuple[float, dict[str, float]]:
        best = min(alone, key=lambda side: alone[side])
        whole = alone[best] + HANDLING_S, {side: float(side == best) for side in alone}
        work = self._work(task)
        if work is None or work.count < 2:
            return whole
        speeds = {
            side: PredictedSpeed(speed.overhead_s, speed.per_item_s / self._servers(side, task, view))
            for side, speed in self._speeds(task, work, view).items()
        }
        divided = divide(work.count, speeds)
        return divided if divided[0] < whole[0] else whole


def divide(count: int, speeds: Mapping[str, PredictedSpeed]) -> tuple[float, dict[str, float]]:
    """Seconds and the share of each side if all begin and end together. A side that is too slow gets no share."""
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
    """One batch in flight: the running groups and the answers so far."""

    def __init__(self, scatter: Scatter, task: Task, work: DivisibleWork, throughputs: dict[str, Throughput]) -> None:
        self.sides, self.services, self.task = scatter.sides, scatter.services, task
        self.work, self.throughputs = work, throughputs
        self._repeatable = scatter.settings.repeatable is not False
        self._assignment = Assignment(
            work.count, throughputs, groups=scatter.settings.groups, repeatable=self._repeatable
        )
        self._running: dict[asyncio.Task[Any], Group] = {}
        self._answers: dict[int, Any] = {}
        self._refusal: Result | None = None
        self._failed_sides: set[str] = set()
        self._now = asyncio.get_running_loop().time

    async def run(self) -> list[Any] | Result:
        """Return the answers to all parts in order, or a side's client error, which answers the whole batch.

        Raises the first failure that the other side could not resolve. Running groups are cancelled then.
        """
        try:
            while not self._assignment.is_done and self._refusal is None:
                self._start(self._assignment.assign(self._now()))
                await self._wait()
        finally:
            await self._cancel(self._running)
        return self._refusal or [self._answers[start] for start in sorted(self._answers)]

    def _start(self, groups: Iterable[Group]) -> None:
        for late in self._assignment.reclaimed:
            self._log_move(late, "stalled")
            self._cancel_group(late)
        self._assignment.reclaimed.clear()
        for group in groups:
            part = self.work.part(group.start, group.stop)
            call = asyncio.ensure_future(self.sides.dispatch(group.side, part))
            call.add_done_callback(_consume_exception)
            self._running[call] = group

    async def _wait(self) -> None:
        """Wait for an answer, or until the assignment must be checked again."""
        wait_s = self._assignment.next_check_s(self._now())
        if not self._running:
            await asyncio.sleep(wait_s or 0.0)
            if self._now() >= self.task.deadline:
                raise DeadlineExceeded("the deadline passed while both sides paused after failures")
            return
        done, _ = await asyncio.wait(self._running, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        for call in done:
            if (group := self._running.pop(call, None)) is not None and not call.cancelled():
                self._settle(group, call)

    def _settle(self, group: Group, call: asyncio.Task[Any]) -> None:
        try:
            answer = call.result()
            if answer.status in CLIENT_ERROR_STATUSES:
                self._refusal = answer
                return
            if answer.status >= 400:
                self._failed(
                    group, BackendFailed(f"{group.side} returned status {answer.status} for its group"), answer
                )
                return
            checked = self.work.check(answer, group.items)
        except (TaskInvalid, DeadlineExceeded):
            raise
        except GatewayError as exc:
            self._failed(group, exc, None)
            return
        self._answers[group.start] = checked
        self._assignment.on_answer(group, self._now())
        if group.duplicate is not None:
            self._cancel_group(group.duplicate)

    def _failed(self, group: Group, error: GatewayError, refusal: Result | None) -> None:
        may_have_effect = may_have_run(error)
        if may_have_effect and not self._repeatable:
            raise error
        is_open = self._assignment.on_failure(
            group, self._now(), is_refusal=not may_have_effect, retry_after_s=error.retry_after_s
        )
        if is_open:
            self._log_move(group, error.code)
        elif refusal is not None:
            self._refusal = refusal
        else:
            raise error
        if self._are_sides_down(group.side, error):
            raise error

    def _are_sides_down(self, side: str, error: GatewayError) -> bool:
        """Whether every side has failed and none has answered; a side that is only busy is waited for.

        A plain request would have tried each backend and failed. Further rounds and pauses only delay the error.
        """
        if error.code not in BUSY:
            self._failed_sides.add(side)
        return not self._answers and not self._running and self._failed_sides.issuperset(self.throughputs)

    def _log_move(self, group: Group, why: str) -> None:
        self.services.log.info(
            "hybrid.group_moved",
            parent_id=self.task.id,
            before=group.side,
            after=self.sides.other(group.side) if self.task.may_leave else group.side,
            error=why,
        )

    def _cancel_group(self, group: Group) -> None:
        for call, running in list(self._running.items()):
            if running is group:
                del self._running[call]
                call.cancel()

    async def _cancel(self, call: Iterable[asyncio.Task[Any]]) -> None:
        left = list(call)
        for each in left:
            each.cancel()
        if left:
            await asyncio.wait(left)


def _consume_exception(call: asyncio.Future[Any]) -> None:
    """Mark the exception of a cancelled call as retrieved, or asyncio logs it."""
    if not call.cancelled():
        call.exception()
