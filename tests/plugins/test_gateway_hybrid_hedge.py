"""Hedge: when the second side is asked, who wins, and what it may cost."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.plugin import BackendFailed, BackendUnavailable, Result, Task, TaskInvalid
from gateway_hybrid import Hybrid, HybridSettings
from gateway_hybrid.hedge import BURST, Quantile
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


def test_a_side_that_is_in_time_answers_alone() -> None:
    hybrid, services = hedge(takes(0.1, answers(FIRST)), raises(AssertionError("asked")))
    assert ask(hybrid)[1] == FIRST
    assert len(services.asked) == 1


def test_a_side_that_is_late_is_helped_after_its_p95_and_stopped_when_it_lost() -> None:
    hybrid, services = hedge(never, takes(0.3, answers(SECOND)))
    took_s, result = ask(hybrid)
    assert (result, took_s) == (SECOND, pytest.approx(2 * 0.1 + 0.3))
    assert (services.cancelled, services.log.events) == (1, ["hybrid.hedged"])


def test_a_late_side_that_is_first_after_all_wins_and_the_second_is_stopped() -> None:
    hybrid, services = hedge(takes(0.25, answers(FIRST)), takes(0.3, answers(SECOND)))
    took_s, result = ask(hybrid)
    assert (result, took_s, services.cancelled) == (FIRST, pytest.approx(0.25), 1)


def test_the_side_that_is_predicted_to_be_faster_is_asked_first() -> None:
    hybrid, services = hedge(answers(FIRST), answers(SECOND), Predictions(here=0.5, there=0.1))
    assert ask(hybrid)[1] == SECOND
    assert len(services.asked) == 1


def test_an_answer_that_is_a_failure_does_not_win() -> None:
    broken = Result(status=404, json={})
    edge = takes(0.4, answers(FIRST))
    hybrid, _ = hedge(edge, takes(0.01, answers(broken)))
    took_s, result = ask(hybrid)
    assert (result, took_s) == (FIRST, pytest.approx(0.4))


def test_a_side_that_fails_early_is_followed_by_the_other_at_once() -> None:
    hybrid, services = hedge(raises(BackendUnavailable("down")), takes(0.3, answers(SECOND)), budget=0.0)
    assert ask(hybrid) == (pytest.approx(0.3), SECOND)
    assert services.log.events == []


def test_where_both_fail_the_last_failure_is_told() -> None:
    hybrid, _ = hedge(raises(BackendFailed("first")), raises(BackendFailed("second")))
    with pytest.raises(BackendFailed, match="second"):
        ask(hybrid)


def test_a_clients_mistake_is_told_once() -> None:
    hybrid, services = hedge(raises(TaskInvalid("wrong")), answers(SECOND))
    with pytest.raises(TaskInvalid):
        ask(hybrid)
    assert len(services.asked) == 1


def test_what_may_not_leave_is_never_sent_however_late_the_edge_is() -> None:
    hybrid, services = hedge(takes(50.0, answers(FIRST)), answers(SECOND))
    assert ask(hybrid, may_leave=False)[1] == FIRST
    assert services.dispatched_to(THERE) == []
    hybrid, services = hedge(raises(BackendUnavailable("down")), answers(SECOND))
    with pytest.raises(BackendUnavailable):
        ask(hybrid, may_leave=False)
    assert services.dispatched_to(THERE) == []


def test_what_may_not_run_twice_does_not() -> None:
    hybrid, services = hedge(takes(9.0, answers(FIRST)), answers(SECOND), repeatable=False)
    assert ask(hybrid)[1] == FIRST
    assert len(services.asked) == 1


def test_a_second_side_that_cannot_serve_is_not_asked() -> None:
    hybrid, services = hedge(takes(9.0, answers(FIRST)), answers(SECOND), Predictions(here=0.1))
    assert ask(hybrid)[1] == FIRST
    assert len(services.asked) == 1


def test_cancelling_it_cancels_both() -> None:
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
def test_second_calls_never_exceed_the_budget(budget: float, slow: float, seed: int) -> None:
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


def test_a_heavy_tail_is_cut_at_five_calls_in_a_hundred() -> None:
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
def test_the_delay_follows_the_true_quantile(true_factor: float) -> None:
    rng, quantile, late = random.Random(3), Quantile(0.05), []
    for _ in range(4000):
        was_late = rng.expovariate(3.0 / true_factor) > quantile.factor
        quantile.learn(was_late=was_late)
        late.append(was_late)
    assert sum(late[1000:]) / 3000 == pytest.approx(0.05, abs=0.015)


def test_its_plan_says_who_comes_first_and_when_the_other_does() -> None:
    hybrid, _ = hedge(answers(FIRST), answers(SECOND))
    task = Task(kind="task", name="f", deadline=300.0, body=b"{}")
    assert hybrid.plan(task, QUICK) == {"mode": "hedge", "first": HERE, "second_after_s": pytest.approx(0.2)}
    assert hybrid.estimate(task, QUICK) == 0.1
