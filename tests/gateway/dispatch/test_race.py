"""All attempts at one request, on real lanes."""

from __future__ import annotations

import asyncio

import pytest

from gateway.decide.policy import Decision
from gateway.dispatch import Expectations
from gateway.dispatch.attempt import Attempt
from gateway.dispatch.planner import Plan
from gateway.dispatch.race import Race
from gateway.plugin import Task, TaskRefused
from gateway.registry import Offer
from gateway.timing import Watch
from support.lane_house import House


def _race(house: House) -> Race:
    def spawn(attempt: Attempt) -> asyncio.Task[None]:
        return asyncio.create_task(asyncio.sleep(0))

    task = Task(kind="task", name="add", deadline=1e9)
    decision = Decision(order=("cloud", "box"), refused={}, reason="fastest", predicted_s=1.0, ranked=())
    plan = Plan(Offer({"cloud": "add", "box": "add"}, None), house.work("stalls"), decision)
    return Race(task, plan, Expectations(), Watch(), house.lanes, spawn)


async def test_a_rescue_into_a_full_line_is_declined_and_raises_nothing_into_the_lanes() -> None:
    house = House(queue=1)
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
    house = House(queue=1)
    race = _race(house)
    race.start()
    tokens, last = house.lanes._rescuing._tokens, dict(house.lanes._last)
    assert race._rescue("box") is True
    assert house.lanes._rescuing._tokens == tokens
    assert house.lanes._last == last
    await asyncio.gather(*race.attempts.values())


async def test_who_is_refused_a_place_in_line_leaves_no_line_of_the_account_open() -> None:
    house = House(queue=0)
    for number in range(16):
        house.lanes.submit(house.work(f"runs {number}", allowed=("cloud",)), "cloud")
    race = _race(house)
    with pytest.raises(TaskRefused):
        race.start()
    assert [line._closed for line in race.watch.children] == [True]
