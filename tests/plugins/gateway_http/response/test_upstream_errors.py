"""Status 200 with an error in it, and errors of any status that are answers to the request."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest

from gateway.plugin import BackendUnavailable, Result, Task
from gateway_http.response.operations import OPERATIONS
from support.http_backend import chat, opened, result
from support.upstream import Upstream, answer

PATHS = {
    "chat": "/v1/chat/completions",
    "completion": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "transcription": "/v1/audio/transcriptions",
    "other": "/v1/responses",
}


def asked(kind: Any, path: str = "", **changes: Any) -> Task:
    return chat(path=path or PATHS[kind], deadline_s=3600, **changes).replace(kind=kind)


def subtitles(response_format: str) -> Task:
    return asked("transcription").replace(fields={"response_format": response_format})


async def fails(task: Task, body: Any, media: str = "application/json") -> BackendUnavailable:
    script = answer(body if isinstance(body, bytes) else json.dumps(body).encode(), content_type=media)
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        with pytest.raises(BackendUnavailable) as failed:
            await result(backend, task)
    assert failed.value.code == "upstream_bad_response"
    return failed.value


async def got(task: Task, body: Any, media: str = "application/json", **options: Any) -> Result:
    script = answer(body if isinstance(body, bytes) else json.dumps(body).encode(), content_type=media, **options)
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        return await result(backend, task)


# --- errors under status 200 ------------------------------------------------------------------------------------------

ERRORS = [
    {"error": {"message": "boom"}},
    {"error": "boom"},
    {"object": "error", "message": "boom", "type": "InternalServerError", "param": None, "code": 500},
    {"type": "error", "error": {"type": "overloaded_error", "message": "boom"}},
    {"detail": "boom"},
    {"success": False, "error": {"message": "boom"}},
]


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("error", ERRORS)
async def test_an_object_that_is_an_error_is_one(kind: str, error: Any) -> None:
    failed = await fails(asked(kind), error)
    assert ("with an error" in failed.message, failed.detail) == (True, "boom")


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    ("task", "media"),
    [
        (subtitles("srt"), "text/plain"),
        (subtitles("vtt"), "text/vtt"),
        (subtitles("text"), "application/json"),
        (asked("other", "/v1/audio/translations"), "application/json"),
        (asked("other", "/v1/audio/speech"), "audio/mpeg"),
        (asked("other", "/v1/messages"), "application/json"),
        (asked("other", "/v1/images/generations"), "application/json"),
    ],
)
async def test_an_error_is_one_whatever_it_is_sent_as(task: Task, media: str, error: Any) -> None:
    await fails(task, error, media)


@pytest.mark.parametrize("media", ["text/plain", "application/json", "text/event", "application/problem+json"])
async def test_sound_is_neither_a_text_nor_json(media: str) -> None:
    assert "instead of sound" in (await fails(asked("other", "/v1/audio/speech"), b"{}", media)).message


async def test_an_error_beside_nothing_is_a_failure_and_beside_an_answer_it_is_not() -> None:
    failed = {"id": "r", "status": "failed", "output": [], "error": {"code": "server_error", "message": "boom"}}
    assert "server_error" in (await fails(asked("other"), failed)).message
    await fails(asked("transcription"), {"text": "", "error": "GPU died"})
    await got(asked("transcription"), {"text": "hi", "error": "GPU hot"})
    await got(asked("other"), failed | {"status": "completed"})
    await got(subtitles("text"), b'{"a": "line that somebody said"}', "text/plain")
    await got(asked("other", "/v1/messages"), {"type": "message", "content": [], "detail": None})


# --- answers that are errors ------------------------------------------------------------------------------------------

TOO_LONG = {"message": "too long", "code": "context_length_exceeded", "type": "invalid_request_error"}
FILTERED = {"code": "BadRequest", "message": "no", "innererror": {"code": "ResponsibleAIPolicyViolation"}}
FLAGGED = {"code": 403, "message": "flagged", "metadata": {"reasons": ["violence"], "flagged_input": "..."}}


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize(
    ("error", "body"),
    [
        (TOO_LONG, {"error": TOO_LONG}),
        (FILTERED, {"error": FILTERED}),
        ({"message": "This model's maximum context length is 4096 tokens.", "type": None, "code": 400},
         {"object": "error", "message": "This model's maximum context length is 4096 tokens.", "code": 400}),
    ],
)  # fmt: skip
async def test_a_refusal_under_status_200_is_one(kind: str, error: Any, body: Any) -> None:
    answered = await got(asked(kind), body)
    assert answered.status == 400
    assert answered.value()["error"] == error


@pytest.mark.parametrize(
    ("status", "passed", "error"),
    [
        (500, 400, TOO_LONG),
        (500, 400, FILTERED),
        (403, 403, FLAGGED),
        (500, 400, {"message": "the request exceeds the available context size. try increasing the context size"}),
        (500, 400, {"message": "This model's maximum context length is 4096 tokens. However, you requested 5000"}),
        (
            503,
            400,
            {"message": "`inputs` tokens + `max_new_tokens` must be <= 2048. Given: 3000", "type": "x"},
        ),
    ],
)
async def test_a_refusal_under_another_status_is_one(status: int, passed: int, error: Any) -> None:
    answered = await got(asked("chat"), {"error": error}, status=status)
    assert (answered.status, answered.value()["error"]) == (passed, error)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (500, {"message": "failed to allocate the context"}),
        (500, {"message": "CUDA out of memory; lower --context-length"}),
        (403, {"message": "no such key", "code": "invalid_api_key"}),
        (403, {"message": "no", "metadata": {"provider_name": "x"}}),
        (429, {"message": "too many tokens per minute for this context", "code": "rate_limit_exceeded"}),
    ],
)
async def test_a_fault_that_sounds_like_one_is_none(status: int, error: Any) -> None:
    async with Upstream(answer(json={"error": error}, status=status)) as upstream, opened(upstream.url) as (backend, _):
        with pytest.raises(BackendUnavailable):
            await result(backend, asked("chat"))


async def test_an_error_is_not_built_further_than_it_is_read() -> None:
    deep, wide = b"[" * 200 + b"]" * 200, b"{}," * 60000
    deep = b'{"error": {"message": "boom", "x": ' + deep + b', "y": [' + wide + b"1]}}"
    async with Upstream(answer(deep, status=500)) as upstream, opened(upstream.url) as (backend, _):
        with pytest.raises(BackendUnavailable) as failed:
            await result(backend, asked("chat"))
    assert failed.value.detail == "boom"


# --- answers nobody could have asked for ------------------------------------------------------------------------------

FLOODS = {
    "choices": (asked("chat"), b'{"choices": [' + b'{"message": {}},' * 700_000 + b'{"message": {}}]}'),
    "empty choices": (asked("chat"), b'{"choices": [' + b"{}," * 3_000_000 + b"{}]}"),
    "texts": (asked("completion"), b'{"choices": [' + b'{"text": ""},' * 700_000 + b'{"text": ""}]}'),
    "vectors": (asked("embeddings"), b'{"data": [' + b'{"embedding": [1]},' * 500_000 + b'{"embedding": [1]}]}'),
    "members": (asked("other"), b'{"object": "error"' + b',"aaaaa":1' * 1_000_000 + b"}"),
    "a message's members": (asked("chat"), b'{"choices": [{"message": {"a":1' + b',"aaaaa":1' * 1_000_000 + b"}}, 1]}"),
}


async def fails_in_s(task: Task, body: bytes) -> float:
    began = time.perf_counter()
    with pytest.raises(BackendUnavailable):
        await OPERATIONS[task.kind].validator(task).validate(body, "application/json")
    return time.perf_counter() - began


def walks_in_s(body: bytes) -> float:
    began = time.perf_counter()
    msgspec.json.decode(body, type=msgspec.Raw)
    return time.perf_counter() - began


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_is_a_failure_found_in_the_time_of_a_few_walks(name: str) -> None:
    task, body = FLOODS[name]
    assert min([await fails_in_s(task, body) for _ in range(5)]) < 4 * min(walks_in_s(body) for _ in range(5))


async def test_as_many_choices_as_were_asked_for_pass() -> None:
    for n in (128, 300):
        task = asked("chat", body=json.dumps({"model": "m", "messages": [], "n": n}).encode())
        await got(task, {"choices": [{"message": {"content": "hi"}}] * n})
