"""Scatter over two simulated sides, in virtual time."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.plugin import BackendFailed, BackendUnavailable, DeadlineExceeded, Result, Task, TaskRefused
from gateway_hybrid import Hybrid, HybridSettings
from support.hybrid_services import (
    HERE,
    THERE,
    HybridServices,
    Predictions,
    Side,
    never,
    raises,
    serialised,
    squares,
    takes,
)
from support.virtual_time import virtual_time

ITEMS = list(range(60))


def by_items(overhead_s: float, per_item_s: float) -> Callable[[Task], float]:
    return lambda task: overhead_s + per_item_s * task.items


def scatter(
    services: HybridServices, items: list[Any], *, deadline: float = 1e6, **settings: Any
) -> tuple[float, Result]:
    """Return the seconds taken, and the answer."""
    given = {"edge": HERE, "cloud": THERE, "tasks": ["squares"], "models": ["vectors"], **settings}
    hybrid = Hybrid(HybridSettings.model_validate(given), services)

    async def timed() -> tuple[float, Result]:
        task = Task(kind="task", name="squares", deadline=deadline, items=max(len(items), 1))
        result = await hybrid.run(task.replace(_decoded={"items": items}))
        return asyncio.get_running_loop().time(), result

    with virtual_time() as runner:
        return runner.run(timed())


def test_two_steady_sides_finish_within_12_percent_of_the_ideal() -> None:
    services = HybridServices(serialised(0.04), serialised(0.02), Predictions(slots=16, here=2.4, there=1.2))
    took_s, result = scatter(services, ITEMS)
    assert result.json == {"result": [n * n for n in ITEMS]}
    assert took_s <= 1.12 * 0.8


@settings(deadline=None, max_examples=40)
@given(
    edge_s=st.floats(0.005, 0.5),
    cloud_s=st.floats(0.005, 0.5),
    rtt_s=st.floats(0.0, 0.3),
    count=st.integers(30, 120),
    wrong=st.floats(0.3, 3.0),
)
def test_batch_time_is_never_much_above_the_better_side(
    edge_s: float, cloud_s: float, rtt_s: float, count: int, wrong: float
) -> None:
    view = Predictions(slots=1, here=by_items(0.001, wrong * edge_s), there=by_items(rtt_s, cloud_s))
    services = HybridServices(serialised(edge_s), serialised(cloud_s, rtt_s), view)
    took_s, result = scatter(services, list(range(count)))
    assert result.json == {"result": [n * n for n in range(count)]}
    better_s = min(count * edge_s, count * cloud_s + rtt_s)
    assert took_s <= 1.15 * better_s + rtt_s + 2 * max(edge_s, cloud_s) * (1 + 1 / wrong)


def test_hung_cloud_costs_little_more_than_the_edge_alone() -> None:
    took_s, result = scatter(HybridServices(serialised(0.02), never, Predictions(here=1.2, there=0.6)), ITEMS)
    assert len(result.json["result"]) == 60
    assert took_s < 1.5 * 60 * 0.02


def test_refusing_cloud_receives_fewer_and_fewer_groups() -> None:
    services = HybridServices(serialised(0.1), raises(TaskRefused("busy")))
    scatter(services, ITEMS)
    assert 3 < len(services.dispatched_to(THERE)) < 20


def test_unavailable_edge_is_replaced_by_the_cloud() -> None:
    services = HybridServices(raises(BackendUnavailable("worker died")), serialised(0.02))
    took_s, result = scatter(services, ITEMS)
    assert result.json == {"result": [n * n for n in ITEMS]}
    assert took_s < 2.0


def test_group_refused_with_413_moves_to_the_other_side() -> None:
    async def too_large(task: Task) -> Result:
        return Result(status=413, json={"error": "too large"})

    _, result = scatter(HybridServices(squares, too_large), ITEMS)
    assert result.json == {"result": [n * n for n in ITEMS]}


def test_answer_with_missing_items_is_repeated_at_the_other_side() -> None:
    async def drops_one(task: Task) -> Result:
        return Result(json={"result": [n * n for n in task.json["items"][1:]]})

    services = HybridServices(squares, drops_one)
    assert scatter(services, ITEMS)[1].json == {"result": [n * n for n in ITEMS]}
    assert "upstream_bad_response" in [keys.get("error") for keys in services.log.keys]


def test_one_failed_group_does_not_lose_the_others() -> None:
    failed: list[int] = []

    async def once(task: Task) -> Result:
        if not failed:
            failed.append(1)
            raise BackendFailed("a bad moment")
        return await squares(task)

    services = HybridServices(takes(0.01, squares), takes(0.01, once))
    assert scatter(services, ITEMS)[1].json == {"result": [n * n for n in ITEMS]}


def test_last_group_may_run_twice_once_per_batch() -> None:
    async def stuck_at_the_end(task: Task) -> Result:
        if task.json["items"][-1] > 50:
            await never(task)
        return await takes(0.02 * task.items, squares)(task)

    services = HybridServices(serialised(0.02), stuck_at_the_end, Predictions(here=1.2, there=1.2))
    took_s, result = scatter(services, ITEMS)
    assert result.json == {"result": [n * n for n in ITEMS]}
    assert took_s < 1.5


def test_batch_ends_at_the_deadline_when_both_sides_refuse() -> None:
    services = HybridServices(
        raises(TaskRefused("busy", retry_after_s=9.0)), raises(TaskRefused("busy", retry_after_s=9.0))
    )
    with pytest.raises((DeadlineExceeded, TaskRefused)):
        scatter(services, ITEMS, deadline=3.0)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_batch_of_zero_to_three_items_is_answered(count: int) -> None:
    assert scatter(HybridServices(), ITEMS[:count])[1].json == {"result": [n * n for n in ITEMS[:count]]}


# ── embedding inputs ─────────────────────────────────────────────────────────────────────────────


def vector(text: str) -> list[float]:
    return [float(len(text)), float(ord(text[0]))]


async def as_floats(task: Task) -> Result:
    await asyncio.sleep(0.01 * len(task.json["input"]))
    return Result(json=[vector(text) for text in task.json["input"]])


async def as_base64(task: Task) -> Result:
    """An upstream with its own order of vectors, which reports token usage."""
    await asyncio.sleep(0.01 * len(task.json["input"]))
    data = [
        {"object": "embedding", "index": n, "embedding": base64.b64encode(struct.pack("<2f", *vector(text))).decode()}
        for n, text in enumerate(task.json["input"])
    ]
    whole = {"object": "list", "data": data[::-1], "model": "theirs", "usage": {"prompt_tokens": len(data)}}
    return Result(body=msgspec.json.encode(whole))


def embed(edge: Side, cloud: Side, inputs: Any, items: int) -> tuple[HybridServices, Any]:
    services = HybridServices(edge, cloud)
    given = {"edge": HERE, "cloud": THERE, "models": ["vectors"]}
    hybrid = Hybrid(HybridSettings.model_validate(given), services)
    body = {"input": inputs, "model": "both/vectors", "dimensions": 2}
    task = Task(kind="embeddings", name="vectors", deadline=1e6, items=items, body=msgspec.json.encode(body))
    with virtual_time() as runner:
        result = runner.run(hybrid.run(task))
    return services, result.value()


def read(one: dict[str, Any]) -> list[float]:
    packed = one["embedding"]
    return list(struct.unpack("<2f", base64.b64decode(packed))) if isinstance(packed, str) else packed


def test_embeddings_of_both_sides_are_merged_with_continuous_indexes() -> None:
    texts = ["x" * n + "y" for n in range(1, 50)]
    services, answer = embed(as_floats, as_base64, texts, len(texts))
    assert [one["index"] for one in answer["data"]] == list(range(49))
    assert [read(one) for one in answer["data"]] == [vector(text) for text in texts]
    assert services.dispatched_to(HERE)
    assert services.dispatched_to(THERE)
    assert all(task.json["dimensions"] == 2 for task in services.dispatched)


def test_token_usage_of_the_groups_is_summed() -> None:
    _, answer = embed(as_base64, as_base64, ["a", "b", "c", "d"], 4)
    assert answer["usage"]["prompt_tokens"] == 4


def test_token_lists_are_embedding_inputs() -> None:
    async def tokens(task: Task) -> Result:
        return Result(json=[[float(sum(one))] for one in task.json["input"]])

    _, answer = embed(tokens, tokens, [[1, 2], [3], [4, 5, 6]], 3)
    assert [one["embedding"] for one in answer["data"]] == [[3.0], [3.0], [15.0]]


def test_single_input_is_sent_unchanged_to_the_faster_side() -> None:
    async def one(task: Task) -> Result:
        return Result(json=[1.0, 2.0])

    services = HybridServices(one, one, Predictions(here=2.0, there=1.0))
    hybrid = Hybrid(HybridSettings.model_validate({"edge": HERE, "cloud": THERE, "models": ["vectors"]}), services)
    task = Task(kind="embeddings", name="vectors", deadline=1e6, body=b'{"input":"alone"}')
    with virtual_time() as runner:
        runner.run(hybrid.run(task))
    (asked,) = services.dispatched
    assert (asked.pin, asked.body) == (THERE, task.body)


@pytest.mark.parametrize(
    "wrong", [Result(json=[[1.0]]), Result(body=b"<html>"), Result(json={"data": [{"index": 0}] * 2}), Result(json=7)]
)
def test_invalid_vectors_raise_backend_failed(wrong: Result) -> None:
    async def side(task: Task) -> Result:
        return wrong

    with pytest.raises(BackendFailed) as caught:
        embed(side, side, ["a", "b", "c", "d"] * 8, 32)
    assert caught.value.code == "upstream_bad_response"
