"""Concurrent attempts at one request, on real lanes."""

from __future__ import annotations

import asyncio
import math
from typing import cast

import pytest

from gateway.dispatch import ResponseSpec
from gateway.dispatch.attempt import Attempt, End, Item
from gateway.dispatch.attempt_group import AttemptGroup, Spawn
from gateway.dispatch.planner import Plan
from gateway.dispatch.retry import DispatchState
from gateway.plugin import BackendUnavailable, DeadlineExceeded, Result, Task, TaskRefused
from gateway.policy import Decision, Query
from gateway.registry import ManagedBackend, ServingBackends
from gateway.request_log import RequestRecord
from gateway.timing import Watch
from support.lane_fixture import LaneFixture


def _race(house: LaneFixture) -> AttemptGroup:
    def spawn(attempt: Attempt) -> asyncio.Task[None]:
        return asyncio.create_task(asyncio.sleep(0))

    return _group(house, spawn)


def _group(house: LaneFixture, spawn: Spawn) -> AttemptGroup:
    task = Task(kind="task", name="add", deadline=1e9)
    decision = Decision(order=("cloud", "box"), refused={}, reason="fastest", predicted_s=1.0, ranked=())
    serving = ServingBackends({"cloud": "add", "box": "add"}, None)
    plan = Plan(serving, house.work("stalls"), Query("task", "add"), decision)
    record = RequestRecord(request_id="r")
    state = DispatchState(task=task, watch=Watch(), record=record, expected=ResponseSpec(), until=math.inf)
    return AttemptGroup(state, plan, house.lanes, spawn)


async def test_hedge_into_a_full_queue_is_declined_without_raising() -> None:
    house = LaneFixture(queue=1)
    for name in ("runs", "waits"):
        house.submit(name, "box", allowed=("box",))
    with pytest.raises(TaskRefused):
        house.submit("too many", "box", allowed=("box",))

    race = _race(house)
    race.start()
    assert race.on_stalled(next(iter(race.attempts)), "box") is False
    assert len(race.attempts) == 1
    assert [line._closed for line in race._state.watch.children] == [
        False,
        True,
    ]  # an open child keeps the watch from being packed
    assert house.lanes.waiting()["box"] == 1
    await asyncio.gather(*race.attempts.values())


async def test_hedge_does_not_count_as_a_new_request_in_the_lanes() -> None:
    house = LaneFixture(queue=1)
    race = _race(house)
    race.start()
    tokens, last = house.lanes._hedger._tokens, dict(house.lanes.selector._last)
    assert race.on_stalled(next(iter(race.attempts)), "box") is True
    assert house.lanes._hedger._tokens == tokens
    assert house.lanes.selector._last == last
    await asyncio.gather(*race.attempts.values())


async def test_attempt_refused_by_a_full_queue_closes_its_watch() -> None:
    house = LaneFixture(queue=0)
    for number in range(16):
        house.submit(f"runs {number}", "cloud", allowed=("cloud",))
    race = _race(house)
    with pytest.raises(TaskRefused):
        race.start()
    assert [line._closed for line in race._state.watch.children] == [True]


# ── two attempts, one of which gets an error response ────────────────────────────────────────────


class Named:
    """Stub member with the attributes that a race reads."""

    site, breaker = "edge", None

    def __init__(self, name: str) -> None:
        self.name = name


class Rescued:
    """A race of two attempts whose results the test chooses."""

    def __init__(self) -> None:
        house = LaneFixture()
        self.running: list[asyncio.Task[None]] = []
        self.race = _group(house, self._spawn)
        self.race.start()
        assert self.race.on_stalled(next(iter(self.race.attempts)), "box")
        self.first, self.second = self.race.attempts
        for attempt, name in ((self.first, "cloud"), (self.second, "box")):
            attempt.member, attempt.is_settled = cast("ManagedBackend", Named(name)), True

    def _spawn(self, attempt: Attempt) -> asyncio.Task[None]:
        self.running.append(asyncio.create_task(asyncio.Event().wait()))  # type: ignore[arg-type]
        return self.running[-1]

    async def answer(self, *said: tuple[Attempt, Item], until: float = math.inf) -> tuple[str, Result | None]:
        """Return the winning backend and its result."""
        for attempt, item in said:
            await self.race.on_item(attempt, item)
            if isinstance(item, Result):
                await self.race.on_item(attempt, End)
        try:
            answer = await self.race.first_content(until, hedged_until=lambda: until, postponed_until=lambda: until)
            return answer.backend, answer.result
        finally:
            self.race.close()
            await asyncio.gather(*self.running, return_exceptions=True)


NO, WORSE, YES, LOST = Result(status=400), Result(status=422), Result(status=200), BackendUnavailable("it is gone")


async def test_error_response_does_not_win_over_a_success_that_arrives_later() -> None:
    it = Rescued()
    assert await it.answer((it.second, NO), (it.first, YES)) == ("cloud", YES)
    it = Rescued()
    assert await it.answer((it.first, NO), (it.second, YES)) == ("box", YES)


async def test_error_response_is_returned_when_no_attempt_does_better() -> None:
    it = Rescued()
    assert await it.answer((it.second, WORSE), (it.first, LOST)) == ("box", WORSE)
    it = Rescued()
    assert await it.answer((it.second, WORSE), (it.first, NO)) == ("cloud", NO)


async def test_error_response_is_returned_when_the_other_attempt_times_out() -> None:
    it = Rescued()
    assert await it.answer((it.second, NO), until=0.0) == ("box", NO)


async def test_last_failure_is_raised_when_all_attempts_fail() -> None:
    it, late = Rescued(), BackendUnavailable("it is gone, too")
    with pytest.raises(BackendUnavailable) as raised:
        await it.answer((it.second, LOST), (it.first, late))
    assert raised.value is late
    with pytest.raises(DeadlineExceeded):
        await Rescued().answer(until=0.0)
