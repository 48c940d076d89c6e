"""Hybrid backends with a local edge backend and an upstream as the cloud."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from gateway.plugin import TERMS
from gateway.testing import RunningGateway, running_gateway
from support.faulty_backend import FaultyBackend
from support.upstream import Script, Talk, Upstream, answer, by_path, reset
from support.wiring import backend, cloud

HELLO = [{"role": "user", "content": "hello"}]
EDGE_ONLY = {"x-gateway-locality": "edge-only"}
CLOUD_ITEM_S = 0.005
COUNT = 60


async def squares(talk: Talk) -> None:
    items = talk.request.json["items"]
    await asyncio.sleep(CLOUD_ITEM_S * len(items))
    await answer(json={"result": [n * n for n in items]})(talk)


async def vectors(talk: Talk) -> None:
    inputs = talk.request.json["input"]
    data = [{"object": "embedding", "index": n, "embedding": [float(len(t)), 2.0]} for n, t in enumerate(inputs)]
    usage = {"prompt_tokens": len(data), "total_tokens": len(data)}
    await answer(json={"object": "list", "data": data, "model": "m", "usage": usage})(talk)


async def answers_chat(talk: Talk) -> None:
    message = {"role": "assistant", "content": "by the cloud"}
    await answer(json={"id": "c", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})(talk)


def cloud_script() -> Script:
    return by_path(
        {
            "/squares": squares,
            "/guess": answer(json={"result": "cloud"}),
            "/v1/embeddings": vectors,
            "/v1/chat/completions": answers_chat,
        }
    )


def hybrid(name: str, mode: str, **settings: str) -> dict[str, str]:
    given = {"TASKS": f'{{"{name}_squares":"squares","{name}_guess":"guess"}}', "MODELS": "m", **settings}
    return backend(name, "hybrid", MODE=mode, EDGE="hand", CLOUD="cloud", **given)


@asynccontextmanager
async def hybrid_gateway(
    script: Script | None = None,
) -> AsyncIterator[tuple[RunningGateway, Upstream, aiohttp.ClientSession]]:
    async with Upstream(script or cloud_script()) as upstream:
        environ = {
            **backend("hand", "support.hybrid_backends:EdgeWorker"),
            **cloud(upstream.url, TASKS='{"squares":"/squares","guess":"/guess"}', MODELS="m", REPEATABLE="true"),
            **hybrid("split", "scatter", TASKS='{"split_squares":"squares","squares":"squares"}'),
            **hybrid("careful", "cascade", WAIT_S="0.3"),
            **hybrid("eager", "hedge", BUDGET="0.5"),
        }
        async with running_gateway(**environ) as gateway, gateway.session() as http:
            yield gateway, upstream, http


async def post(
    gateway: RunningGateway, http: aiohttp.ClientSession, path: str, body: Any, **headers: str
) -> tuple[int, Any, Any]:
    async with http.post(f"{gateway.url}{path}", json=body, headers=headers) as got:
        return got.status, await got.json(), got.headers


def post_count(upstream: Upstream) -> int:
    """Count the requests that carried client data."""
    return sum(request.method == "POST" for request in upstream.requests)


def check_account(line: dict[str, Any]) -> None:
    terms = sum(line[f"t_{term}_ms"] for term in TERMS)
    assert terms - line["t_overlap_ms"] + line["t_other_ms"] == pytest.approx(line["t_total_ms"], abs=0.01)
    assert all(line[f"t_{term}_ms"] >= 0 for term in (*TERMS, "overlap", "other"))


BATCH = {"items": list(range(COUNT)), "edge_s": 0.005}
SQUARES = {"result": [n * n for n in range(COUNT)]}


async def test_batch_is_divided_and_its_time_account_balances() -> None:
    async with hybrid_gateway() as (gateway, upstream, http):
        status, value, headers = await post(gateway, http, "/v1/tasks/split_squares", BATCH)
        assert (status, value) == (200, SQUARES)
        assert (headers["x-gateway-backend"], headers["x-gateway-site"]) == ("split", "hybrid")
        line = await gateway.line(request_id=headers["x-request-id"])
        parts = [p for p in gateway.lines.of("subtask.finished") if p["parent_id"] == line["request_id"]]
    check_account(line)
    for part in parts:
        check_account(part)
    assert {part["site"] for part in parts} == {"edge", "cloud"}
    assert line["r_path"] == "parallel"
    assert line["t_overlap_ms"] > 0
    assert line["t_edge_ms"] > 0
    assert line["t_cloud_ms"] + line["t_network_ms"] > 0
    assert line["items"] == COUNT
    assert post_count(upstream) == sum(part["site"] == "cloud" for part in parts)


async def test_policy_divides_a_learned_task_class_and_explain_shows_the_plan() -> None:
    async with hybrid_gateway() as (gateway, _, http):
        chosen = []
        for count in (3, 6, 12, COUNT, COUNT, COUNT, COUNT):
            body = {"items": list(range(count)), "edge_s": 0.005}
            _, value, headers = await post(gateway, http, "/v1/tasks/squares", body)
            assert value == {"result": [n * n for n in range(count)]}
            chosen.append(headers["x-gateway-backend"])
        async with http.post(f"{gateway.admin_url}/explain?path=/v1/tasks/squares", json=BATCH) as got:
            explained = await got.json()
    assert chosen[-1] == "split"
    plan = explained["candidates"]["split"]["plan"]
    assert (plan["mode"], plan["items"]) == ("scatter", COUNT)
    assert sum(plan["shares"].values()) == pytest.approx(1.0, abs=0.01)
    assert explained["candidates"]["split"]["t_s"] == pytest.approx(plan["predicted_s"], rel=0.5)


async def test_embeddings_divided_over_both_sides_keep_the_requested_encoding() -> None:
    texts = ["x" * n for n in range(1, COUNT + 1)]
    body = {"model": "split/m", "input": texts, "encoding_format": "base64", "edge_s": 0.002}
    async with hybrid_gateway() as (gateway, upstream, http):
        status, value, headers = await post(gateway, http, "/v1/embeddings", body)
        line = await gateway.line(request_id=headers["x-request-id"])
        assert post_count(upstream) > 0
    assert status == 200
    assert [one["index"] for one in value["data"]] == list(range(COUNT))
    assert all(isinstance(one["embedding"], str) for one in value["data"])
    assert len(base64.b64decode(value["data"][0]["embedding"])) == 8
    assert (line["r_path"], line["items"], value["model"]) == ("parallel", COUNT, "split/m")


MODES = [
    ("/v1/tasks/split_squares", BATCH),
    ("/v1/embeddings", {"model": "split/m", "input": ["a"] * 20}),
    ("/v1/tasks/careful_guess", {"confidence": 0.1}),
    ("/v1/tasks/careful_guess", {"confidence": 0.9}),
    ("/v1/chat/completions", {"model": "careful/m", "messages": HELLO, "temperature": 0.1}),
    ("/v1/tasks/eager_guess", {"confidence": 0.1, "edge_s": 0.1}),
    ("/v1/chat/completions", {"model": "eager/m", "messages": HELLO, "edge_s": 0.1}),
]


async def test_edge_only_request_is_sent_to_the_cloud_in_no_hybrid_mode() -> None:
    async with hybrid_gateway() as (gateway, upstream, http):
        for path, body in MODES:
            status, value, headers = await post(gateway, http, path, body, **EDGE_ONLY)
            assert status == 200, value
            line = await gateway.line(request_id=headers["x-request-id"])
            assert line["t_cloud_ms"] == 0
            check_account(line)
        assert post_count(upstream) == 0


async def test_edge_answers_within_the_deadline_in_every_mode_when_the_cloud_is_down() -> None:
    async def never_answers(talk: Talk) -> None:
        await talk.gone()

    for script in (reset(), never_answers):
        async with hybrid_gateway(script) as (gateway, _, http):
            for path, body in MODES:
                began = time.monotonic()
                status, value, headers = await post(gateway, http, path, body, **{"x-gateway-deadline-ms": "2500"})
                assert status == 200, (path, value)
                assert time.monotonic() - began < 2.5
                check_account(await gateway.line(request_id=headers["x-request-id"]))


async def test_cascade_reports_which_side_answered_and_the_edge_confidence() -> None:
    async with hybrid_gateway() as (gateway, upstream, http):
        _, value, headers = await post(gateway, http, "/v1/tasks/careful_guess", {"confidence": 0.9})
        assert (value["result"], headers["x-gateway-cascade"], post_count(upstream)) == ("edge", "edge", 0)
        _, value, headers = await post(gateway, http, "/v1/tasks/careful_guess", {"confidence": 0.25})
        assert (value["result"], headers["x-gateway-cascade"]) == ("cloud", "cloud")
        assert headers["x-gateway-confidence"] == "0.25"
        line = await gateway.line(request_id=headers["x-request-id"])
        check_account(line)
        assert line["t_edge_ms"] > 0
        assert line["t_cloud_ms"] + line["t_network_ms"] > 0
        upstream.script = reset()
        _, value, headers = await post(gateway, http, "/v1/tasks/careful_guess", {"confidence": 0.25})
        assert (value["result"], headers["x-gateway-cascade"]) == ("edge", "edge-kept")


@pytest.mark.parametrize(("sure", "who"), [(0.9, "by the edge"), (0.1, "by the cloud")])
async def test_cascade_result_is_streamed_when_the_client_requests_a_stream(sure: float, who: str) -> None:
    body = {"model": "careful/m", "messages": HELLO, "stream": True, "temperature": sure}
    async with (
        hybrid_gateway() as (gateway, _, http),
        http.post(f"{gateway.url}/v1/chat/completions", json=body) as got,
    ):
        text = (await got.read()).decode()
        assert "x-gateway-cascade" in got.headers
    events = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    said = [json.loads(event)["choices"] for event in events[:-1]]
    assert "".join(choice[0]["delta"].get("content") or "" for choice in said if choice) == who


async def test_slow_edge_is_hedged_by_the_cloud_and_cancelled() -> None:
    edge_s = 1.0
    async with hybrid_gateway() as (gateway, upstream, http):
        for _ in range(12):
            await post(gateway, http, "/v1/tasks/eager_guess", {"confidence": 1})
        before, hedged_before = post_count(upstream), len(gateway.lines.of("hybrid.hedged"))
        began = time.monotonic()
        late = {"confidence": 1, "edge_s": edge_s}
        status, value, headers = await post(gateway, http, "/v1/tasks/eager_guess", late)
        took_s = time.monotonic() - began
        line = await gateway.line(request_id=headers["x-request-id"])
        hedged = len(gateway.lines.of("hybrid.hedged")) - hedged_before
    assert (status, value) == (200, {"result": "cloud"})
    assert post_count(upstream) == before + 1
    assert hedged == 1
    assert took_s < edge_s  # the response did not wait for the edge
    check_account(line)
    assert line["r_path"] == "parallel"


def over(mode: str, edge: dict[str, str], **settings: str) -> dict[str, str]:
    """Configure a hybrid of the given edge backend and a cloud backend that answers."""
    far = backend("far", "echo", SITE="cloud", MODELS='{"bird":"echo"}', TASKS='{"hang_on":"echo"}')
    return edge | far | backend("both", "hybrid", MODE=mode, EDGE="near", CLOUD="far", **settings)


def open_breakers(gateway: RunningGateway) -> set[str]:
    return {line["backend"] for line in gateway.lines.of("breaker.opened")}


@pytest.mark.parametrize("mode", ["hedge", "cascade"])
async def test_failures_of_one_side_do_not_open_the_hybrids_breaker(mode: str) -> None:
    ill = backend("near", "support.recording_backend:RecordingBackend", FAILS="true", REPEATABLE="true")
    body = {"model": "duet", "messages": HELLO}
    async with running_gateway(**over(mode, ill, MODELS='{"duet":"bird"}')) as gateway, gateway.session() as http:
        for _ in range(12):
            assert (await post(gateway, http, "/v1/chat/completions", body, **EDGE_ONLY))[0] == 503
        status, _, headers = await post(gateway, http, "/v1/chat/completions", body)
        assert (status, headers["x-gateway-backend"]) == (200, "both")
        assert open_breakers(gateway) == {"near"}


async def test_endpoint_missing_on_one_side_is_not_marked_missing_on_the_hybrid() -> None:
    body = {"model": "duet", "input": "hello"}
    async with Upstream(answer(b"404 page not found", status=404)) as upstream:
        near = cloud(upstream.url, "near", SITE="edge", MODELS="bird")
        async with (
            running_gateway(**over("hedge", near, MODELS='{"duet":"bird"}')) as gateway,
            gateway.session() as http,
        ):
            for _ in range(3):
                assert (await post(gateway, http, "/v1/embeddings", body, **EDGE_ONLY))[0] in (404, 503)
            status, _, headers = await post(gateway, http, "/v1/embeddings", body)
            assert (status, headers["x-gateway-backend"]) == (200, "both")
            members = gateway.service.registry.members
            assert [name for name in members if members[name].missing_endpoints.is_missing("/v1/embeddings")] == [
                "near"
            ]


async def test_short_client_deadlines_open_no_breaker_of_a_hybrid_or_its_sides() -> None:
    is_done = asyncio.Event()

    async def takes_its_time(talk: Talk) -> None:
        await is_done.wait()

    async with Upstream(takes_its_time) as upstream:
        sides = cloud(upstream.url, "near", SITE="edge", MODELS="bird") | cloud(upstream.url, "far", MODELS="bird")
        both = backend("both", "hybrid", MODE="scatter", EDGE="near", CLOUD="far", MODELS='{"duet":"bird"}')
        async with running_gateway(**sides, **both) as gateway, gateway.session() as http:
            body = {"model": "duet", "input": ["a"] * 12}
            for _ in range(8):
                got = await post(gateway, http, "/v1/embeddings", body, **{"x-gateway-deadline-ms": "60"})
                assert got[0] == 504
            is_done.set()
            assert open_breakers(gateway) == set()


async def test_full_queue_of_a_side_does_not_open_the_hybrids_breaker() -> None:
    slow = backend("near", "echo", DELAY_S="0.2", SLOTS="1", QUEUE="0", MODELS='{"bird":"echo"}')
    body = {"model": "duet", "messages": HELLO}
    async with running_gateway(**over("hedge", slow, MODELS='{"duet":"bird"}')) as gateway, gateway.session() as http:
        asked_at_once = [post(gateway, http, "/v1/chat/completions", body, **EDGE_ONLY) for _ in range(10)]
        assert {status for status, *_ in await asyncio.gather(*asked_at_once)} == {200, 503}
        assert open_breakers(gateway) == set()


async def test_timeout_of_a_side_opens_that_sides_breaker_and_not_the_hybrids() -> None:
    stuck = backend("near", "support.faulty_backend:FaultyBackend", TASKS='{"hang_on":"hang_on"}')
    environ = over("hedge", stuck, TASKS='{"wait":"hang_on"}') | {"GATEWAY_DEADLINE_S": "0.1"}
    async with running_gateway(**environ) as gateway, gateway.session() as http:
        for _ in range(6):
            assert (await post(gateway, http, "/v1/tasks/wait", {}, **EDGE_ONLY))[0] in (503, 504)
        FaultyBackend.may_end.set()
        assert open_breakers(gateway) == {"near"}
