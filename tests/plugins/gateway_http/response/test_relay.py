"""Events of a stream: errors, events that are ignored, and the last event."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from gateway.plugin import BackendUnavailable, Result, SseEvent, Task, TaskInvalid
from gateway_http.response.operations import OPERATIONS
from support.http_backend import chat, opened, parts, result
from support.upstream import CHUNKED, EVENTS, LAST_CHUNK, Script, Upstream, chunk, head, sends, sse, sse_bytes, stall

DONE = b"data: [DONE]\n\n"


def content_event(text: str = "hi", reason: str | None = None, index: int = 0) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": {"content": text}, "text": text, "finish_reason": reason}]}


def stream(kind: Any = "chat", path: str = "/v1/chat/completions", **changes: Any) -> Task:
    return chat(path=path, stream=True, deadline_s=3600, **changes).replace(kind=kind)


RESPONSES, MESSAGES = stream("other", "/v1/responses"), stream("other", "/v1/messages")
KINDS = {"chat": stream(), "completion": stream("completion", "/v1/completions")}


def with_deadline(task: Task) -> Task:
    return task.replace(deadline=time.monotonic() + 5)


def raw(*events: bytes) -> Script:
    return sends(head(200, [EVENTS, CHUNKED]), *(chunk(event) for event in events), LAST_CHUNK)


async def fails(task: Task, script: Script) -> BackendUnavailable:
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        with pytest.raises(BackendUnavailable) as failed:
            await parts(backend, with_deadline(task))
    assert failed.value.code == "upstream_bad_response"
    return failed.value


async def relayed(task: Task, script: Script) -> list[bytes]:
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        return await parts(backend, with_deadline(task))


# --- errors without an `error` ----------------------------------------------------------------------------------------

ERRORS = [
    {"object": "error", "message": "boom", "type": "InternalServerError", "param": None, "code": 500},
    {"text": "NETWORK ERROR", "error_code": 50001},
    {"detail": "boom"},
    {"type": "error", "message": "boom"},
    {"message": "boom"},
    {"choices": [], "object": "error", "message": "boom"},
    {"choices": None, "detail": [{"msg": "boom"}]},
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", ERRORS)
async def test_error_event_is_a_failure_first_or_last(error: Any, kind: str) -> None:
    for events in ((error,), (content_event(), error)):
        assert "with an error" in (await fails(KINDS[kind], sse(*events))).message


@pytest.mark.parametrize("error", ERRORS[:4])
async def test_error_event_is_a_failure_in_a_relayed_stream(error: Any) -> None:
    await fails(RESPONSES, sse({"type": "response.created"}, error))


@pytest.mark.parametrize(
    "event",
    [{}, {"usage": {"total_tokens": 1}}, {"choices": [], "prompt_filter_results": []}, {"x_groq": {"id": "r"}},
     {"type": "ping"}, {"choices": [], "object": "chat.completion.chunk", "error": None}, {"choices": None}],
)  # fmt: skip
async def test_event_without_choices_may_be_valid(event: Any) -> None:
    assert len(await relayed(stream(), sse(event, content_event(reason="stop"), event))) == 4


async def test_task_stream_events_may_be_any_json() -> None:
    task = stream("task", "/v1/tasks/t")
    assert len(await relayed(task, sse({"message": "hi"}, {"detail": 1}, {"object": "error"}))) == 4
    assert len(await relayed(task, sse("3", '"hello"', "[1]", {"choices": "abc"}, {"type": 3}))) == 6


# --- malformed events, and valid ones that look malformed -------------------------------------------------------------


@pytest.mark.parametrize("task", [stream(), RESPONSES])
@pytest.mark.parametrize("data", [b'{"choices":[{"delta":{"content":"\xff"}}]}', b"\xff", b'{"error": "\xff"}'])
async def test_event_that_is_not_utf_8_is_malformed(data: bytes, task: Task) -> None:
    assert "malformed event" in (await fails(task, raw(b"data: " + data + b"\n\n"))).message


async def test_null_index_and_heartbeat_events_are_accepted() -> None:
    last = b'data: {"choices":[{"index":null,"delta":{"content":"h"},"finish_reason":"stop"}]}\n\n'
    beats = [b"event: ping\ndata: ping\n\n", b"event: heartbeat\ndata: {}\n\n", b"data:\n\n"]
    assert await relayed(stream(), raw(beats[0], *beats, last, DONE)) == [last, DONE]


def texts(events: list[bytes]) -> str:
    return "".join(json.loads(event.split(b"data: ")[1])["choices"][0]["delta"]["content"] for event in events)


@pytest.mark.parametrize(
    ("pieces", "whole"),
    [
        (["a\ud83d", "\ude00b"], "a\U0001f600b"),
        (["\ud83d", "", "\ude00", "\ud83d\ude00"], "\U0001f600\U0001f600"),
        (["\ud83d", "x", "\ude00", "\ud83d"], "\ufffdx\ufffd"),
        (["\\ud83d", "\u00e9"], "\\ud83d\u00e9"),
    ],
)
async def test_split_surrogate_pairs_are_joined_across_events(pieces: list[str], whole: str) -> None:
    got = await relayed(stream(), sse(*map(content_event, pieces), content_event("", "stop")))
    assert texts(got[:-1]) == whole


async def test_surrogates_of_different_choices_are_not_joined() -> None:
    two = stream(body=b'{"model":"m","messages":[],"n":2}')
    events = [
        content_event("\ud83d", index=0),
        content_event("\ud83c", index=1),
        content_event("\ude00", "stop"),
        content_event("\udf08", "stop", 1),
    ]
    got = await relayed(two, sse(*events))
    assert texts(got[2:3]) == "\U0001f600"
    assert texts(got[3:4]) == "\U0001f308"


@pytest.mark.parametrize("error", ["", {}, False])
async def test_empty_error_field_is_a_failure_only_without_choices(error: Any) -> None:
    healthy = content_event(reason="stop") | {"error": error}
    assert len(await relayed(stream(), sse(healthy))) == 2
    await fails(stream(), sse(content_event(), {"error": error}))


async def test_ping_event_of_the_messages_protocol_is_relayed() -> None:
    ping, last = b'event: ping\ndata: {"type": "ping"}\n\n', b'event: message_stop\ndata: {"type": "message_stop"}\n\n'
    assert await relayed(MESSAGES, raw(ping, b"event: ping\ndata: x\n\n", last)) == [ping, last]


FLOODS = {
    "choices": "[" + "{}," * 340_000 + "{}]",
    "a deep delta": '[{"delta":{"a":' + "[" * 300 + "1," * 400_000 + "1" + "]" * 300 + "}}]",
    "a wide delta": '[{"delta":{"a":[' + "{}," * 300_000 + "{}]}}]",
}


def notes_in_s(event: SseEvent) -> float:
    task, operation = stream(), OPERATIONS["chat"]
    began = time.perf_counter()
    with suppress(BackendUnavailable):
        operation.stream_state(operation.validator(task)).on_event(event)
    return time.perf_counter() - began


def walks_in_s(event: SseEvent) -> float:
    began = time.perf_counter()
    msgspec.json.decode(event.data, type=msgspec.Raw)
    return time.perf_counter() - began


@pytest.mark.parametrize("name", FLOODS)
def test_large_event_is_checked_in_linear_time(name: str) -> None:
    event = SseEvent(b"", f'{{"choices":{FLOODS[name]}}}'.encode(), b"")
    assert min(notes_in_s(event) for _ in range(5)) < 8 * min(walks_in_s(event) for _ in range(5))


async def test_number_of_unrequested_choices_is_bounded() -> None:
    assert "choices" in (await fails(stream(), sse(*(content_event(index=at) for at in range(200))))).message


# --- the last event ---------------------------------------------------------------------------------------------------

HALVES: dict[str, tuple[Task, list[Any]]] = {
    "responses": (RESPONSES, [{"type": "response.created"}, {"type": "response.output_text.delta", "delta": "h"}]),
    "messages": (MESSAGES, [{"type": "message_start"}, {"type": "content_block_delta", "index": 0}]),
    "transcript": (stream("transcription", "/v1/audio/transcriptions"), [{"type": "transcript.text.delta"}]),
}


@pytest.mark.parametrize("name", HALVES)
async def test_typed_stream_does_not_end_at_done(name: str) -> None:
    task, events = HALVES[name]
    assert "before its last event" in (await fails(task, sse(*events))).message


LASTS = {"responses": "response.completed", "messages": "message_stop", "transcript": "transcript.text.done"}


async def relayed_while_open(task: Task, *events: Any) -> list[bytes]:
    """Return the events relayed while the connection stays open longer than the task."""
    script = stall(sse_bytes(*events, done=False))
    async with asyncio.timeout(10), Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        return await parts(backend, task)


@pytest.mark.parametrize("name", HALVES)
async def test_typed_stream_ends_at_its_last_event_while_the_connection_stays_open(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway_http.response.relay.QUIET_S", 3600)
    task, events = HALVES[name]
    assert len(await relayed_while_open(task, *events, {"type": LASTS[name]})) == len(events) + 1


@pytest.mark.parametrize("done", [True, False])
async def test_connection_is_reused_when_the_body_ends_after_the_last_event(done: bool) -> None:
    script = sse({"type": "response.completed"}, done=done)
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        for _ in range(2):
            await parts(backend, with_deadline(RESPONSES))
    assert upstream.connections == 1


async def test_chat_stream_ends_when_all_choices_finish_while_the_connection_stays_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway_http.response.relay.QUIET_S", 0.05)
    two = stream(body=b'{"model":"m","messages":[],"n":2}')
    events = [
        content_event(),
        content_event(index=1),
        content_event(reason="stop"),
        content_event(reason="stop", index=1),
    ]
    assert (await relayed_while_open(two, *events))[len(events) :] == [DONE]


async def test_usage_event_after_the_finish_reason_is_relayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway_http.response.relay.QUIET_S", 3600)
    received: asyncio.Event = asyncio.Event()
    usage = {"choices": [], "usage": {"total_tokens": 1}}

    async def script(talk: Any) -> None:
        await talk.send(sse_bytes(content_event(reason="stop"), done=False))
        await received.wait()
        await talk.send(chunk(b"data: " + json.dumps(usage).encode() + b"\n\n") + chunk(DONE) + LAST_CHUNK)

    got = []
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        async for part in backend.run(with_deadline(stream())):
            got.append(part)
            received.set()
    assert len(got) == 3


async def test_image_stream_relays_one_completed_event_per_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway_http.response.relay.QUIET_S", 0.05)
    task = stream("other", "/v1/images/generations")
    picture = {"type": "image_generation.completed", "b64_json": "A" * 1_500_000}
    assert len(await relayed_while_open(task, picture, picture)) == 2


async def test_large_event_is_accepted_only_for_images() -> None:
    await fails(RESPONSES, sse({"type": "response.completed", "x": "A" * 1_500_000}))


# --- client errors sent as events -------------------------------------------------------------------------------------

TOO_LONG = {"code": "context_length_exceeded", "message": "too long"}
REFUSALS = [
    {"error": TOO_LONG},
    {"type": "error", **TOO_LONG},
    {"object": "error", "code": 400, "message": "This model's maximum context length is 4096 tokens. However, you"},
    {"type": "response.failed", "response": {"status": "failed", "error": TOO_LONG}},
]


@pytest.mark.parametrize("event", REFUSALS)
async def test_client_error_event_becomes_a_400_answer(event: Any) -> None:
    task = RESPONSES if event.get("type") else stream()
    async with Upstream(sse(event)) as upstream, opened(upstream.url) as (backend, _):
        got = await result(backend, with_deadline(task))
    assert (got.status, type(got)) == (400, Result)
    assert "context" in str(got.value()["error"])


async def test_client_error_event_after_content_keeps_its_code() -> None:
    async with Upstream(sse(content_event(), {"error": TOO_LONG})) as upstream, opened(upstream.url) as (backend, _):
        with pytest.raises(TaskInvalid) as refused:
            await parts(backend, with_deadline(stream()))
    assert refused.value.detail == "context_length_exceeded: too long"
    assert "too long" not in refused.value.message


async def test_response_failed_event_raises_before_content_and_ends_the_stream_after() -> None:
    failed = {"type": "response.failed", "response": {"error": {"code": "server_error", "message": "boom"}}}
    error = await fails(RESPONSES, sse({"type": "response.created"}, failed))
    assert ("server_error" in error.message, error.detail) == (True, "boom")
    assert len(await relayed(RESPONSES, sse({"type": "response.output_text.delta"}, failed))) == 2
