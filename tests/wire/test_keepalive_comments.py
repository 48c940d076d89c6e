"""Keep-alive comments in silent streams, and errors after them in the stream."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress

import aiohttp
import pytest

from gateway.api.sse_framing import HEARTBEAT
from gateway.ingress import handler
from gateway.ingress.http.response_writer import HttpResponseWriter
from gateway.testing import running_gateway
from support.chat_streams import FINISH, all_events, chatting, contents, event, next_event, said, streaming
from support.raw import read_head
from support.stub_backend import StubBackend
from support.upstream import LAST_CHUNK, Script, Talk, answer, by_path, chunk, sse_bytes
from support.wiring import STUB, relaying


def after(heard: asyncio.Event, script: Script) -> Script:
    """Delay `script` until the event is set."""

    async def thinks(talk: Talk) -> None:
        await heard.wait()
        await script(talk)

    return thinks


async def test_silent_stream_is_kept_alive_by_comments_and_then_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "HEARTBEAT_S", 0.02)
    heard = asyncio.Event()

    async def thinks(talk: Talk) -> None:
        await heard.wait()
        await talk.send(sse_bytes(said("at last"), FINISH) + LAST_CHUNK)

    async with relaying(chatting(thinks), MODELS="gpt") as (gateway, _), streaming(gateway) as (reader, _):
        await read_head(reader)
        assert [await next_event(reader), await next_event(reader)] == [": keep-alive"] * 2
        heard.set()
        events, is_whole = await all_events(reader)
        line = await gateway.line()
    assert (contents(events), is_whole, events[-1]) == ("at last", True, "data: [DONE]")
    assert line["t_first_byte_ms"] >= 20
    assert line["outcome"] == "served"


async def test_error_after_a_heartbeat_is_sent_in_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "HEARTBEAT_S", 0.02)
    heard = asyncio.Event()
    thinks = after(heard, answer(status=500, json={"error": {"message": "no"}}))

    async with relaying(chatting(thinks), MODELS="gpt") as (gateway, _), streaming(gateway) as (reader, _):
        status, _ = await read_head(reader)
        assert await next_event(reader) == ": keep-alive"
        heard.set()
        events, is_whole = await all_events(reader)
    assert (status, is_whole) == (200, False)
    assert json.loads(events[-1][6:])["error"]["code"] == "upstream_bad_response"


async def test_heartbeats_and_the_final_error_count_as_response_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "HEARTBEAT_S", 0.02)
    heard = asyncio.Event()
    thinks = after(heard, answer(status=500, json={"error": {"message": "no"}}))

    async with relaying(chatting(thinks), MODELS="gpt") as (gateway, _), gateway.session() as session:
        body, got = {"model": "gpt", "stream": True, "messages": [{"role": "user", "content": "x"}]}, b""
        async with session.post(f"{gateway.url}/v1/chat/completions", json=body) as response:
            with suppress(aiohttp.ClientPayloadError):
                async for piece in response.content.iter_any():
                    got += piece
                    heard.set()
        line = await gateway.line()
    assert got.startswith(b": keep-alive")
    assert b'"error"' in got
    assert line["bytes_out"] == len(got)


async def test_upstream_refusal_after_a_heartbeat_is_sent_in_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "HEARTBEAT_S", 0.02)
    heard = asyncio.Event()

    async def thinks(talk: Talk) -> None:
        await heard.wait()
        await answer(status=422, json={"error": {"message": "no such voice"}})(talk)

    async with relaying(chatting(thinks), MODELS="gpt") as (gateway, _), streaming(gateway) as (reader, _):
        await read_head(reader)
        assert await next_event(reader) == ": keep-alive"
        heard.set()
        events, is_whole = await all_events(reader)
        line = await gateway.line()
    assert not is_whole
    assert json.loads(events[-1][6:]) == {"error": {"message": "no such voice"}}
    assert (line["status"], line["outcome"]) == (200, "refused")


async def test_generator_that_pauses_is_kept_alive_by_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "HEARTBEAT_S", 0.02)
    async with running_gateway(**STUB) as gateway, streaming(gateway, "/v1/tasks/pause", b"{}") as (reader, _):
        await read_head(reader)
        assert [await next_event(reader) for _ in range(3)] == ['data: {"part":1}', ": keep-alive", ": keep-alive"]
        StubBackend.open.set()
        events, is_whole = await all_events(reader)
    assert is_whole
    assert 'data: {"part":2}' in events


async def test_whole_response_after_a_heartbeat_becomes_an_error_in_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "HEARTBEAT_S", 0.02)
    heard = asyncio.Event()

    async def thinks(talk: Talk) -> None:
        await heard.wait()
        await answer(json={"data": [{"b64_json": "eA=="}]})(talk)

    script = by_path({"/v1/images/generations": thinks})
    async with (
        relaying(script, MODELS="gpt") as (gateway, _),
        streaming(gateway, "/v1/images/generations", b'{"model":"gpt","prompt":"x","stream":true}') as (reader, _),
    ):
        await read_head(reader)
        assert await next_event(reader) == ": keep-alive"
        heard.set()
        events, is_whole = await all_events(reader)
    assert not is_whole
    assert "application/json, not a stream" in json.loads(events[-1][6:])["error"]["message"]


async def test_time_spent_writing_heartbeats_counts_as_client_write_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handler, "HEARTBEAT_S", 0.02)
    heard, write = asyncio.Event(), HttpResponseWriter.write
    took_s: list[float] = []

    async def reads_comments_slowly(reply: HttpResponseWriter, data: bytes) -> None:
        began = time.monotonic()
        if data == HEARTBEAT:
            await asyncio.sleep(0.02)
            took_s.append(time.monotonic() - began)
        await write(reply, data)

    async def pauses(talk: Talk) -> None:
        await talk.send(sse_bytes(said("one"), done=False))
        await heard.wait()
        await talk.send(event(said(" two")) + event(FINISH) + chunk(b"data: [DONE]\n\n") + LAST_CHUNK)

    monkeypatch.setattr(HttpResponseWriter, "write", reads_comments_slowly)
    async with relaying(chatting(pauses), MODELS="gpt") as (gateway, _), streaming(gateway) as (reader, _):
        await read_head(reader)
        assert [await next_event(reader) for _ in range(4)][2:] == [": keep-alive"] * 2
        heard.set()
        _, is_whole = await all_events(reader)
        line = await gateway.line()
    assert is_whole
    assert line["t_write_ms"] >= 1000 * sum(took_s[1:])  # the first write may precede the response
