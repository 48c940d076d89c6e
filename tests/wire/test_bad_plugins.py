"""Plugins that block the loop, ignore cancellation, raise or return wrong results."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from gateway.dispatch import leaks
from gateway.health import quarantine
from gateway.telemetry import metrics
from gateway.testing import RunningGateway, running_gateway
from support import faulty_backend, worker_backends
from support.faulty_backend import FaultyBackend
from support.polling import wait_until
from support.raw import answered, connected, post
from support.wiring import backend

FAULTY = backend("bad", "support.faulty_backend:FaultyBackend")
SLEEP = next(
    n
    for n, line in enumerate(Path(faulty_backend.__file__).read_text().splitlines(), 1)
    if "this blocks the loop" in line
)


@pytest.fixture
async def gateway() -> AsyncIterator[RunningGateway]:
    async with running_gateway(**FAULTY) as running:
        try:
            yield running
        finally:
            FaultyBackend.may_end.set()


async def test_blocking_plugin_is_logged_once_with_line_and_backend_and_counted(gateway: RunningGateway) -> None:
    before = metrics.STALLS.values.get(("bad",), 0)
    for _ in range(3):
        assert (await answered(gateway.url, post("/v1/tasks/block", b"{}"))).status == 200
        assert (await answered(gateway.url, post("/v1/tasks/serve", b"{}"))).status == 200
    (told,) = await gateway.lines.wait("loop.stalled")
    assert told["where"] == f"{faulty_backend.__file__}:{SLEEP}"
    assert (told["backend"], told["stack"][0]) == ("bad", f"{told['where']} _block")
    assert told["stalled_ms"] >= 90
    assert metrics.STALLS.values[("bad",)] > before


async def test_task_ignoring_cancellation_is_counted_and_its_backend_excluded_when_full(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaks, "LEAKED_S", 0.0)
    for _ in range(2):
        async with connected(gateway.url) as (_, writer):
            writer.write(post("/v1/tasks/ignore", b"{}"))
            await FaultyBackend.ignoring.wait()
            FaultyBackend.ignoring.clear()
    told = await gateway.lines.wait("dispatch.leaked", 2)
    assert {line["backend"] for line in told} == {"bad"}
    assert metrics.LEAKED.values[("bad",)] == 2
    refused = await answered(gateway.url, post("/v1/tasks/serve", b"{}"))
    assert (refused.status, refused.json["error"]["code"]) == (503, "unavailable")
    assert "do not end" in refused.json["error"]["message"]
    FaultyBackend.may_end.set()
    await asyncio.wait(set(gateway.service.dispatcher._attempts))
    gateway.service.dispatcher.look_for_leaks()
    assert (await answered(gateway.url, post("/v1/tasks/serve", b"{}"))).status == 200
    assert metrics.LEAKED.values[("bad",)] == 0


async def test_plugin_that_only_raises_is_quarantined_and_the_error_states_it(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "MAX_EXCEPTIONS", 3)
    for _ in range(3):
        assert (await answered(gateway.url, post("/v1/tasks/raise", b"{}"))).status == 500
    refused = await answered(gateway.url, post("/v1/tasks/serve", b"{}"))
    assert refused.status == 503
    assert "quarantined: it raised LookupError 3 times" in refused.json["error"]["message"]
    assert len(gateway.lines.of("backend.quarantined")) == 1


BUGGY = backend("buggy", "support.worker_backends:RaisesInRun", REPEATABLE="true")


async def test_exception_in_a_worker_plugin_makes_the_gateway_try_another_backend() -> None:
    sound = backend("sound", "support.worker_backends:Quick", ISOLATION="loop", USD_PER_REQUEST="1", REPEATABLE="true")
    async with running_gateway(**BUGGY, **sound) as gateway:
        answer = await answered(gateway.url, post("/v1/tasks/echo", b"1"))
        assert (answer.status, answer.headers["x-gateway-backend"]) == (200, "sound")
        assert len(gateway.lines.of("worker.raised")) == 1


async def test_worker_plugin_that_only_raises_is_quarantined_and_the_error_states_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quarantine, "MAX_EXCEPTIONS", 3)
    async with running_gateway(**BUGGY) as gateway:
        for _ in range(3):
            answer = await answered(gateway.url, post("/v1/tasks/echo", b"1"))
            assert (answer.status, answer.json["error"]["code"]) == (500, "plugin_error")
        refused = await answered(gateway.url, post("/v1/tasks/echo", b"1"))
        assert refused.status == 503
        assert "quarantined: it raised LookupError 3 times" in refused.json["error"]["message"]
        assert len(gateway.lines.of("worker.raised")) == 3


async def test_arguments_that_make_a_function_raise_do_not_quarantine_its_backend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quarantine, "MAX_EXCEPTIONS", 3)
    async with running_gateway(**backend("local", "local", SLOTS="1")) as gateway:
        for _ in range(4):
            answer = await answered(gateway.url, post("/v1/tasks/add", b'{"a":1,"b":"x"}'))
            assert (answer.status, answer.json["error"]["code"]) == (500, "plugin_error")
            assert "`add` raised TypeError" in answer.json["error"]["message"]
        assert (await answered(gateway.url, post("/v1/tasks/add", b'{"a":1,"b":2}'))).json == {"result": 3}
        (line,) = gateway.lines.of("local.raised")
        assert (line["error"], line["suppressed"]) == ("TypeError", 0)


async def test_plugin_that_raises_system_exit_fails_only_its_own_request(gateway: RunningGateway) -> None:
    for task in ("exit", "interrupt", "cancels", "panic"):
        answer = await answered(gateway.url, post(f"/v1/tasks/{task}", b"{}"))
        assert (answer.status, answer.json["error"]["code"]) == (500, "plugin_error")
    assert (await answered(gateway.url, post("/v1/tasks/serve", b"{}"))).status == 200
    assert {line["error"] for line in gateway.lines.of("dispatch.raised")} == {
        "SystemExit",
        "KeyboardInterrupt",
        "CancelledError",
        "Panic",
    }


async def test_plugin_that_raises_busy_makes_the_gateway_try_another_backend() -> None:
    other = backend("desk", "support.stub_backend:StubBackend", TASKS="refuse,serve", USD_PER_REQUEST="1")
    tasks = {"GATEWAY_BACKENDS__DESK__TASKS": '{"refuse":"say"}'}
    async with running_gateway(**FAULTY, **(other | tasks), GATEWAY_POLICY__USD="1") as running:
        answer = await answered(running.url, post("/v1/tasks/refuse", b"1"))
        FaultyBackend.may_end.set()
    assert (answer.status, answer.headers["x-gateway-backend"]) == (200, "desk")


async def test_client_deadlines_that_expire_do_not_open_the_breaker(gateway: RunningGateway) -> None:
    for _ in range(7):
        late = await answered(gateway.url, post("/v1/tasks/hang_on", b"{}", "x-gateway-deadline-ms: 30"))
        assert late.status == 504
    FaultyBackend.may_end.set()
    assert (await answered(gateway.url, post("/v1/tasks/serve", b"{}"))).status == 200
    assert not gateway.lines.of("breaker.opened")


async def test_gateway_stops_even_if_a_plugin_ignores_cancellation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.dispatch.dispatcher.CLOSE_S", 0.1)
    async with running_gateway(**FAULTY) as running:
        async with connected(running.url) as (_, writer):
            writer.write(post("/v1/tasks/ignore", b"{}"))
            await FaultyBackend.ignoring.wait()
        await running.line(outcome="cancelled")
    FaultyBackend.may_end.set()


async def test_stream_hanging_in_a_worker_is_killed_at_the_deadline_of_a_whole_response() -> None:
    hangs = backend("slow", "support.worker_backends:DelaysCancel", MODELS="m", SLOTS="1")
    chat = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True, "seconds": 600}
    async with running_gateway(**hangs, GATEWAY_FIRST_BYTE_S="0.2", GATEWAY_DEADLINE_S="0.3") as gateway:
        answer = await answered(gateway.url, post("/v1/chat/completions", json.dumps(chat).encode()))
        assert answer.status == 504
        (died,) = await gateway.lines.wait("worker.died")
        assert died["how"] == "was killed because a cancelled task did not end in time"
        await wait_until(lambda: not gateway.service.dispatcher.is_stuck)


WRONG = [
    ({"status": "200"}, "`status` is str"),
    ({"status": None}, "`status` is None"),
    ({"status": True}, "`status` is bool"),
    ({"status": 0}, "`status` is 0, not 200 to 599"),
    ({"status": 100}, "`status` is 100, not 200 to 599"),
    ({"status": 999}, "`status` is 999, not 200 to 599"),
    ({"body": "text"}, "`body` is str, not bytes"),
    ({"content_type": None}, "`content_type` is None"),
    ({"content_type": "a\r\nx-in: b"}, "`content_type` holds a control character"),
    ({"headers": {"x": 5}}, "`headers` maps str to int"),
    ({"headers": ["x"]}, "`headers` is list"),
    ({"headers": {"x": "a\r\nx-in: b"}}, "`headers` holds an invalid header"),
    ({"headers": {"x y": "a"}}, "`headers` holds an invalid header"),
    ({"confidence": "high"}, "`confidence` is str"),
    ({"own": "cancellation"}, "raised CancelledError"),
]


@pytest.mark.parametrize("isolation", ["loop", "process"])
async def test_result_with_a_wrong_field_type_is_a_plugin_error_naming_the_field(
    isolation: str,
) -> None:
    async with running_gateway(
        **backend("wrong", "support.worker_backends:InvalidResults", ISOLATION=isolation)
    ) as gateway:
        for given, why in WRONG:
            answer = await answered(gateway.url, post("/v1/tasks/echo", json.dumps(given).encode()))
            assert (answer.status, answer.json["error"]["code"]) == (500, "plugin_error"), given
            assert why in answer.json["error"]["message"]
            told = gateway.lines.of("worker.raised" if isolation == "process" else "dispatch.raised")[-1]
            assert told["error"] == "CancelledError" if "own" in given else f"Result.{next(iter(given))}"
            if isolation == "loop" and "own" not in given:
                assert told["where"].startswith(worker_backends.__file__)
        right = await answered(gateway.url, post("/v1/tasks/echo", b'{"body":"bytearray","confidence":1,"status":201}'))
        assert (right.status, right.body) == (201, b"x")
        assert gateway.lines.of("worker.died") == gateway.lines.of("breaker.opened") == []


async def test_plugin_headers_cannot_change_framing_or_be_duplicated() -> None:
    given = {
        "Content-Length": "5", "TRANSFER-encoding": "chunked", "Connection": "keep-alive, X-Hop", "x-hop": "1",
        "Upgrade": "h2c", "Content-Type": "text/html", "X-Gateway-Backend": "another", "X-Kept": "é",
    }  # fmt: skip
    async with running_gateway(
        **backend("wrong", "support.worker_backends:InvalidResults", ISOLATION="loop")
    ) as gateway:
        for body in ([1], ["x" * 100_000]):
            asked = post("/v1/tasks/echo", json.dumps({"headers": given, "json": body}).encode())
            async with connected(gateway.url) as (reader, writer):
                for _ in range(2):  # the connection is reused: no bytes of the first response are left over
                    writer.write(asked)
                    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                    names = [line.partition(":")[0] for line in head.split("\r\n")[1:-2]]
                    assert len(names) == len(set(names))
                    assert not {"transfer-encoding", "connection", "x-hop", "upgrade"} & set(names)
                    assert {"x-gateway-backend: wrong", "content-type: application/json", "x-kept: é"} <= set(
                        head.split("\r\n")
                    )
                    size = int(head.partition("content-length: ")[2].partition("\r\n")[0])
                    assert json.loads(await reader.readexactly(size)) == body


@pytest.mark.parametrize("task", ["breaks", "gone"])
async def test_stream_that_breaks_midway_is_logged_as_failed_even_if_retryable(task: str) -> None:
    async with running_gateway(**backend("desk", "support.stub_backend:StubBackend", TASKS=task)) as gateway:
        async with gateway.session() as http, http.post(f"{gateway.url}/v1/tasks/{task}", json={}) as got:
            with pytest.raises(aiohttp.ClientPayloadError):
                await got.read()
        line = await gateway.line()
        assert (line["status"], line["outcome"]) == (200, "failed")


async def test_request_is_served_by_a_plugin_that_exits_in_size_estimate_and_plan() -> None:
    exits = backend("bad", "support.faulty_backend:ExitsInEstimate")
    async with running_gateway(**exits) as gateway, gateway.session() as http:
        async with http.post(f"{gateway.url}/v1/tasks/serve", json={}) as response:
            assert (response.status, await response.json()) == (200, {"result": "served"})
        plan = gateway.service.handler.explain("/v1/tasks/serve", {}, b"{}")
    assert plan["order"] == ("bad",)
