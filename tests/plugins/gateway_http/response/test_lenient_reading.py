"""Codings, content types and framings of events that deviate from the standards, and what clients receive for them."""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from typing import Any

import pytest

from gateway.plugin import BackendUnavailable
from support.http_backend import chat, opened, parts, result
from support.upstream import CHUNKED, EVENTS, LAST_CHUNK, Script, Talk, Upstream, answer, chunk, head, sends

DONE = b"data: [DONE]\n\n"
TEXTS = ["one", "two", "three"]


def data_of(text: str, reason: str | None = None, **more: Any) -> str:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason, **more}
    return json.dumps({"object": "chat.completion.chunk", "choices": [choice]})


DATA = [*map(data_of, TEXTS[:2]), data_of(TEXTS[2], "stop"), "[DONE]"]
STREAM = "".join(f"data: {each}\n\n" for each in DATA).encode()


async def events_of(script: Script) -> list[bytes]:
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        return await parts(backend, chat(stream=True))


def labelled(body: bytes, *headers: tuple[str, str]) -> Script:
    return sends(head(200, [CHUNKED, *headers]) + chunk(body) + LAST_CHUNK)


# --- codings ----------------------------------------------------------------------------------------------------------

WBITS = {"gzip": 31, "deflate": 15, "raw deflate": -15}


def coding(name: str) -> tuple[str, str]:
    return "Content-Encoding", name.removeprefix("raw ")


@pytest.mark.parametrize("name", WBITS)
async def test_compressed_event_arrives_before_the_upstream_sends_the_next(name: str) -> None:
    compressor = zlib.compressobj(wbits=WBITS[name])
    received = asyncio.Event()

    async def one_by_one(talk: Talk) -> None:
        await talk.send(head(200, [EVENTS, CHUNKED, coding(name)]))
        for each in DATA:
            received.clear()
            data = compressor.compress(f"data: {each}\n\n".encode()) + compressor.flush(zlib.Z_SYNC_FLUSH)
            await talk.send(chunk(data))
            if each != "[DONE]":
                await received.wait()
        await talk.send(LAST_CHUNK)  # without the compressor's own end, as of servers that only flush

    got = []
    async with Upstream(one_by_one) as upstream, opened(upstream.url) as (backend, _):
        async for part in backend.run(chat(stream=True)):
            got.append(part.raw)
            received.set()
    assert got == [f"data: {each}\n\n".encode() for each in DATA]


async def test_corrupt_or_unknown_coding_of_a_stream_is_a_failure_that_names_it() -> None:
    for name, body, text in (("gzip", b"\x1f\x8bxxxxxxxxxxxx", "corrupt"), ("br", b"x", "Content-Encoding br")):
        with pytest.raises(BackendUnavailable, match=text):
            await events_of(labelled(body, EVENTS, coding(name)))


async def test_untyped_stream_is_cut_when_its_compressed_data_is() -> None:
    task = chat(path="/v1/responses", stream=True).replace(kind="other")
    whole = zlib.compress(b'data: {"type":"custom"}\n\n' * 50)
    for body, is_whole in ((whole, True), (whole[:-4], False)):
        script = labelled(body, EVENTS, coding("deflate"))
        async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
            if is_whole:
                assert len(await parts(backend, task)) == 50
                continue
            with pytest.raises(BackendUnavailable, match="cut"):
                await parts(backend, task.replace(deadline=time.monotonic() + 5))


# --- content types ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "media",
    [
        "text/plain",
        "text/plain; charset=utf-8",
        "application/json",
        "application/octet-stream",
        "application/x-ndjson",
        None,
    ],
)
@pytest.mark.parametrize("start", [b"", b": hi\n\n", b"\xef\xbb\xbf", b"event: message\n", b"\r\n"])
async def test_event_stream_is_recognised_under_another_label(media: str | None, start: bytes) -> None:
    headers = [] if media is None else [("Content-Type", media)]
    got = await events_of(labelled(start + STREAM, *headers))
    assert [each.split(b"data: ")[1] for each in got] == [f"{each}\n\n".encode() for each in DATA]


COMPLETION = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]}


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("media", ["text/plain", "application/octet-stream", "application/json", None])
async def test_whole_json_is_accepted_under_another_label_and_relabelled(media: str | None, stream: bool) -> None:
    script = answer(json=COMPLETION, content_type=media)
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        got = await result(backend, chat(stream=stream))
    assert (got.value(), got.content_type) == (COMPLETION, "application/json")


async def test_label_of_a_stream_is_not_guessed_for_an_error_or_a_page() -> None:
    for media, body in (("text/plain", b"upstream is busy"), ("text/html", STREAM)):
        with pytest.raises(BackendUnavailable):
            await events_of(labelled(body, ("Content-Type", media)))


# --- framing ----------------------------------------------------------------------------------------------------------

FRAMINGS = {
    "single newlines": "".join(f"data: {each}\n" for each in DATA),
    "capitals": "".join(f"Data: {each}\n\n" for each in DATA),
    "NDJSON": "".join(f"{each}\n" for each in DATA[:3]) + "data: [DONE]\n\n",
}


@pytest.mark.parametrize("name", FRAMINGS)
async def test_deviating_framing_is_written_as_events(name: str) -> None:
    assert await events_of(labelled(FRAMINGS[name].encode(), EVENTS)) == [f"data: {each}\n\n".encode() for each in DATA]


async def test_bare_error_under_the_label_of_a_stream_is_the_clients_400() -> None:
    error = {"code": 400, "message": "request (6009 tokens) exceeds the available context size (4096 tokens)"}
    error["type"] = "exceed_context_size_error"
    script = labelled(json.dumps({"error": error}).encode(), EVENTS)
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        got = await result(backend, chat(stream=True))
    assert (got.status, got.value()) == (400, {"error": error})


# --- numbers that JSON does not have ----------------------------------------------------------------------------------


async def test_logprob_that_is_not_finite_is_replaced_in_an_event() -> None:
    logprobs = {"content": [{"token": "NaN", "logprob": -float("inf")}], "x": float("nan")}
    body = f"data: {data_of('Infinity', 'stop', logprobs=logprobs)}\n\n".encode() + DONE
    (event, _) = await events_of(labelled(body, EVENTS))
    choice = json.loads(event[6:], parse_constant=pytest.fail)["choices"][0]
    assert choice["logprobs"] == {"content": [{"token": "NaN", "logprob": -9999.0}], "x": None}
    assert choice["delta"]["content"] == "Infinity"


async def test_numbers_that_are_not_finite_are_replaced_in_a_whole_response() -> None:
    timings = {"timings": {"ms": float("nan"), "logprob": -float("inf")}}
    async with Upstream(answer(json=COMPLETION | timings)) as upstream, opened(upstream.url) as (backend, _):
        got = await result(backend, chat())
    assert json.loads(got.body or b"", parse_constant=pytest.fail) == COMPLETION | {
        "timings": {"ms": None, "logprob": -9999.0}
    }


async def test_vector_with_a_number_that_is_not_finite_is_a_failure() -> None:
    body = {"data": [{"embedding": [1.0, float("nan")]}]}
    async with Upstream(answer(json=body)) as upstream, opened(upstream.url) as (backend, _):
        with pytest.raises(BackendUnavailable, match="embedding"):
            await result(backend, chat(path="/v1/embeddings").replace(kind="embeddings"))
