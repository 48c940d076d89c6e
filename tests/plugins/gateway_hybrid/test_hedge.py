"""Hedge: start of the second side, the winner, and the budget of extra calls."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.plugin import BackendFailed, BackendUnavailable, Result, Task, TaskInvalid
from gateway_hybrid import Hybrid, HybridSettings
from gateway_hybrid.hedge import BURST, DelayFactor
from support.hybrid_services import HERE, THERE, HybridServices, Predictions, Side, answers, never, raises, takes
from support.virtual_time import virtual_time

QUICK = Predictions(here=0.1, there=0.3)
FIRST, SECOND = Result(json={"result": "here"}), Result(json={"result": "there"})


def hedge(edge: Side, cloud: Side, view: Predictions | None = QUICK, **settings: Any) -> tuple[Hybrid, HybridServices]:
    services = HybridServices(edge, cloud, view)
    given = {"mode": "hedge", "edge": HERE, "cloud": THERE, "tasks": ["f"], **settings}
    return Hybrid(HybridSettings.model_validate(given), services), services


def ask(hybrid: Hybrid, **changes: Any) -> tuple[float, Result]:
    async def timed() -> tuple[float, Result]:
        result = await hybrid.run(Task(kind="task", name="f", deadline=300.0, body=b"{}", **changes))
        return asyncio.get_running_loop().time(), result

    with virtual_time() as runner:
        return runner.run(timed())


def test_answer_in_time_needs_no_hedge() -> None:
    hybrid, services = hedge(takes(0.1, answers(FIRST)), raises(AssertionError("dispatched to the cloud")))
    assert ask(hybrid)[1] == FIRST
    assert len(services.dispatched) == 1


def test_late_side_is_hedged_after_its_p95_and_cancelled_when_it_loses() -> None:
    hybrid, services = hedge(never, takes(0.3, answers(SECOND)))
    took_s, result = ask(hybrid)
    assert (result, took_s) == (SECOND, pytest.approx(2 * 0.1 + 0.3))
    assert (services.cancelled, services.log.events) == (1, ["hybrid.hedged"])


def test_late_first_side_wins_and_the_hedge_is_cancelled() -> None:
    hybrid, services = hedge(takes(0.25, answers(FIRST)), takes(0.3, answers(SECOND)))
    took_s, result = ask(hybrid)
    assert (result, took_s, services.cancelled) == (FIRST, pytest.approx(0.25), 1)


def test_side_with_the_lower_prediction_is_tried_first() -> None:
    hybrid, services = hedge(answers(FIRST), answers(SECOND), Predictions(here=0.5, there=0.1))
    assert ask(hybrid)[1] == SECOND
    assert len(services.dispatched) == 1


def test_failure_answer_does_not_win_the_race() -> None:
    broken = Result(status=404, json={})
    edge = takes(0.4, answers(FIRST))
    hybrid, _ = hedge(edge, takes(0.01, answers(broken)))
    took_s, result = ask(hybrid)
    assert (result, took_s) == (FIRST, pytest.approx(0.4))


def test_early_failure_falls_back_to_the_other_side_at_once() -> None:
    hybrid, services = hedge(raises(BackendUnavailable("down")), takes(0.3, answers(SECOND)), budget=0.0)
    assert ask(hybrid) == (pytest.approx(0.3), SECOND)
    assert services.log.events == []


def test_last_error_is_raised_when_both_sides_fail() -> None:
    hybrid, _ = hedge(raises(BackendFailed("first")), raises(BackendFailed("second")))
    with pytest.raises(BackendFailed, match="second"):
        ask(hybrid)


def test_task_invalid_is_raised_without_a_second_dispatch() -> None:
    hybrid, services = hedge(raises(TaskInvalid("wrong")), answers(SECOND))
    with pytest.raises(TaskInvalid):
        ask(hybrid)
    assert len(services.dispatched) == 1


def test_edge_only_task_is_never_hedged_to_the_cloud() -> None:
    hybrid, services = hedge(takes(50.0, answers(FIRST)), answers(SECOND))
    assert ask(hybrid, may_leave=False)[1] == FIRST
    assert services.dispatched_to(THERE) == []
    hybrid, services = hedge(raises(BackendUnavailable("down")), answers(SECOND))
    with pytest.raises(BackendUnavailable):
        ask(hybrid, may_leave=False)
    assert services.dispatched_to(THERE) == []


def test_non_repeatable_task_is_not_hedged() -> None:
    hybrid, services = hedge(takes(9.0, answers(FIRST)), answers(SECOND), repeatable=False)
    assert ask(hybrid)[1] == FIRST
    assert len(services.dispatched) == 1


def test_side_without_a_prediction_is_not_hedged_to() -> None:
    hybrid, services = hedge(takes(9.0, answers(FIRST)), answers(SECOND), Predictions(here=0.1))
    assert ask(hybrid)[1] == FIRST
    assert len(services.dispatched) == 1


def test_cancelling_the_hedge_cancels_both_sides() -> None:
    hybrid, services = hedge(never, never)

    async def cancelled() -> None:
        running = asyncio.ensure_future(hybrid.run(Task(kind="task", name="f", deadline=300.0, body=b"{}")))
        await asyncio.sleep(1.0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    with virtual_time() as runner:
        runner.run(cancelled())
    assert services.cancelled == 2


@settings(deadline=None, max_examples=20)
@given(budget=st.sampled_from([0.0, 0.02, 0.05, 0.2]), slow=st.floats(0.0, 1.0), seed=st.integers(0, 99))
def test_hedges_never_exceed_the_budget(budget: float, slow: float, seed: int) -> None:
    rng, requests = random.Random(seed), 200

    async def sometimes(task: Task) -> Result:
        await asyncio.sleep(3.0 if rng.random() < slow else 0.1)
        return FIRST

    hybrid, services = hedge(sometimes, takes(0.3, answers(SECOND)), budget=budget)

    async def many() -> None:
        for _ in range(requests):
            await hybrid.run(Task(kind="task", name="f", deadline=1e9, body=b"{}"))

    with virtual_time() as runner:
        runner.run(many())
    assert len(services.dispatched_to(THERE)) <= 1 + budget * requests + 1e-9


def test_heavy_tail_is_cut_with_five_percent_extra_calls() -> None:
    rng, taken = random.Random(5), []

    async def heavy(task: Task) -> Result:
        await asyncio.sleep(0.1 * rng.uniform(0.8, 1.2) * (30.0 if rng.random() < 0.03 else 1.0))
        return FIRST

    hybrid, services = hedge(heavy, heavy, Predictions(here=0.1, there=0.1, p95=1.1))

    async def many() -> None:
        clock = asyncio.get_running_loop().time
        for _ in range(2000):
            began = clock()
            await hybrid.run(Task(kind="task", name="f", deadline=1e9, body=b"{}"))
            taken.append(clock() - began)

    with virtual_time() as runner:
        runner.run(many())
    assert sorted(taken)[1980] < 0.5
    assert len(services.dispatched_to(THERE)) <= 0.05 * 2000 + BURST


@pytest.mark.parametrize("true_factor", [0.2, 1.0, 7.0])
def test_hedge_delay_follows_the_true_quantile(true_factor: float) -> None:
    rng, quantile, late = random.Random(3), DelayFactor(0.05), []
    for _ in range(4000):
        was_late = rng.expovariate(3.0 / true_factor) > quantile.factor
        quantile.learn(was_late=was_late)
        late.append(was_late)
    assert sum(late[1000:]) / 3000 == pytest.approx(0.05, abs=0.015)


def test_plan_names_the_first_side_and_the_hedge_delay() -> None:
    hybrid, _ = hedge(answers(FIRST), answers(SECOND))
    task = Task(kind="task", name="f", deadline=300.0, body=b"{}")
    assert hybrid.plan(task, QUICK) == {"mode": "hedge", "first": HERE, "second_after_s": pytest.approx(0.2)}
    assert hybrid.estimate(task, QUICK) == 0.1
