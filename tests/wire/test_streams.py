"""Streams over real sockets: relaying, breaks, disconnects and slow readers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

from gateway.ingress.http import adapter, response_writer
from gateway.testing import RunningGateway, running_gateway
from support.chat_streams import (
    FINISH,
    OPENING,
    ROLE,
    all_events,
    asked,
    chatting,
    contents,
    event,
    next_event,
    said,
    streaming,
)
from support.polling import wait_until
from support.raw import answered, connected, post, read_head, read_to_end
from support.stub_backend import StubBackend
from support.upstream import (
    LAST_CHUNK,
    Script,
    Talk,
    Upstream,
    answer,
    by_path,
    chunk,
    endless,
    sse,
    stall,
)
from support.wiring import STUB, cloud, relaying

ATTEMPTS = 5  # the best of several measurements counts: the machine may be loaded


# ── relayed as it arrives ────────────────────────────────────────────────────────────────────────


async def test_event_reaches_the_client_before_the_upstream_sends_the_next() -> None:
    heard = asyncio.Event()

    async def one_by_one(talk: Talk) -> None:
        await talk.send(OPENING + event(said("first")))
        await heard.wait()
        await talk.send(event(said("second")) + event(FINISH) + chunk(b"data: [DONE]\n\n") + LAST_CHUNK)

    async with relaying(chatting(one_by_one), MODELS="gpt") as (gateway, _), streaming(gateway) as (reader, _):
        status, headers = await read_head(reader)
        assert "first" in await next_event(reader)
        heard.set()
        events, is_whole = await all_events(reader)
        line = await gateway.line()
    assert (status, headers["content-type"], headers["x-gateway-backend"]) == (200, "text/event-stream", "cloud")
    assert contents(events) == "second"
    assert is_whole
    assert events[-2].startswith(": timing {")
    assert events[-1] == "data: [DONE]"
    assert (line["outcome"], line["attempts"], line["status"]) == ("served", 1, 200)


async def test_generator_is_sent_part_by_part(unhandled: list[Any]) -> None:
    async with running_gateway(**STUB) as gateway, streaming(gateway, "/v1/tasks/count", b"") as (reader, _):
        await read_head(reader)
        events, is_whole = await all_events(reader)
    assert [json.loads(each[6:]) for each in events[:3]] == [{"part": 0}, {"part": 1}, {"part": 2}]
    assert events[3].startswith(": timing ")
    assert events[4:] == ["data: [DONE]"]
    assert is_whole
    assert unhandled == []


async def test_timing_comment_is_not_sent_to_remote_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "is_local", lambda _: False)
    async with running_gateway(**STUB) as gateway, streaming(gateway, "/v1/tasks/count", b"") as (reader, _):
        await read_head(reader)
        events, _ = await all_events(reader)
    assert [each for each in events if each.startswith(":")] == []
    assert events[-1] == "data: [DONE]"


# ── broken streams ───────────────────────────────────────────────────────────────────────────────


async def resets(talk: Talk) -> None:
    await talk.send(OPENING + event(said("to ")) + event(said("be")))
    await asyncio.sleep(0)
    talk.reset()


async def hangs_up(talk: Talk) -> None:
    await talk.send(OPENING + event(said("to ")) + event(said("be")))
    talk.cut()


async def ends_too_early(talk: Talk) -> None:
    await talk.send(OPENING + event(said("to ")) + event(said("be")) + LAST_CHUNK)


async def sends_invalid_json(talk: Talk) -> None:
    await talk.send(OPENING + event(said("to ")) + event(said("be")) + chunk(b"data: {half\n\n"))


async def reports_an_error(talk: Talk) -> None:
    await talk.send(OPENING + event(said("to ")) + event(said("be")) + event({"error": {"message": "out of memory"}}))


CUTS = [resets, hangs_up, ends_too_early, sends_invalid_json, reports_an_error]


@pytest.mark.parametrize("script", CUTS, ids=lambda script: script.__name__)
async def test_cut_stream_ends_in_an_error_and_an_aborted_connection(script: Script, unhandled: list[Any]) -> None:
    async with relaying(chatting(script), MODELS="gpt") as (gateway, _), streaming(gateway) as (reader, _):
        status, headers = await read_head(reader)
        raw = await read_to_end(reader)
        line = await gateway.line()
    assert status == 200
    assert not raw.endswith(b"0\r\n\r\n")
    assert b"[DONE]" not in raw
    last = json.loads(raw.rstrip().rpartition(b"data: ")[2])["error"]
    assert (last["code"], last["request_id"]) == (line["reason"], headers["x-request-id"])
    assert (line["outcome"], line["status"]) == ("failed", 200)
    assert last["message"].startswith(line["error"])
    assert line["bytes_out"] > 0
    assert unhandled == []


@pytest.mark.parametrize("script", CUTS, ids=lambda script: script.__name__)
async def test_openai_client_raises_when_a_stream_is_cut(script: Script) -> None:
    async with relaying(chatting(script), MODELS="gpt") as (gateway, _), client(gateway) as ai:
        stream = await ai.chat.completions.create(model="gpt", messages=[{"role": "user", "content": "x"}], stream=True)
        with pytest.raises((openai.APIError, openai.APIConnectionError)):
            async for _ in stream:
                pass


async def test_http_1_0_client_sees_a_cut_stream_as_a_reset() -> None:
    async with relaying(chatting(hangs_up), MODELS="gpt") as (gateway, _), connected(gateway.url) as (reader, writer):
        writer.write(post("/v1/chat/completions", asked()).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
        heard = await reader.readuntil(b'"error"')
        with pytest.raises(ConnectionResetError):
            await reader.read()
    assert b"to " in heard


async def test_generator_that_raises_midway_ends_in_an_error() -> None:
    async with running_gateway(**STUB) as gateway, streaming(gateway, "/v1/tasks/breaks", b"") as (reader, _):
        await read_head(reader)
        events, is_whole = await all_events(reader)
    assert [json.loads(each[6:]) for each in events[:1]] == [{"part": 0}]
    assert json.loads(events[1][6:])["error"]["message"] == "the desk broke in the middle"
    assert len(events) == 2
    assert not is_whole


async def test_stalled_stream_ends_in_a_deadline_error() -> None:
    gone = asyncio.Event()
    script = chatting(stall(OPENING + event(said("to ")), gone=gone))
    environ = {"GATEWAY_STALL_S": "0.05"}
    async with relaying(script, MODELS="gpt", environ=environ) as (gateway, _), streaming(gateway) as (reader, _):
        await read_head(reader)
        events, is_whole = await all_events(reader)
        await asyncio.wait_for(gone.wait(), 5)
        line = await gateway.line()
    assert (contents(events), is_whole) == ("to ", False)
    assert json.loads(events[-1][6:])["error"]["code"] == "deadline_exceeded"
    assert line["outcome"] == "timed_out"


async def test_stream_without_content_within_the_first_byte_timeout_is_504() -> None:
    gone = asyncio.Event()
    script = chatting(stall(OPENING + event(ROLE), gone=gone))
    environ = {"GATEWAY_FIRST_BYTE_S": "0.05"}
    async with relaying(script, MODELS="gpt", environ=environ) as (gateway, _), streaming(gateway) as (reader, _):
        status, _ = await read_head(reader)
        await asyncio.wait_for(gone.wait(), 5)
    assert status == 504


# ── disconnecting and slow clients ───────────────────────────────────────────────────────────────


async def closed_after_s(script_of: Callable[[asyncio.Event], Script], *, reads: bool) -> float:
    """Return the seconds from the client's disconnect until the upstream sees it."""
    began, gone = asyncio.Event(), asyncio.Event()

    async def script(talk: Talk) -> None:
        began.set()
        await script_of(gone)(talk)

    async with relaying(chatting(script), MODELS="gpt") as (gateway, _):
        async with streaming(gateway, body=asked(stream=reads)) as (reader, writer):
            await began.wait()
            if reads:
                await read_head(reader)
                await next_event(reader)
            left_at = asyncio.get_running_loop().time()
            writer.transport.abort()
            await asyncio.wait_for(gone.wait(), 5)
            seconds = asyncio.get_running_loop().time() - left_at
        line = await gateway.line()
        assert (line["outcome"], line["backend"]) == ("cancelled", "cloud")
        assert line["status"] == (200 if reads else None)
    return seconds


async def test_client_that_leaves_a_stream_closes_the_upstream_within_100_ms() -> None:
    def script(gone: asyncio.Event) -> Script:
        return stall(OPENING + event(said("to ")), gone=gone)

    assert min([await closed_after_s(script, reads=True) for _ in range(ATTEMPTS)]) <= 0.1


async def test_client_that_leaves_before_the_response_closes_the_upstream_within_100_ms() -> None:
    assert min([await closed_after_s(lambda gone: stall(gone=gone), reads=False) for _ in range(ATTEMPTS)]) <= 0.1


async def test_queued_request_is_removed_when_its_client_disconnects() -> None:
    environ = STUB | {"GATEWAY_BACKENDS__DESK__SLOTS": "1"}
    async with running_gateway(**environ) as gateway, connected(gateway.url) as (_, first):
        first.write(post("/v1/tasks/wait"))
        await StubBackend.waiting.wait()
        async with connected(gateway.url) as (_, second):
            second.write(post("/v1/tasks/wait", b'{"who":2}'))
            await wait_until(lambda: gateway.service.scheduler.waiting()["desk"] == 1)
            second.transport.abort()
            line = await gateway.line(outcome="cancelled")
        assert gateway.service.scheduler.waiting()["desk"] == 0
        assert (line["t_queue_ms"] > 0, line["t_edge_ms"]) == (True, 0)
        assert not StubBackend.callers[2].is_set()
        assert not StubBackend.left.is_set()


async def test_client_that_does_not_read_a_stream_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_writer, "WRITE_TIMEOUT_S", 0.1)
    script = chatting(endless(OPENING, event(said("x" * 60_000))))
    async with relaying(script, MODELS="gpt") as (gateway, upstream), streaming(gateway):
        line = await gateway.line()
        await wait_until(lambda: not upstream._talks)
    assert line["outcome"] == "cancelled"
    assert line["t_write_ms"] >= 90


async def test_slow_reader_applies_backpressure_to_the_backend() -> None:
    pieces = 0

    async def counting(talk: Talk) -> None:
        nonlocal pieces
        await talk.send(OPENING)
        while True:
            await talk.send(event(said("x" * 60_000)))
            pieces += 1

    async with relaying(chatting(counting), MODELS="gpt") as (gateway, _), streaming(gateway) as (reader, _):
        await read_head(reader)
        await settled(lambda: pieces)
        assert 0 < pieces * 60_000 < 64 << 20
        before = pieces
        for _ in range(200):
            await next_event(reader)
        await wait_until(lambda: pieces > before)


async def settled(value: Callable[[], int], turns: int = 2000) -> None:
    """Run the event loop until `value` was constant for `turns` iterations."""
    async with asyncio.timeout(10):
        seen, same = -1, 0
        while same < turns:
            await asyncio.sleep(0)
            same = same + 1 if value() == seen else 0
            seen = value()


# ── fallback before the first content ────────────────────────────────────────────────────────────


async def dies_after_its_role(talk: Talk) -> None:
    await talk.send(OPENING + event(ROLE))
    talk.cut()


async def errs_in_its_first_event(talk: Talk) -> None:
    await talk.send(OPENING + event({"error": {"message": "overloaded"}}) + LAST_CHUNK)


async def is_empty(talk: Talk) -> None:
    await talk.send(OPENING + LAST_CHUNK)


@pytest.mark.parametrize("first", [dies_after_its_role, errs_in_its_first_event, is_empty], ids=lambda s: s.__name__)
async def test_backend_that_dies_before_its_first_content_is_hidden_from_the_client(first: Script) -> None:
    second = sse(said(delta={"role": "assistant", "content": ""}), said("whole"), FINISH)
    async with Upstream(chatting(first)) as bad, Upstream(chatting(second)) as good:
        environ = cloud(bad.url, "cheap", MODELS="gpt") | cloud(good.url, "dear", MODELS="gpt", USD_PER_REQUEST="9")
        async with running_gateway(**environ, GATEWAY_POLICY__USD="1") as gateway, streaming(gateway) as (reader, _):
            status, headers = await read_head(reader)
            events, is_whole = await all_events(reader)
            line = await gateway.line()
    assert (status, headers["x-gateway-backend"], headers["x-gateway-attempts"]) == (200, "dear", "2")
    assert (contents(events), is_whole, events[-1]) == ("whole", True, "data: [DONE]")
    assert sum("role" in each for each in events) == 1
    assert "error" not in "".join(events)
    assert (line["reason"], line["attempts"], line["outcome"]) == ("fell-back", 2, "served")
    asked_of = [len([r for r in each.requests if r.method == "POST"]) for each in (bad, good)]
    assert asked_of == [1, 1]


async def test_backend_generating_other_text_does_not_continue_after_the_first_content() -> None:
    async with Upstream(chatting(hangs_up)) as bad, Upstream(chatting(sse(said("other"), FINISH))) as good:
        environ = cloud(bad.url, "cheap", MODELS="gpt") | cloud(good.url, "dear", MODELS="gpt", USD_PER_REQUEST="9")
        async with running_gateway(**environ, GATEWAY_POLICY__USD="1") as gateway, streaming(gateway) as (reader, _):
            await read_head(reader)
            events, is_whole = await all_events(reader)
    assert (contents(events), is_whole) == ("to be", False)
    assert len([r for r in good.requests if r.method == "POST"]) == 1


# ── other relayed requests ────────────────────────────────────────────────────────────────────────


async def test_events_are_relayed_when_the_path_has_no_known_stream_option() -> None:
    spoken = {"type": "speech.audio.delta", "audio": "AAAA"}
    script = by_path({"/v1/audio/speech": sse(spoken, {"type": "speech.audio.done"}, done=False)})
    body = b'{"model":"gpt","input":"x","voice":"v","stream_format":"sse"}'
    async with (
        relaying(script, MODELS="gpt") as (gateway, _),
        streaming(gateway, "/v1/audio/speech", body) as (reader, _),
    ):
        await read_head(reader)
        events, is_whole = await all_events(reader)
    assert is_whole
    assert json.loads(events[0][6:]) == spoken


async def test_a_relayed_request_keeps_its_query() -> None:
    script = by_path({"/v1/messages?beta=true&x=%2F": answer(json={"id": "m", "content": []})})
    async with relaying(script, MODELS="gpt") as (gateway, upstream):
        got = await answered(gateway.url, post("/v1/messages?beta=true&x=%2F", b'{"model":"gpt"}'))
        assert got.status == 200
        chat = b'{"model":"gpt","messages":[{"role":"user","content":"x"}]}'
        await answered(gateway.url, post("/v1/chat/completions?beta=true", chat))
        await answered(
            gateway.url, post("/v1/messages?api_key=x&beta=true&Access-Token=y&z=egw_a_b", b'{"model":"gpt"}')
        )
    paths = [request.path for request in upstream.requests if request.method == "POST"]
    assert paths[-2:] == ["/v1/chat/completions", "/v1/messages?beta=true"]


# ── openai-python ────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def client(gateway: RunningGateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as ai:
        yield ai


Streamed = Callable[[openai.AsyncOpenAI, str], Awaitable[list[Any]]]


async def chunks_of(ai: openai.AsyncOpenAI, model: str, **options: Any) -> list[Any]:
    messages: Any = [{"role": "user", "content": "x"}]
    return [
        each async for each in await ai.chat.completions.create(model=model, messages=messages, stream=True, **options)
    ]


@pytest.mark.parametrize("with_usage", [True, False])
async def test_openai_client_reads_a_stream_generated_by_the_gateway(with_usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if with_usage else {}
    async with running_gateway(**STUB) as gateway, client(gateway) as ai:
        chunks = await chunks_of(ai, "clerk", **options)
    spoken = [each for each in chunks if each.choices]
    assert "".join(each.choices[0].delta.content or "" for each in spoken) == "to be or not"
    assert spoken[0].choices[0].delta.role == "assistant"
    assert spoken[-1].choices[0].finish_reason == "stop"
    assert {each.model for each in chunks} == {"clerk"}
    assert len({each.id for each in chunks}) == 1
    assert [each.usage.total_tokens for each in chunks if each.usage] == ([7] if with_usage else [])
    assert (chunks[-1].choices == []) is with_usage


async def test_openai_client_reads_a_relayed_stream_with_its_usage() -> None:
    usage = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4.1-2025", "choices": [],
             "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}  # fmt: skip
    script = chatting(sse(ROLE, said("to "), said("be"), FINISH, usage))
    async with relaying(script, MODELS='{"assistant":"gpt"}') as (gateway, upstream), client(gateway) as ai:
        chunks = await chunks_of(ai, "assistant", stream_options={"include_usage": True})
    assert "".join(each.choices[0].delta.content or "" for each in chunks if each.choices) == "to be"
    assert chunks[-1].usage.total_tokens == 3
    assert {each.model for each in chunks} == {"assistant"}
    sent = next(r for r in upstream.requests if r.method == "POST").json
    assert (sent["model"], sent["stream_options"]) == ("gpt", {"include_usage": True})


async def test_client_without_stream_gets_a_whole_response_from_a_streaming_backend() -> None:
    async with running_gateway(**STUB) as gateway, client(gateway) as ai:
        got = await ai.chat.completions.create(model="clerk", messages=[{"role": "user", "content": "x"}])
        raw = await ai.completions.with_raw_response.create(model="clerk", prompt="x")
    assert (got.choices[0].message.content, got.choices[0].finish_reason) == ("to be or not", "stop")
    assert got.usage is not None
    assert got.usage.total_tokens == 7
    assert raw.parse().choices[0].text == "to be or not"
    assert raw.headers["x-gateway-site"] == "edge"


async def test_openai_client_raises_the_matching_class_for_each_error() -> None:
    async with running_gateway(**STUB) as gateway, client(gateway) as ai:
        with pytest.raises(openai.NotFoundError) as caught:
            await chunks_of(ai, "clark")
        with pytest.raises(openai.BadRequestError):
            await ai.chat.completions.create(model="", messages=[])
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert "'clerk'" in str(caught.value)
