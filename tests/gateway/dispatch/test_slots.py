"""Return of slots, queue entries and permits after cancellation at any iteration."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from gateway.dispatch import Answer, BackendServices, Dispatcher, Eligibility, Limits, ResponseSpec
from gateway.lanes import Scheduler
from gateway.measure.measurements import Measurements
from gateway.plugin import (
    Backend,
    BackendFailed,
    BackendSettings,
    BackendUnavailable,
    GatewayError,
    Part,
    Result,
    Task,
    Terms,
)
from gateway.policy import Policy
from gateway.registry import BackendConfig, Registry
from gateway.request_log import RequestRecord
from gateway.timing import Watch
from support.polling import wait_until

TURNS = 14  # loop iterations; a request takes fewer from its first step to its last
BIG = 200_000  # bytes; needs an upload permit


class _Scripted(Backend[BackendSettings]):
    """Backend that runs `script`, which may wait a number of loop iterations."""

    tasks = ("t",)
    repeatable = True
    script: Callable[[], Any]
    terms: Terms  # of its last task

    async def run(self, task: Task) -> AsyncIterator[Part | Result]:
        type(self).terms = task.terms
        async for item in type(self).script():
            yield item


async def _turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def answers() -> AsyncIterator[Part | Result]:
    await _turns(2)
    yield Result(json=1)


async def answers_at_once() -> AsyncIterator[Part | Result]:
    yield Result(json=1)


async def fails() -> AsyncIterator[Part | Result]:
    await _turns(1)
    raise BackendUnavailable("no")
    yield


async def refuses() -> AsyncIterator[Part | Result]:
    raise BackendFailed("no")
    yield


async def raises() -> AsyncIterator[Part | Result]:
    await _turns(1)
    raise ZeroDivisionError
    yield


async def streams() -> AsyncIterator[Part | Result]:
    for number in range(100):  # more than the channel holds
        yield Part(number)
        await _turns(number % 3)


async def breaks() -> AsyncIterator[Part | Result]:
    yield Part(1)
    await _turns(1)
    raise BackendUnavailable("no")


async def is_silent() -> AsyncIterator[Part | Result]:
    await asyncio.Event().wait()
    yield


async def is_slow_to_stop() -> AsyncIterator[Part | Result]:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await _turns(3)
        raise
    yield


SCRIPTS = (
    answers,
    answers_at_once,
    fails,
    refuses,
    raises,
    streams,
    breaks,
    is_silent,
    is_slow_to_stop,
)


class House:
    """A dispatcher over two one-slot backends: `here` is first, `there` is remote."""

    def __init__(self, here: Any, there: Any) -> None:
        self.board = Measurements(asyncio.get_running_loop().time)
        self.kinds = kinds = {
            "here": type("Here", (_Scripted,), {"script": staticmethod(here)}),
            "there": type("There", (_Scripted,), {"script": staticmethod(there), "remote": True}),
        }
        configs = [
            BackendConfig(name=name, plugin=name, cls=cls, settings=BackendSettings()) for name, cls in kinds.items()
        ]
        self.registry = Registry(
            configs, lambda name: BackendServices(name, self.board, None, lambda: None), self.board
        )  # type: ignore[arg-type]
        why_excluded = Eligibility(self.registry, self.board).why_unavailable
        self.lanes = Scheduler(self.board, Policy(), asyncio.get_running_loop().time, why_excluded)
        self.dispatcher = Dispatcher(self.registry, self.board, self.lanes)

    async def open(self) -> House:
        await self.registry.open_all(lambda _: None)
        await self.registry.wait_opened(5.0)
        self.lanes.add("here", site="edge", slots=1, queue=2, remote=False)
        self.lanes.add("there", site="edge", slots=1, queue=2, remote=True)
        return self

    def ask(self, *, pin: str | None = None, body: bytes = b"{}") -> asyncio.Task[Answer]:
        now = asyncio.get_running_loop().time()
        task = Task(kind="task", name="t", pin=pin, stream=True, deadline=now + 60.0, body=body)
        expected = ResponseSpec(limits=Limits(first_byte_s=30.0, stall_s=30.0))
        return asyncio.create_task(self.dispatcher.dispatch(task, Watch(), RequestRecord(request_id="r"), expected))

    def counts(self) -> set[int]:
        lanes = self.lanes.status().values()
        return {lane[what] for lane in lanes for what in ("busy", "waiting", "uploading")}

    async def settles(self) -> None:
        """Wait until every count is zero, and check that it stays zero."""
        await wait_until(lambda: not self.dispatcher.is_stuck)
        await _turns(3)
        assert self.counts() == {0}
        await self.registry.close_all()


async def _gone(asked: asyncio.Task[Answer]) -> None:
    """Disconnect the client, whether or not it has a response by then."""
    asked.cancel()
    with contextlib.suppress(GatewayError, asyncio.CancelledError):
        (await asked).close()


@pytest.mark.parametrize("first", SCRIPTS, ids=lambda script: script.__name__)
@pytest.mark.parametrize("second", [answers, fails, is_silent], ids=lambda script: script.__name__)
async def test_slots_are_returned_when_the_client_disconnects_at_any_iteration(first: Any, second: Any) -> None:
    for turns in range(TURNS):
        house = await House(first, second).open()
        asked = house.ask(body=bytes(BIG))
        await _turns(turns)
        await _gone(asked)
        await house.settles()


@pytest.mark.parametrize("first", SCRIPTS, ids=lambda script: script.__name__)
async def test_slots_are_returned_when_a_queued_request_is_cancelled_as_it_is_granted(first: Any) -> None:
    for ahead_goes, behind_goes in itertools.product(range(TURNS), repeat=2):
        house = await House(first, first).open()
        ahead = [house.ask(pin="here"), house.ask(pin="here")]
        asked = house.ask()
        await _turns(ahead_goes)
        leaving = [asyncio.create_task(_gone(one)) for one in ahead]
        await _turns(behind_goes)
        await _gone(asked)
        await asyncio.gather(*leaving)
        await house.settles()


@pytest.mark.parametrize("second", SCRIPTS, ids=lambda script: script.__name__)
async def test_slots_are_returned_when_a_hedge_starts_at_any_iteration(second: Any) -> None:
    for rescued, gone in itertools.product(range(TURNS), range(0, TURNS, 2)):
        house = await House(is_silent, second).open()
        asked = house.ask()
        await _turns(rescued)
        for run in [run for lane in house.lanes._lanes.values() for run in lane.runs.values()]:
            for other in run.work.allowed[1:]:
                run.owner.on_stalled(other)
        await _turns(gone)
        await _gone(asked)
        await house.settles()


async def test_upload_permit_is_returned_by_uploaded_and_not_by_the_account_of_time() -> None:
    house = await House(is_silent, is_silent).open()
    asked = house.ask(pin="there", body=bytes(BIG))
    await wait_until(lambda: hasattr(house.kinds["there"], "terms"))
    terms = house.kinds["there"].terms
    terms.enter("upload")
    terms.enter("cloud")
    assert house.lanes.status()["there"]["uploading"] == 1
    for _ in range(2):
        terms.uploaded()
        assert house.lanes.status()["there"]["uploading"] == 0
    await _gone(asked)
    await house.settles()


async def test_slots_are_returned_when_a_backend_is_cancelled_before_its_first_step() -> None:
    house = await House(answers, answers).open()
    asked = house.ask()
    await wait_until(lambda: house.dispatcher.is_stuck)
    await _gone(asked)
    await house.settles()


async def _drained(asked: asyncio.Task[Answer]) -> None:
    with contextlib.suppress(GatewayError):
        answer = await asked
        try:
            async for _ in answer.parts or _nothing():
                await _turns(1)
        finally:
            answer.close()


async def _nothing() -> AsyncIterator[Part]:
    return
    yield


@pytest.mark.parametrize("first", [answers, answers_at_once, fails, refuses, raises, streams, breaks])
async def test_slots_are_returned_after_many_concurrent_requests(first: Any) -> None:
    house = await House(first, first).open()
    asked = [house.ask() for _ in range(10)]
    await asyncio.gather(*(_drained(one) for one in asked))
    await house.settles()
