"""Streams that break after content: continued by another backend, or an error."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from gateway.ingress import handler
from gateway.testing import RunningGateway, running_gateway
from support.chat_upstreams import (
    QUESTION,
    TEXT,
    USAGE,
    WORDS,
    ChatUpstream,
    asked,
    between,
    breaks,
    event,
    refuses,
    talking,
)
from support.upstream import LAST_CHUNK, Script, Talk, Upstream, cut, reset, sends, stall
from support.wiring import cloud

SO_FAR = "".join(WORDS[:4])
PREFILL = {"RESUME": "prefill"}


async def chunks_of(gateway: RunningGateway, *, model: str = "gpt", **more: Any) -> list[Any]:
    """Return the chunks openai-python reads.

    Raises openai.OpenAIError with the chunks so far in `.chunks`.
    """
    heard: list[Any] = []
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as ai:
        try:
            async for chunk in await ai.chat.completions.create(model=model, messages=[QUESTION], stream=True, **more):
                heard.append(chunk)
        except openai.OpenAIError as exc:
            exc.chunks = heard  # type: ignore[attr-defined]
            raise
    return heard


def text_of(chunks: list[Any]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def only(values: Any) -> Any:
    (one,) = set(values)
    return one


FAULTS: dict[str, Script] = {
    "cut": cut(),
    "reset": reset(),
    "ends without an end": sends(LAST_CHUNK),
    "invalid JSON": sends(event("{")),
    "an error event": sends(event({"error": {"message": "out of memory"}})),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_broken_stream_is_continued_by_a_backend_given_the_text_so_far(fault: str) -> None:
    async with between(breaks(FAULTS[fault]), ChatUpstream(name="b"), **PREFILL) as (gateway, one, two):
        chunks = await chunks_of(gateway)
        line = await gateway.line()
    assert text_of(chunks) == TEXT
    assert asked(two) == [{**asked(one)[0], "messages": [QUESTION, {"role": "assistant", "content": SO_FAR}]}]
    assert (line["outcome"], line["reason"], line["backend"], line["attempts"]) == ("served", "resumed", "two", 2)
    (event_,) = gateway.lines.of("dispatch.resumed")
    assert (event_["backend"], event_["next"], event_["how"]) == ("one", "two", "prefill")


async def test_continued_stream_has_one_id_model_role_end_and_usage() -> None:
    async with between(breaks(cut()), ChatUpstream(name="b"), **PREFILL) as (gateway, *_):
        chunks = await chunks_of(gateway, stream_options={"include_usage": True})
    assert only(chunk.id for chunk in chunks) == "id-a"
    assert only(chunk.model for chunk in chunks) == "model-a"
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert [choice.delta.role for choice in choices if choice.delta.role] == ["assistant"]
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"]
    assert [chunk.usage.to_dict() for chunk in chunks if chunk.usage] == [USAGE]


async def test_continuing_backend_that_repeats_the_given_text_adds_no_duplicate() -> None:
    async with between(breaks(cut()), ChatUpstream(name="b", repeats=True), **PREFILL) as (gateway, *_):
        assert text_of(await chunks_of(gateway)) == TEXT


async def test_backend_that_rejects_a_continuation_is_sent_the_original_request() -> None:
    async with between(breaks(cut()), ChatUpstream(name="b", continues=False), **PREFILL) as (gateway, one, two):
        chunks = await chunks_of(gateway)
        line = await gateway.line()
    assert text_of(chunks) == TEXT
    assert [len(request["messages"]) for request in asked(two)] == [2, 1]
    assert (line["outcome"], line["backend"], line["attempts"]) == ("served", "two", 3)
    assert asked(two)[1] == asked(one)[0]


async def test_broken_stream_is_continued_by_a_backend_that_generates_the_same_text() -> None:
    async with between(breaks(reset()), ChatUpstream(name="b")) as (gateway, one, two):
        chunks = await chunks_of(gateway, stream_options={"include_usage": True})
    assert text_of(chunks) == TEXT
    assert asked(two) == asked(one)
    assert only(chunk.id for chunk in chunks) == "id-a"
    assert [chunk.usage.to_dict() for chunk in chunks if chunk.usage] == [USAGE]


@pytest.mark.parametrize(
    "other",
    [["Another ", "thing."], WORDS[:3], [SO_FAR[:-1]], [], ["A stream is to", "ld, ", "and more"]],
    ids=["differs", "shorter", "one letter short", "silent", "differs later"],
)
async def test_stream_ends_in_an_error_when_the_next_backend_generates_other_text(other: list[str]) -> None:
    async with between(breaks(cut()), ChatUpstream(name="b", words=other)) as (gateway, *_):
        with pytest.raises(openai.APIError) as raised:
            await chunks_of(gateway)
        line = await gateway.line()
    assert text_of(raised.value.chunks) == SO_FAR  # type: ignore[attr-defined]
    assert (line["status"], line["outcome"], line["attempts"]) == (200, "failed", 2)
    assert "broke off its response" in line["error"]  # the error of the first backend


async def test_second_break_is_continued_by_a_third_backend() -> None:
    environ = cloud("http://x", "three", MODELS="gpt", RESUME="prefill", USD_PER_REQUEST="99")

    async def breaks_again(talk: Talk) -> None:
        await breaks(cut(), after=3, speaker=ChatUpstream(name="b", words=WORDS[4:]))(talk)

    async with Upstream(talking(ChatUpstream(name="c"))) as three:
        environ["GATEWAY_BACKENDS__THREE__URL"] = three.url
        async with between(breaks(cut()), breaks_again, environ=environ, **PREFILL) as (gateway, *_):
            chunks = await chunks_of(gateway)
    assert text_of(chunks) == TEXT
    assert asked(three)[0]["messages"][-1] == {"role": "assistant", "content": "".join(WORDS[:7])}
    assert only(chunk.id for chunk in chunks) == "id-a"


async def test_stream_broken_in_the_cloud_is_continued_at_the_edge() -> None:
    async with Upstream(talking(breaks(cut()))) as one:
        environ = cloud(one.url, "one", MODELS="clerk") | {
            "GATEWAY_BACKENDS__DESK__PLUGIN": "support.stub_backend:StubBackend",
            "GATEWAY_BACKENDS__DESK__USD_PER_REQUEST": "9",
            "GATEWAY_POLICY__USD": "1",
        }
        one.script = talking(breaks(cut(), after=2, speaker=ChatUpstream(words=["to ", "be ", "and so on"])))
        async with (
            running_gateway(**environ) as gateway,
            openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as ai,
        ):
            options = {"include_usage": True}
            stream = await ai.chat.completions.create(
                model="clerk", messages=[QUESTION], stream=True, stream_options=options
            )
            chunks = [chunk async for chunk in stream]
    assert text_of(chunks) == "to be or not"
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == ["stop"]
    assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == [7]
    assert only(chunk.id for chunk in chunks) == "id-a"


async def test_stalled_stream_is_continued_by_another_backend() -> None:
    environ = {"GATEWAY_STALL_S": "0.1"}
    gone = asyncio.Event()
    async with between(breaks(stall(gone=gone)), ChatUpstream(name="b"), environ=environ, **PREFILL) as (gateway, *_):
        assert text_of(await chunks_of(gateway)) == TEXT
        await asyncio.wait_for(gone.wait(), 5)


async def test_broken_text_completion_is_continued_from_prompt_and_text_so_far() -> None:
    def completion(text: str, finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "text": text, "finish_reason": finish_reason}
        return event({"id": "c", "object": "text_completion", "created": 1, "model": "gpt", "choices": [choice]})

    async def first(talk: Talk) -> None:
        await talk.send(
            ChatUpstream().opening()[: ChatUpstream().opening().index(b"\r\n\r\n") + 4] + completion("two ")
        )
        talk.cut()

    async def second(talk: Talk) -> None:
        opening = ChatUpstream().opening()
        await talk.send(opening[: opening.index(b"\r\n\r\n") + 4] + completion("three", "stop") + LAST_CHUNK)

    async with between(first, second, **PREFILL) as (gateway, one, two):
        one.script, two.script = first, second
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as ai:
            stream = await ai.completions.create(model="gpt", prompt="one ", stream=True)
            said = "".join([chunk.choices[0].text async for chunk in stream])
    assert said == "two three"
    assert [request.json["prompt"] for request in two.requests if request.method == "POST"] == ["one two "]


async def test_stream_with_a_tool_call_is_not_continued() -> None:
    call = {"index": 0, "id": "t", "type": "function", "function": {"name": "f", "arguments": "{"}}

    async def calls_a_tool(talk: Talk) -> None:
        await talk.send(ChatUpstream().opening() + event(ChatUpstream().said(delta={"tool_calls": [call]})))
        talk.cut()

    async with between(calls_a_tool, ChatUpstream(name="b"), **PREFILL) as (gateway, _, two):
        with pytest.raises(openai.APIError):
            await chunks_of(gateway)
    assert asked(two) == []


async def test_edge_only_stream_is_not_continued_in_the_cloud() -> None:
    async with Upstream(talking(breaks(cut()))) as one, Upstream(talking(ChatUpstream(name="b"))) as two:
        environ = cloud(one.url, "one", MODELS="gpt", SITE="edge") | cloud(two.url, "two", MODELS="gpt", **PREFILL)
        async with running_gateway(**environ) as gateway:
            with pytest.raises(openai.APIError):
                await chunks_of(gateway, extra_headers={"x-gateway-locality": "edge-only"})
    assert asked(two) == []


async def test_stream_of_a_pinned_backend_is_not_continued_elsewhere() -> None:
    async with between(breaks(cut()), ChatUpstream(name="b"), **PREFILL) as (gateway, _, two):
        with pytest.raises(openai.APIError):
            await chunks_of(gateway, model="one/gpt")
    assert asked(two) == []


async def test_client_receives_comments_while_another_backend_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "HEARTBEAT_S", 0.02)
    may_speak = asyncio.Event()

    async def thinks(talk: Talk) -> None:
        await may_speak.wait()
        await ChatUpstream(name="b")(talk)

    async with between(breaks(cut()), thinks, **PREFILL) as (gateway, *_), gateway.session() as http:
        body = {"model": "gpt", "messages": [QUESTION], "stream": True}
        async with http.post(f"{gateway.url}/v1/chat/completions", json=body) as got:
            heard = b""
            while heard.count(b": keep-alive\n\n") < 2:
                heard += await got.content.readany()
            may_speak.set()
            heard += await got.content.read()
    assert heard.endswith(b"data: [DONE]\n\n")


async def test_client_disconnect_cancels_the_continuing_backend() -> None:
    waits, gone = asyncio.Event(), asyncio.Event()

    async def thinks(talk: Talk) -> None:
        waits.set()
        await stall(gone=gone)(talk)

    async with between(breaks(cut()), thinks, **PREFILL) as (gateway, *_), gateway.session() as http:
        body = {"model": "gpt", "messages": [QUESTION], "stream": True}
        got = await http.post(f"{gateway.url}/v1/chat/completions", json=body)
        await waits.wait()
        got.close()
        await asyncio.wait_for(gone.wait(), 5)
        line = await gateway.line()
        assert line["outcome"] == "cancelled"
        assert gateway.service.scheduler.busy() == {"one": 0, "two": 0}


async def test_backend_that_breaks_streams_repeatedly_is_no_longer_tried() -> None:
    async with between(breaks(cut()), ChatUpstream(name="b"), **PREFILL) as (gateway, one, _):
        for _ in range(12):
            assert text_of(await chunks_of(gateway)) == TEXT
    assert len(asked(one)) < 12


async def test_stream_with_a_finish_reason_is_complete_without_its_end() -> None:
    async def hangs_up_after_its_last_word(talk: Talk) -> None:
        speaker = ChatUpstream()
        await talk.send(speaker.opening() + speaker.events(WORDS) + event(speaker.said(finish_reason="stop")))
        talk.reset()

    async with between(hangs_up_after_its_last_word, refuses(500)) as (gateway, _, two):
        assert text_of(await chunks_of(gateway)) == TEXT
    assert asked(two) == []
