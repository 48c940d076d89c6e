"""Streams whose upstream sends a finish reason before the end, as Gemini's OpenAI-style servers do in every chunk."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from support.chat_upstreams import DONE, QUESTION, ChatUpstream, ask, between, breaks, event, talking
from support.upstream import LAST_CHUNK, Script, Talk, cut, reset, sends_and_cuts
from support.wiring import relaying

SPEAKER = ChatUpstream()
WORDS = ["one ", "two ", "three ", "four ", "five ", "six"]
CHUNKS = [event(SPEAKER.said(delta={"content": word}, finish_reason="stop")) for word in WORDS]
TEXT = "".join(WORDS)
QUIET_S = 0.6

BOTH = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])


def paced(*pieces: bytes, pause_s: float = QUIET_S / 2) -> Script:
    """A stream of these pieces, apart by a pause that is shorter than the quiet time; all together longer."""

    async def script(talk: Talk) -> None:
        await talk.send(SPEAKER.opening())
        for piece in pieces:
            await talk.send(piece)
            await asyncio.sleep(pause_s)  # the pause is the subject
        await talk.gone()

    return script


@pytest.fixture
def short_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway_http.response.relay.QUIET_S", QUIET_S)


async def chunks_from(script: Script) -> list[Any]:
    async with (
        relaying(talking(script), MODELS="gpt") as (gateway, _),
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as ai,
    ):
        said = await ai.chat.completions.create(model="gpt", messages=[QUESTION], stream=True)
        return [chunk async for chunk in said]


@BOTH
@pytest.mark.usefixtures("short_quiet")
@pytest.mark.parametrize("ending", [(DONE + LAST_CHUNK,), (LAST_CHUNK,), ()], ids=["done", "body", "silence"])
async def test_all_chunks_arrive_when_each_has_a_finish_reason(ending: tuple[bytes, ...], stream: bool) -> None:
    async with relaying(talking(paced(*CHUNKS, *ending)), MODELS="gpt") as (gateway, _):
        assert await ask(gateway, stream=stream) == TEXT
        assert (await gateway.line())["outcome"] == "served"


@pytest.mark.usefixtures("short_quiet")
async def test_comments_do_not_keep_a_finished_stream_open() -> None:
    async def commenting(talk: Talk) -> None:
        await talk.send(SPEAKER.opening() + CHUNKS[0])
        for _ in range(100):
            await talk.send(b"4\r\n: \n\n\r\n")
            await asyncio.sleep(QUIET_S / 6)  # an upstream that only comments is the subject

    async with asyncio.timeout(100 * QUIET_S / 6):
        assert len(await chunks_from(commenting)) == 2


@pytest.mark.usefixtures("short_quiet")
async def test_tool_call_after_a_finish_reason_is_relayed() -> None:
    call = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    reasoning = event(SPEAKER.said(delta={"reasoning_content": "hm"}, finish_reason="stop"))
    calling = event(SPEAKER.said(delta={"tool_calls": [call]}, finish_reason="stop"))
    got = await chunks_from(paced(reasoning, CHUNKS[0], calling, DONE + LAST_CHUNK))
    assert [c.choices[0].delta.tool_calls[0].function.name for c in got if c.choices[0].delta.tool_calls] == ["f"]


@pytest.mark.usefixtures("short_quiet")
async def test_last_chunk_of_usage_is_relayed_after_a_pause() -> None:
    usage = event({**SPEAKER.said(), "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})
    assert (await chunks_from(paced(CHUNKS[0], usage, DONE + LAST_CHUNK)))[-1].usage.prompt_tokens == 1


@BOTH
@pytest.mark.parametrize("broken", [cut(), reset()], ids=["cut", "reset"])
async def test_break_is_no_end_when_content_has_followed_a_finish_reason(broken: Script, stream: bool) -> None:
    async def breaking(talk: Talk) -> None:
        await talk.send(SPEAKER.opening() + b"".join(CHUNKS[:3]))
        await broken(talk)

    async with relaying(talking(breaking), MODELS="gpt") as (gateway, _):
        with pytest.raises(openai.APIError):
            await ask(gateway, stream=stream)
        assert (await gateway.line())["outcome"] != "served"


async def test_broken_stream_of_finish_reasons_is_continued_by_another_backend() -> None:
    chunks = [event(SPEAKER.said(delta={"content": word}, finish_reason="stop")) for word in SPEAKER.words[:4]]
    breaking = sends_and_cuts(SPEAKER.opening() + b"".join(chunks))
    async with between(breaking, ChatUpstream(name="b"), RESUME="prefill") as (gateway, *_):
        assert await ask(gateway) == "".join(SPEAKER.words)


async def test_break_after_a_last_finish_reason_is_the_end() -> None:
    last = event(SPEAKER.said(finish_reason="stop"))
    async with relaying(talking(breaks(sends_and_cuts(last))), MODELS="gpt") as (gateway, _):
        assert await ask(gateway) == "".join(SPEAKER.words[:4])
