"""All attempts at one request, on real lanes."""

from __future__ import annotations

import asyncio
import math
from typing import cast

import pytest

from gateway.decide.policy import Decision
from gateway.dispatch import Expectations
from gateway.dispatch.attempt import Attempt, End, Item
from gateway.dispatch.planner import Plan
from gateway.dispatch.race import Race
from gateway.plugin import BackendUnavailable, DeadlineExceeded, Result, Task, TaskRefused
from gateway.registry import Member, Offer
from gateway.timing import Watch
from support.lane_fixture import LaneFixture


def _race(house: LaneFixture) -> Race:
    def spawn(attempt: Attempt) -> asyncio.Task[None]:
        return asyncio.create_task(asyncio.sleep(0))

    task = Task(kind="task", name="add", deadline=1e9)
    decision = Decision(order=("cloud", "box"), refused={}, reason="fastest", predicted_s=1.0, ranked=())
    plan = Plan(Offer({"cloud": "add", "box": "add"}, None), house.work("stalls"), decision)
    return Race(task, plan, Expectations(), Watch(), house.lanes, spawn)


async def test_a_rescue_into_a_full_line_is_declined_and_raises_nothing_into_the_lanes() -> None:
    house = LaneFixture(queue=1)
    for name in ("runs", "waits"):
        house.lanes.submit(house.work(name, allowed=("box",)), "box")
    with pytest.raises(TaskRefused):
        house.lanes.submit(house.work("too many", allowed=("box",)), "box")

    race = _race(house)
    race.start()
    assert race._rescue("box") is False
    assert len(race.attempts) == 1
    assert [line._closed for line in race.watch.children] == [False, True]  # an open one keeps it from being packed
    assert house.lanes.waiting()["box"] == 1
    await asyncio.gather(*race.attempts.values())


async def test_a_rescue_is_no_new_request_to_the_lanes() -> None:
    house = LaneFixture(queue=1)
    race = _race(house)
    race.start()
    tokens, last = house.lanes._rescuing._tokens, dict(house.lanes._last)
    assert race._rescue("box") is True
    assert house.lanes._rescuing._tokens == tokens
    assert house.lanes._last == last
    await asyncio.gather(*race.attempts.values())


async def test_who_is_refused_a_place_in_line_leaves_no_line_of_the_account_open() -> None:
    house = LaneFixture(queue=0)
    for number in range(16):
        house.lanes.submit(house.work(f"runs {number}", allowed=("cloud",)), "cloud")
    race = _race(house)
    with pytest.raises(TaskRefused):
        race.start()
    assert [line._closed for line in race.watch.children] == [True]


# ── two at work, of which one refuses ────────────────────────────────────────────────────────────


class Named:
    """As much of a member as is looked at here."""

    site, breaker = "edge", None

    def __init__(self, name: str) -> None:
        self.name = name


class Rescued:
    """A race of two whose attempts say what the test says."""

    def __init__(self) -> None:
        house = LaneFixture()
        self.running: list[asyncio.Task[None]] = []
        decision = Decision(order=("cloud", "box"), refused={}, reason="fastest", predicted_s=1.0, ranked=())
        plan = Plan(Offer({"cloud": "add", "box": "add"}, None), house.work("stalls"), decision)
        task = Task(kind="task", name="add", deadline=math.inf)
        self.race = Race(task, plan, Expectations(), Watch(), house.lanes, self._spawn)
        self.race.start()
        assert self.race._rescue("box")
        self.first, self.second = self.race.attempts
        for attempt, name in ((self.first, "cloud"), (self.second, "box")):
            attempt.member, attempt.is_settled = cast("Member", Named(name)), True

    def _spawn(self, attempt: Attempt) -> asyncio.Task[None]:
        self.running.append(asyncio.create_task(asyncio.Event().wait()))  # type: ignore[arg-type]
        return self.running[-1]

    async def answer(self, *said: tuple[Attempt, Item], until: float = math.inf) -> tuple[str, Result | None]:
        """Who won, and with what."""
        for attempt, item in said:
            await self.race._put(attempt, item)
            if isinstance(item, Result):
                await self.race._put(attempt, End)
        try:
            answer = await self.race.first(until, lambda: until)
            return answer.backend, answer.result
        finally:
            self.race.close()
            await asyncio.gather(*self.running, return_exceptions=True)


NO, WORSE, YES, LOST = Result(status=400), Result(status=422), Result(status=200), BackendUnavailable("it is gone")


async def test_a_refusal_does_not_beat_the_good_answer_of_one_that_still_works() -> None:
    it = Rescued()
    assert await it.answer((it.second, NO), (it.first, YES)) == ("cloud", YES)
    it = Rescued()
    assert await it.answer((it.first, NO), (it.second, YES)) == ("box", YES)


async def test_a_refusal_is_the_answer_where_nobody_has_a_better_one() -> None:
    it = Rescued()
    assert await it.answer((it.second, WORSE), (it.first, LOST)) == ("box", WORSE)
    it = Rescued()
    assert await it.answer((it.second, WORSE), (it.first, NO)) == ("cloud", NO)


async def test_a_refusal_is_the_answer_where_the_time_is_up_for_the_other() -> None:
    it = Rescued()
    assert await it.answer((it.second, NO), until=0.0) == ("box", NO)


async def test_where_all_fail_the_last_failure_counts() -> None:
    it, late = Rescued(), BackendUnavailable("it is gone, too")
    with pytest.raises(BackendUnavailable) as raised:
        await it.answer((it.second, LOST), (it.first, late))
    assert raised.value is late
    with pytest.raises(DeadlineExceeded):
        await Rescued().answer(until=0.0)
