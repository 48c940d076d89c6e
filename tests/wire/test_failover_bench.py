"""Sixteen upstream faults with a healthy second upstream, via openai-python.

The client gets the response, or the correct error. The list of faults is that of the Failover Bench
(github.com/failoverbench/failoverbench); no gateway it measured passes more than eleven. Times are scaled down: a
20 s fault there is here a fault longer than the configured limits.
"""

from __future__ import annotations

import asyncio
import time

import openai
import pytest

from support.chat_upstreams import (
    QUESTION,
    TEXT,
    USAGE,
    WORDS,
    ChatUpstream,
    ask,
    asked,
    between,
    breaks,
    event,
    refuses,
    talking,
)
from support.upstream import LAST_CHUNK, Script, Talk, cut, in_turn, reset, sends, stall

PREFILL = {"RESUME": "prefill"}
SECOND = ChatUpstream(name="b")


BOTH = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


@BOTH
async def test_01_second_backend_serves_after_a_429_and_the_first_is_paused(stream: bool) -> None:
    busy = refuses(429, None, ("Retry-After", "30"))
    async with between(busy, SECOND) as (gateway, one, two):
        assert [await ask(gateway, stream=stream) for _ in range(3)] == [TEXT] * 3
    assert (len(asked(one)), len(asked(two))) == (1, 3)


@BOTH
async def test_02_every_client_is_served_during_a_storm_of_429(stream: bool) -> None:
    async with between(refuses(429), SECOND) as (gateway, one, _):
        assert await asyncio.gather(*[ask(gateway, stream=stream) for _ in range(30)]) == [TEXT] * 30
        at_first = len(asked(one))
        assert await asyncio.gather(*[ask(gateway, stream=stream) for _ in range(30)]) == [TEXT] * 30
    assert len(asked(one)) <= at_first + 2  # the breaker is open by then; only half-open trials reach it


@BOTH
async def test_03_single_500_is_hidden_from_the_client(stream: bool) -> None:
    async with between(in_turn(refuses(500), ChatUpstream()), SECOND) as (gateway, one, two):
        assert [await ask(gateway, stream=stream) for _ in range(3)] == [TEXT] * 3
    assert (len(asked(one)), len(asked(two))) == (3, 1)


@BOTH
async def test_04_503_is_hidden_from_the_client(stream: bool) -> None:
    async with between(refuses(503), SECOND) as (gateway, *_):
        assert await ask(gateway, stream=stream) == TEXT


@BOTH
async def test_05_connection_reset_is_hidden_from_the_client(stream: bool) -> None:
    async with between(reset(), SECOND) as (gateway, *_):
        assert await ask(gateway, stream=stream) == TEXT


@BOTH
async def test_06_upstream_that_never_answers_is_abandoned(stream: bool) -> None:
    gone = asyncio.Event()
    async with between(stall(gone=gone), SECOND) as (gateway, *_):
        began = time.monotonic()
        assert await ask(gateway, stream=stream) == TEXT
        assert time.monotonic() - began < 20  # far below every default timeout
        await asyncio.wait_for(gone.wait(), 5)


async def test_06_silent_upstream_is_not_tried_by_every_request() -> None:
    async with between(stall(), SECOND, USD_PER_REQUEST="0") as (gateway, one, _):
        assert [await ask(gateway) for _ in range(8)] == [TEXT] * 8
    assert len(asked(one)) <= 3


async def test_07_slow_first_token_falls_back_to_the_second_backend() -> None:
    gone = asyncio.Event()
    first = stall(ChatUpstream().opening(), gone=gone)
    async with between(first, SECOND) as (gateway, *_):
        began = time.monotonic()
        assert await ask(gateway) == TEXT
        assert time.monotonic() - began < 20
        await asyncio.wait_for(gone.wait(), 5)


MIDWAY: dict[str, Script] = {"cut": cut(), "reset": reset(), "ended": sends(LAST_CHUNK)}
WAYS = pytest.mark.parametrize("settings", [PREFILL, {}], ids=["prefill", "restart"])


@WAYS
@pytest.mark.parametrize("how", MIDWAY)
async def test_08_cut_stream_is_continued(how: str, settings: dict[str, str]) -> None:
    async with between(breaks(MIDWAY[how]), SECOND, **settings) as (gateway, *_):
        assert await ask(gateway) == TEXT


@WAYS
async def test_09_stalled_stream_is_continued(settings: dict[str, str]) -> None:
    environ = {"GATEWAY_STALL_S": "0.2"}
    async with between(breaks(stall()), SECOND, environ=environ, **settings) as (gateway, *_):
        assert await ask(gateway) == TEXT


@WAYS
@pytest.mark.parametrize("after", [0, 4])
@pytest.mark.parametrize("data", ["{", '{"choices": 7}', "no json", '"text"', '{"error": {"message": "broken"}}'])
async def test_10_malformed_event_is_not_relayed(data: str, after: int, settings: dict[str, str]) -> None:
    async with between(breaks(sends(event(data)), after=after), SECOND, **settings) as (gateway, *_):
        assert await ask(gateway) == TEXT


async def omits_done(talk: Talk) -> None:
    speaker = ChatUpstream()
    events = speaker.events(WORDS) + event(speaker.said(finish_reason="stop"))
    await talk.send(speaker.opening() + events + LAST_CHUNK)


async def test_11_missing_done_is_added_when_the_response_is_complete() -> None:
    async with between(omits_done, SECOND) as (gateway, _, two), gateway.session() as http:
        assert await ask(gateway) == TEXT
        body = {"model": "gpt", "messages": [QUESTION], "stream": True}
        async with http.post(f"{gateway.url}/v1/chat/completions", json=body) as got:
            assert (await got.read()).endswith(b"data: [DONE]\n\n")
    assert asked(two) == []


@WAYS
async def test_11_missing_done_is_a_cut_when_the_response_is_incomplete(settings: dict[str, str]) -> None:
    async with between(breaks(sends(LAST_CHUNK)), SECOND, **settings) as (gateway, *_):
        assert await ask(gateway) == TEXT


REFUSALS = {
    "context length": refuses(400, "context_length_exceeded"),
    "context length, as a 500": refuses(500, "context_length_exceeded"),
    "context length, llama.cpp": refuses(500, "exceed_context_size_error"),
    "content filter": refuses(400, "content_filter"),
    "content policy, as a 403": refuses(403, "content_policy_violation"),
    "content filter, in the stream": sends(
        ChatUpstream().opening()[: -len(event(ChatUpstream().said(delta={"role": "assistant", "content": ""})))]
        + event({"error": {"message": "filtered", "code": "content_filter"}})
        + LAST_CHUNK
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_12_13_refusal_that_any_model_would_give_is_returned_without_fallback(refusal: str) -> None:
    async with between(REFUSALS[refusal], SECOND) as (gateway, one, two):
        for _ in range(8):
            with pytest.raises(openai.APIStatusError) as told:
                await ask(gateway)
            code = (told.value.body or {}).get("code")  # type: ignore[attr-defined]
            assert "_filter" in code or "_policy" in code or "context" in code
            assert told.value.status_code in (400, 403)
        (status,) = {line["outcome"] for line in await gateway.lines.wait("request.finished", 8)}
        assert (status, gateway.lines.of("breaker.opened")) == ("refused", [])
    assert (len(asked(one)), asked(two)) == (8, [])


async def test_13_content_filter_finish_reason_ends_the_response() -> None:
    async def filtered(talk: Talk) -> None:
        speaker = ChatUpstream()
        ending = event(speaker.said(finish_reason="content_filter")) + event("[DONE]") + LAST_CHUNK
        await talk.send(speaker.opening() + speaker.events(WORDS[:3]) + ending)

    async with between(filtered, SECOND, **PREFILL) as (gateway, _, two):
        assert await ask(gateway) == "".join(WORDS[:3])
    assert asked(two) == []


async def test_14_backend_that_rejects_a_prefill_is_sent_the_original_request() -> None:
    async with between(breaks(cut()), ChatUpstream(name="b", continues=False), **PREFILL) as (gateway, *_):
        assert await ask(gateway) == TEXT


async def test_14_backend_that_rejects_a_prefill_and_generates_other_text_is_not_used() -> None:
    other = ChatUpstream(name="b", continues=False, words=["Else."])
    async with between(breaks(cut()), other, **PREFILL) as (gateway, *_):
        with pytest.raises(openai.APIError):
            await ask(gateway)


async def test_15_recovered_backend_is_used_again_within_30_s() -> None:
    async with between(refuses(500), SECOND) as (gateway, one, _):
        for _ in range(8):
            assert await ask(gateway) == TEXT
        assert gateway.lines.of("breaker.opened")
        one.script = talking(ChatUpstream())
        back_at = time.monotonic()
        while gateway.lines.of("request.finished")[-1]["backend"] != "one":
            assert await ask(gateway) == TEXT
            assert time.monotonic() - back_at < 30


@WAYS
async def test_16_usage_is_reported_once(settings: dict[str, str]) -> None:
    async with (
        between(breaks(cut()), SECOND, **settings) as (gateway, *_),
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as ai,
    ):
        stream = await ai.chat.completions.create(
            model="gpt", messages=[QUESTION], stream=True, stream_options={"include_usage": True}
        )
        told = [chunk.usage.to_dict() async for chunk in stream if chunk.usage]
        lines = await gateway.lines.wait("request.finished", 1)
    assert told == [USAGE]
    assert len(lines) == 1
