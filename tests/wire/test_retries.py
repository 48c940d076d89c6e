"""Retries of the only backend: few, within the budget and after Retry-After."""

from __future__ import annotations

import time

import pytest

from gateway.dispatch import retry
from gateway.dispatch.retry import BURST_TOKENS
from gateway.testing import RunningGateway
from support.chat_upstreams import CHAT, QUESTION, TEXT, ChatUpstream, asked, refuses, talking
from support.raw import Answer, answered, post
from support.upstream import Script, answer, in_turn
from support.wiring import ADD, relaying

BODY = b'{"model":"gpt","messages":[{"role":"user","content":"What is a stream?"}]}'
assert QUESTION["content"].encode() in BODY


async def ask(gateway: RunningGateway, *lines: str) -> Answer:
    return await answered(gateway.url, post(CHAT, BODY, *lines))


def retry_fields(found: Answer) -> tuple[int, str, str | None]:
    return found.status, found.headers["x-gateway-attempts"], found.headers.get("x-should-retry")


@pytest.mark.parametrize("fault", [refuses(500), refuses(503), refuses(429)], ids=["500", "503", "429"])
async def test_one_failure_of_the_only_upstream_is_retried(fault: Script) -> None:
    async with relaying(talking(in_turn(fault, ChatUpstream())), MODELS="gpt") as (gateway, upstream):
        found = await ask(gateway)
        line = await gateway.line()
    assert (found.status, found.json["choices"][0]["message"]["content"]) == (200, TEXT)
    assert (len(asked(upstream)), line["attempts"], line["reason"]) == (2, 2, "asked-again")
    assert line["t_queue_ms"] > 0


@pytest.mark.parametrize("header", [("Retry-After", "1"), ("retry-after-ms", "400")])
async def test_retry_waits_for_the_upstreams_retry_after(header: tuple[str, str]) -> None:
    busy = refuses(429, None, header)
    async with relaying(talking(in_turn(busy, ChatUpstream())), MODELS="gpt") as (gateway, upstream):
        began = time.monotonic()
        found = await ask(gateway)
    assert found.status == 200
    assert time.monotonic() - began >= (1.0 if header[0] == "Retry-After" else 0.4)
    assert len(asked(upstream)) == 2


@pytest.mark.parametrize(
    ("script", "lines"),
    [
        (refuses(429, None, ("Retry-After", "30")), ()),
        (refuses(429, None, ("Retry-After", "2")), ("x-gateway-deadline-ms: 1000",)),
        (refuses(503, None, ("x-should-retry", "false")), ()),
        (refuses(401), ()),
    ],
    ids=["too long to hold a connection", "past the deadline", "x-should-retry is false", "a wrong key"],
)
async def test_request_is_not_retried_when_a_retry_cannot_succeed(script: Script, lines: tuple[str, ...]) -> None:
    async with relaying(talking(script), MODELS="gpt") as (gateway, upstream):
        found = await ask(gateway, *lines)
    assert retry_fields(found)[1:] == ("1", "false")
    assert len(asked(upstream)) == 1
    if found.status == 429:
        assert int(found.headers["retry-after"]) >= 2


async def test_long_retry_after_is_passed_through_unchanged() -> None:
    async with relaying(talking(refuses(429, None, ("Retry-After", "7200"))), MODELS="gpt") as (gateway, _):
        found = await ask(gateway)
    assert (found.status, found.headers["retry-after"], found.headers["retry-after-ms"]) == (429, "7200", "7200000")


async def test_retry_headers_of_an_upstream_refusal_are_passed_through() -> None:
    busy = refuses(409, None, ("x-should-retry", "true"), ("retry-after-ms", "250"))
    async with relaying(talking(busy), MODELS="gpt") as (gateway, upstream):
        found = await ask(gateway)
    assert retry_fields(found) == (409, "1", "true")
    assert found.headers["retry-after-ms"] == "250"
    assert len(asked(upstream)) == 1


async def test_second_failure_is_final_and_the_client_is_advised_not_to_retry() -> None:
    async with relaying(talking(refuses(500)), MODELS="gpt") as (gateway, upstream):
        found = await ask(gateway)
    assert retry_fields(found) == (500, "2", "false")
    assert len(asked(upstream)) == 2


async def test_non_repeatable_task_is_not_retried() -> None:
    async with relaying(answer(status=500, json={}), TASKS=ADD) as (gateway, upstream):
        found = await answered(gateway.url, post("/v1/tasks/add", b"{}"))
    assert retry_fields(found) == (500, "1", "false")
    assert len([request for request in upstream.requests if request.method == "POST"]) == 1


async def test_retries_stay_within_the_retry_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "RETRY_PAUSE_S", 0.001)
    monkeypatch.setattr(retry, "PAUSE_MARGIN_S", 0.0)
    turns = [
        script for _ in range(40) for script in (refuses(500), ChatUpstream(), ChatUpstream())
    ]  # two successes per failure keep the breaker closed
    async with relaying(talking(in_turn(*turns)), MODELS="gpt") as (gateway, upstream):
        requests = 0
        while len(asked(upstream)) < 100:
            await ask(gateway)
            requests += 1
    second = len(asked(upstream)) - requests
    assert BURST_TOKENS <= second <= BURST_TOKENS + 0.2 * requests
