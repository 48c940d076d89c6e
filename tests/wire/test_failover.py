"""Fallback from a first backend that sends an unusable response or stays silent."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.dispatch import attempt, collect
from support.chat_upstreams import DONE, OPENING, TEXT, WORDS, ChatUpstream, ask, asked, between, breaks, event
from support.upstream import (
    LAST_CHUNK,
    Script,
    Talk,
    answer,
    chunk,
    cut,
    endless,
    sends,
    stall,
)

ONE, SECOND = ChatUpstream(), ChatUpstream(name="b")


# ── a stream for a client that wants a whole response ────────────────────────────────────────────


async def test_stream_sent_to_a_client_that_wants_a_whole_response_is_collected() -> None:
    said = ONE.opening() + ONE.events(WORDS) + ONE.ending()
    async with between(sends(said), SECOND) as (gateway, _, two):
        assert await ask(gateway, stream=False) == TEXT
        line = await gateway.line()
    assert (asked(two), line["attempts"], line["outcome"]) == ([], 1, "served")


@pytest.mark.parametrize("then", [cut(), sends(event({"error": {"message": "no"}}) + LAST_CHUNK), sends(LAST_CHUNK)])
async def test_collected_stream_that_is_cut_falls_back_to_another_backend(then: Script) -> None:
    async with between(breaks(then), SECOND) as (gateway, _, two):
        assert await ask(gateway, stream=False) == TEXT
        line = await gateway.line()
    assert (len(asked(two)), line["attempts"], line["outcome"]) == (1, 2, "served")


async def test_collected_stream_that_stalls_falls_back_to_another_backend() -> None:
    environ = {"GATEWAY_STALL_S": "0.2", "GATEWAY_POLICY__RESCUE": "false"}
    async with between(breaks(stall()), SECOND, environ=environ) as (gateway, _, two):
        assert await ask(gateway, stream=False) == TEXT
    assert len(asked(two)) == 1


async def test_collected_stream_without_an_end_is_abandoned_at_the_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "MAX_COLLECTED_BYTES", 100_000)
    script = endless(ONE.opening(), ONE.events(["word "] * 20))
    async with between(script, SECOND) as (gateway, _, two):
        assert await ask(gateway, stream=False) == TEXT
        line = await gateway.line("dispatch.fell_back")
    assert "streams more than" in line["error"]
    assert len(asked(two)) == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_events_without_content_are_buffered_only_up_to_a_limit(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "MAX_EMPTY_BYTES", 50_000)
    monkeypatch.setattr(collect, "MAX_COLLECTED_BYTES", 50_000)
    empty = event(ONE.said(delta={"content": ""})) * 20
    async with between(endless(ONE.opening(), empty), SECOND) as (gateway, *_):
        assert await ask(gateway, stream=stream) == TEXT
        line = await gateway.line("dispatch.fell_back")
    assert "streams more than" in line["error"]


# ── silence ──────────────────────────────────────────────────────────────────────────────────────


def drips(piece: bytes) -> Script:
    """Send `piece` every 20 ms without any content."""

    async def script(talk: Talk) -> None:
        await talk.send(OPENING)
        while True:
            await talk.send(piece)
            await asyncio.sleep(0.02)

    return script


SILENT = {
    "not a byte": stall(),
    "keep-alive comments": drips(chunk(b": keep-alive\n\n")),
    "a role, and nothing after it": stall(ONE.opening()),
    "empty deltas": drips(event(ONE.said(delta={"content": ""}))),
    "no choices": drips(event({**ONE.said(), "choices": []})),
}


@pytest.mark.parametrize("script", SILENT.values(), ids=SILENT)
async def test_second_backend_answers_every_request_while_the_first_is_silent(script: Script) -> None:
    environ = {"GATEWAY_FIRST_BYTE_S": "0.5", "GATEWAY_POLICY__RESCUE": "false"}
    async with between(script, SECOND, environ=environ) as (gateway, *_):
        assert [await ask(gateway, stream=True) for _ in range(4)] == [TEXT] * 4


async def test_hedged_attempt_gets_all_of_the_remaining_time() -> None:
    async def thinks(talk: Talk) -> None:
        await asyncio.sleep(1.0)  # together with the wait before the hedge, more than half of the time
        await SECOND(talk)

    async with between(stall(), thinks, environ={"GATEWAY_FIRST_BYTE_S": "3"}) as (gateway, *_):
        assert await ask(gateway, stream=True) == TEXT
        line = await gateway.line()
    assert line["reason"] == "rescued"
    assert line["t_total_ms"] > 1500


async def test_empty_deltas_after_content_count_as_a_stall() -> None:
    async def script(talk: Talk) -> None:
        await talk.send(ONE.opening() + ONE.events(WORDS[:4]))
        while True:
            await talk.send(event(ONE.said(delta={"content": ""})))
            await asyncio.sleep(0.02)

    environ = {"GATEWAY_STALL_S": "0.3"}
    async with between(script, SECOND, environ=environ, RESUME="prefill") as (gateway, _, two):
        assert await ask(gateway, stream=True) == TEXT
    assert asked(two)[0]["messages"][-1]["content"] == "".join(WORDS[:4])


# ── invalid choices ──────────────────────────────────────────────────────────────────────────────

BAD_CHOICES: list[Any] = [["x"], [None], "x", {"0": {}}, 3, [{"index": 0, "message": "hello"}]]


@pytest.mark.parametrize("choices", BAD_CHOICES, ids=json.dumps)
@pytest.mark.parametrize("stream", [True, False])
async def test_whole_response_with_invalid_choices_falls_back_to_another_backend(choices: Any, stream: bool) -> None:
    whole = {**ONE.said(), "object": "chat.completion", "choices": choices}
    async with between(answer(json=whole), SECOND) as (gateway, *_):
        assert await ask(gateway, stream=stream) == TEXT


@pytest.mark.parametrize("choices", BAD_CHOICES[:-1], ids=json.dumps)
@pytest.mark.parametrize("stream", [True, False])
async def test_stream_chunk_with_invalid_choices_falls_back_to_another_backend(choices: Any, stream: bool) -> None:
    bad = OPENING + event({**ONE.said(), "choices": choices}) + DONE + LAST_CHUNK
    async with between(sends(bad), SECOND) as (gateway, *_):
        assert await ask(gateway, stream=stream) == TEXT
