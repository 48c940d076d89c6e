"""Relayed responses: audio as it arrives, events only on request."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.ingress import handler
from gateway.testing import RunningGateway, running_gateway
from support.upstream import LAST_CHUNK, Script, Talk, Upstream, answer, by_path, chunk, head, sse
from support.wiring import cloud, relaying

SPEECH, RESPONSES, MESSAGES = "/v1/audio/speech", "/v1/responses", "/v1/messages"
SOUND = [("Content-Type", "audio/mpeg"), ("Transfer-Encoding", "chunked")]


async def post(gateway: RunningGateway, path: str, **more: Any) -> tuple[int, str, bytes]:
    asked = gateway.url + path
    async with gateway.session() as http, http.post(asked, json={"model": "gpt", "input": "x", **more}) as got:
        return got.status, got.content_type, await got.read()


# ── audio ────────────────────────────────────────────────────────────────────────────────────────


def speaks(go_on: asyncio.Event, end: bytes) -> Script:
    """Send the first bytes, and the rest after `go_on` is set."""

    async def script(talk: Talk) -> None:
        await talk.send(head(200, SOUND) + chunk(b"ID3 first"))
        await go_on.wait()
        await talk.send(chunk(b" then the rest") + end)
        if not end:
            talk.cut()

    return script


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("is_whole", [True, False])
async def test_audio_is_relayed_as_it_arrives_and_a_cut_does_not_look_complete(is_whole: bool, stream: bool) -> None:
    go_on = asyncio.Event()
    script = by_path({SPEECH: speaks(go_on, LAST_CHUNK if is_whole else b"")})
    async with relaying(script, MODELS="gpt") as (gateway, _), gateway.session() as http:
        async with http.post(gateway.url + SPEECH, json={"model": "gpt", "input": "x", "stream": stream}) as got:
            assert (got.status, got.content_type) == (200, "audio/mpeg")
            assert await got.content.readexactly(9) == b"ID3 first"
            go_on.set()
            if is_whole:
                assert await got.read() == b" then the rest"
            else:
                with pytest.raises(Exception, match=r"payload|Payload|closed"):
                    await got.read()
        line = await gateway.line()
    assert line["outcome"] == ("served" if is_whole else "failed")


@pytest.mark.parametrize("body", [b'{"error": {"message": "no voice"}}', b""])
async def test_body_declared_as_audio_but_not_audio_is_502_before_the_first_byte(body: bytes) -> None:
    async def script(talk: Talk) -> None:
        await talk.send(head(200, SOUND) + b"".join(chunk(body[at : at + 5]) for at in range(0, len(body), 5)))
        await talk.send(LAST_CHUNK)

    async with relaying(by_path({SPEECH: script}), MODELS="gpt") as (gateway, _):
        assert (await post(gateway, SPEECH))[0] == 502


async def test_late_audio_gets_no_keep_alive_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler, "HEARTBEAT_S", 1e-5)  # every response takes longer than this
    late = answer(b"ID3 late", content_type="audio/mpeg")
    async with relaying(by_path({SPEECH: late}), MODELS="gpt") as (gateway, _):
        assert await post(gateway, SPEECH, stream=True) == (200, "audio/mpeg", b"ID3 late")


# ── events and whole responses ───────────────────────────────────────────────────────────────────


def response(status: str) -> dict[str, Any]:
    return {"id": "r", "object": "response", "model": "gpt", "status": status, "output": []}


@pytest.mark.parametrize("status", ["completed", "incomplete"])
async def test_unrequested_event_stream_is_unpacked_into_a_whole_response(status: str) -> None:
    last = {"type": f"response.{status}", "response": response(status)}
    events = sse({"type": "response.created"}, {"type": "response.output_text.delta", "delta": "hi"}, last, done=False)
    async with relaying(by_path({RESPONSES: events}), MODELS="gpt") as (gateway, _):
        found, media, body = await post(gateway, RESPONSES)
        assert (found, media, json.loads(body)) == (200, "application/json", response(status))


MESSAGE = sse({"type": "message_start"}, {"type": "message_stop"}, done=False)
WHOLE = answer(json={"id": "m", "content": [{"type": "text", "text": "hi"}]})


@pytest.mark.parametrize(("stream", "first", "second"), [(False, MESSAGE, WHOLE), (True, WHOLE, MESSAGE)])
async def test_backend_answering_in_the_wrong_form_falls_back_to_another(
    stream: bool, first: Script, second: Script
) -> None:
    async with Upstream(by_path({MESSAGES: first})) as one, Upstream(by_path({MESSAGES: second})) as two:
        both = cloud(one.url, "one", MODELS="gpt") | cloud(two.url, "two", MODELS="gpt", USD_PER_REQUEST="9")
        async with running_gateway(**both, GATEWAY_POLICY__USD="1") as gateway:
            status, media, _ = await post(gateway, MESSAGES, stream=stream)
            line = await gateway.line()
    assert (status, media) == (200, "text/event-stream" if stream else "application/json")
    assert (line["backend"], line["attempts"]) == ("two", 2)
