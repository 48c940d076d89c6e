from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.plugin import (
    BackendFailed,
    BackendUnavailable,
    DeadlineExceeded,
    GatewayError,
    Result,
    Task,
    TaskInvalid,
    TaskRefused,
)
from gateway.timing import Watch
from gateway_hybrid import Hybrid, HybridSettings
from support.hybrid_services import HybridServices, Predictions, Side, answers, never, raises, squares


def hybrid(services: HybridServices, **settings: Any) -> Hybrid:
    given = {"edge": "here", "cloud": "there", "tasks": ["squares"], **settings}
    return Hybrid(HybridSettings.model_validate(given), services)


def work(arguments: Any, **changes: Any) -> Task:
    task = Task(kind="task", name="squares", deadline=time.monotonic() + 60, **changes)
    return task.replace(_decoded=arguments)


async def run(services: HybridServices, items: list[Any], *, may_leave: bool = True, **settings: Any) -> Result:
    return await hybrid(services, **settings).run(work({"items": items}, may_leave=may_leave))


# ── dividing ─────────────────────────────────────────────────────────────────────────────────────


@given(
    items=st.lists(st.integers(), max_size=60),
    groups=st.integers(2, 20),
    yields=st.tuples(st.integers(0, 7), st.integers(0, 7)),
)
def test_items_are_returned_once_and_in_order(items: list[int], groups: int, yields: tuple[int, int]) -> None:
    def after(turns: int) -> Side:
        async def side(task: Task) -> Result:
            for _ in range(turns):
                await asyncio.sleep(0)
            return await squares(task)

        return side

    services = HybridServices(after(yields[0]), after(yields[1]))
    result = asyncio.run(run(services, items, groups=groups))
    assert result.json == {"result": [n * n for n in items]}
    twice = sum(task.items for task in services.dispatched) - len(items)
    assert 0 <= twice <= max(task.items for task in services.dispatched or [work({})])


async def test_both_sides_receive_groups() -> None:
    services = HybridServices()
    await run(services, list(range(16)))
    assert services.dispatched_to("here")
    assert services.dispatched_to("there")


async def test_faster_side_receives_more_groups() -> None:
    async def slow(task: Task) -> Result:
        for _ in range(20):
            await asyncio.sleep(0)
        return await squares(task)

    services = HybridServices(edge=squares, cloud=slow)
    await run(services, list(range(16)))
    assert len(services.dispatched_to("here")) > 2 * len(services.dispatched_to("there"))


async def test_other_arguments_are_copied_to_every_group() -> None:
    services = HybridServices()
    await hybrid(services).run(work({"items": [1, 2, 3], "unit": "mm"}))
    assert [task.json["unit"] for task in services.dispatched] == ["mm", "mm", "mm"]


async def test_subtasks_carry_parent_id_depth_and_deadline() -> None:
    services = HybridServices()
    task = work({"items": [1, 2]})
    await hybrid(services).run(task)
    assert {(child.parent_id, child.depth, child.deadline) for child in services.dispatched} == {
        (task.id, 1, task.deadline)
    }


async def test_empty_list_is_answered_without_any_dispatch() -> None:
    services = HybridServices()
    assert (await run(services, [])).json == {"result": []}
    assert services.dispatched == []


async def test_list_argument_name_is_configurable() -> None:
    async def doubled(task: Task) -> Result:
        return Result(json={"result": [2 * n for n in task.json["numbers"]]})

    services = HybridServices(doubled, doubled)
    result = await hybrid(services, argument="numbers").run(work({"numbers": [1, 2]}))
    assert result.json == {"result": [2, 4]}


@pytest.mark.parametrize("arguments", [None, [1, 2], {}, {"items": "abc"}, {"items": {"a": 1}}, {"item": [1]}])
async def test_argument_that_is_not_a_list_raises_task_invalid(arguments: Any) -> None:
    services = HybridServices()
    with pytest.raises(TaskInvalid, match="squares needs a JSON object with the list 'items'") as caught:
        await hybrid(services).run(work(arguments))
    assert caught.value.param == "items"
    assert services.dispatched == []


# ── locality ─────────────────────────────────────────────────────────────────────────────────────


async def test_edge_only_task_runs_only_at_the_edge() -> None:
    services = HybridServices(cloud=raises(AssertionError("asked the cloud")))
    assert (await run(services, [1, 2, 3], may_leave=False)).json == {"result": [1, 4, 9]}


async def test_edge_only_task_fails_instead_of_using_the_cloud() -> None:
    services = HybridServices(edge=raises(BackendUnavailable("the edge is down")))
    with pytest.raises(BackendUnavailable, match="the edge is down"):
        await run(services, [1, 2, 3], may_leave=False)
    assert services.dispatched_to("there") == []


# ── failures of a side ───────────────────────────────────────────────────────────────────────────


NOTHING_RAN = [
    TaskRefused("busy"),
    BackendUnavailable("connection refused", began=False),
    GatewayError("no backend may serve this now: its link is down", code="unavailable"),
]


@pytest.mark.parametrize("error", [BackendUnavailable("no route"), BackendFailed("bad answer"), *NOTHING_RAN])
@pytest.mark.parametrize("broken", ["edge", "cloud"])
async def test_failed_group_moves_to_the_other_side(error: Exception, broken: str) -> None:
    services = HybridServices(**{broken: raises(error)})
    assert (await run(services, list(range(12)))).json == {"result": [n * n for n in range(12)]}
    assert "hybrid.group_moved" in services.log.events


@pytest.mark.parametrize("error", [BackendUnavailable("no route"), *NOTHING_RAN[1:]])
async def test_batch_fails_at_once_when_both_sides_are_down(error: Exception) -> None:
    services = HybridServices(raises(error), raises(error))
    began = time.monotonic()
    with pytest.raises(GatewayError):
        await run(services, list(range(16)))
    assert time.monotonic() - began < 0.5


async def test_group_is_moved_at_most_once() -> None:
    services = HybridServices(raises(BackendUnavailable("here")), raises(BackendUnavailable("there")))
    with pytest.raises(BackendUnavailable):
        await run(services, [1])
    assert len(services.dispatched) == 2


async def test_non_repeatable_group_is_not_moved_after_it_may_have_run() -> None:
    services = HybridServices(cloud=raises(BackendUnavailable("reset while waiting")))
    with pytest.raises(BackendUnavailable):
        await run(services, list(range(8)), repeatable=False)


@pytest.mark.parametrize("error", NOTHING_RAN)
async def test_non_repeatable_group_is_moved_when_it_never_ran(error: Exception) -> None:
    services = HybridServices(cloud=raises(error))
    assert (await run(services, [1, 2], repeatable=False)).json == {"result": [1, 4]}


@pytest.mark.parametrize("error", [TaskInvalid("wrong unit"), DeadlineExceeded("too late")])
async def test_task_invalid_or_missed_deadline_ends_the_request_at_once(error: Exception) -> None:
    services = HybridServices(edge=never, cloud=raises(error))
    with pytest.raises(type(error)):
        await run(services, list(range(8)))
    assert services.cancelled == 1
    assert len(services.dispatched) == 2


async def test_client_error_from_a_side_is_passed_on() -> None:
    refusal = Result(status=422, json={"error": "items must be numbers"})
    assert await run(HybridServices(cloud=answers(refusal)), list(range(8))) == refusal


@pytest.mark.parametrize("value", [{"result": 5}, {"sum": [1]}, [1], None])
async def test_answer_that_is_not_a_list_raises_backend_failed(value: Any) -> None:
    services = HybridServices(*[answers(Result(json=value, backend="there"))] * 2)
    with pytest.raises(BackendFailed, match="there did not return") as caught:
        await run(services, [1])
    assert caught.value.code == "upstream_bad_response"


async def test_cancelling_the_hybrid_cancels_its_subtasks() -> None:
    both_asked = asyncio.Event()

    async def hang(task: Task) -> Result:
        if len(services.dispatched) == 2:
            both_asked.set()
        return await never(task)

    services = HybridServices(hang, hang)
    running = asyncio.ensure_future(run(services, list(range(8))))
    await both_asked.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert services.cancelled == 2


# ── time ─────────────────────────────────────────────────────────────────────────────────────────


async def test_aggregate_time_excludes_waiting_for_subtasks() -> None:
    now = 0.0
    watch = Watch(lambda: now, began=0.0)

    async def takes_3_s(task: Task) -> Result:
        nonlocal now
        now += 3
        return await squares(task)

    services = HybridServices(takes_3_s, takes_3_s)
    await hybrid(services).run(work({"items": [1, 2]}, terms=watch))
    now += 1  # the gateway renders the answer; this second counts as `aggregate`
    account = watch.close()
    assert account.terms_us["aggregate"] == 1_000_000
    assert account.other_us == 6_000_000  # the subtasks have time terms of their own
    assert account.terms_us["edge"] == account.terms_us["cloud"] == 0


def by_items(overhead_s: float, per_item_s: float) -> Callable[[Task], float]:
    return lambda task: overhead_s + per_item_s * len(task.json["items"])


@pytest.mark.parametrize(
    ("here", "there", "may_leave", "expected", "shares"),
    [
        (by_items(0.001, 0.04), by_items(0.001, 0.02), True, 0.824, {"here": 0.33, "there": 0.67}),
        (by_items(0.001, 0.04), by_items(0.4, 0.02), True, 1.09, {"here": 0.444, "there": 0.556}),
        (by_items(0.001, 0.04), by_items(9.0, 0.02), True, 2.4, {"here": 1.0, "there": 0.0}),
        (by_items(0.001, 0.04), by_items(0.001, 0.02), False, 2.4, {"here": 1.0}),
        (by_items(0.001, 0.04), None, True, 2.4, {"here": 1.0}),
        (None, None, True, None, None),
    ],
)
def test_estimate_and_plan_split_items_so_both_sides_end_together(
    here: Any, there: Any, may_leave: bool, expected: float | None, shares: dict[str, float] | None
) -> None:
    task = work({"items": list(range(60))}, may_leave=may_leave)
    view = Predictions(here=here, there=there)
    estimate = hybrid(HybridServices()).estimate(task, view)
    assert estimate == (expected and pytest.approx(expected, rel=0.01))
    planned = hybrid(HybridServices()).plan(task, view)
    assert (planned and planned["shares"]) == (shares and pytest.approx(shares, abs=0.02))


def test_single_item_estimate_is_slightly_above_the_faster_side() -> None:
    view = Predictions(here=3.0, there=2.0)
    assert 2.0 < (hybrid(HybridServices()).estimate(work({"items": [1]}), view) or 0) < 2.1


# ── settings ─────────────────────────────────────────────────────────────────────────────────────


def test_edge_and_cloud_must_be_different_backends() -> None:
    with pytest.raises(ValidationError, match="EDGE and CLOUD are both 'here'; name two different backends"):
        hybrid(HybridServices(), cloud="here")


def test_hybrid_rejects_process_isolation() -> None:
    with pytest.raises(ValidationError, match="ISOLATION=process is not possible"):
        hybrid(HybridServices(), isolation="process")


@pytest.mark.parametrize("missing", ["edge", "cloud", "tasks"])
def test_edge_cloud_and_tasks_settings_are_required(missing: str) -> None:
    given = {"edge": "here", "cloud": "there", "tasks": ["squares"]}
    del given[missing]
    with pytest.raises(ValidationError, match=missing):
        HybridSettings.model_validate(given)


@pytest.mark.parametrize("edge", ["hear", "both"])
def test_unknown_side_is_rejected_with_the_list_of_backends(edge: str) -> None:
    given = {"edge": edge, "cloud": "there", "tasks": ["squares"]}
    with pytest.raises(ValidationError, match=f"no other backend '{edge}'; there are: here, there"):
        HybridSettings.model_validate(given, context={"name": "both", "backends": {"both", "here", "there"}})


def test_existing_sides_are_accepted() -> None:
    given = {"edge": "here", "cloud": "there", "tasks": ["squares"]}
    context = {"name": "both", "backends": {"both", "here", "there"}}
    assert HybridSettings.model_validate(given, context=context).cloud == "there"


def test_unknown_mode_is_rejected() -> None:
    with pytest.raises(ValidationError, match="mode"):
        hybrid(HybridServices(), mode="partition")
