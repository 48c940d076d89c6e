"""Errors under status 200, and client errors under any status."""

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


def task_of(kind: Any, path: str = "", **changes: Any) -> Task:
    return chat(path=path or PATHS[kind], deadline_s=3600, **changes).replace(kind=kind)


def subtitles(response_format: str) -> Task:
    return task_of("transcription").replace(fields={"response_format": response_format})


async def fails(task: Task, body: Any, media: str = "application/json") -> BackendUnavailable:
    script = answer(body if isinstance(body, bytes) else json.dumps(body).encode(), content_type=media)
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        with pytest.raises(BackendUnavailable) as failed:
            await result(backend, task)
    assert failed.value.code == "upstream_bad_response"
    return failed.value


async def answer_to(task: Task, body: Any, media: str = "application/json", **options: Any) -> Result:
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
async def test_error_object_under_status_200_is_a_failure(kind: str, error: Any) -> None:
    failed = await fails(task_of(kind), error)
    assert ("with an error" in failed.message, failed.detail) == (True, "boom")


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    ("task", "media"),
    [
        (subtitles("srt"), "text/plain"),
        (subtitles("vtt"), "text/vtt"),
        (subtitles("text"), "application/json"),
        (task_of("other", "/v1/audio/translations"), "application/json"),
        (task_of("other", "/v1/audio/speech"), "audio/mpeg"),
        (task_of("other", "/v1/messages"), "application/json"),
        (task_of("other", "/v1/images/generations"), "application/json"),
    ],
)
async def test_error_object_is_a_failure_under_any_content_type(task: Task, media: str, error: Any) -> None:
    await fails(task, error, media)


@pytest.mark.parametrize("media", ["text/plain", "application/json", "text/event", "application/problem+json"])
async def test_speech_answer_with_a_text_content_type_is_a_failure(media: str) -> None:
    assert "instead of sound" in (await fails(task_of("other", "/v1/audio/speech"), b"{}", media)).message


async def test_error_field_is_a_failure_only_without_an_answer() -> None:
    failed = {"id": "r", "status": "failed", "output": [], "error": {"code": "server_error", "message": "boom"}}
    assert "server_error" in (await fails(task_of("other"), failed)).message
    await fails(task_of("transcription"), {"text": "", "error": "GPU died"})
    await answer_to(task_of("transcription"), {"text": "hi", "error": "GPU hot"})
    await answer_to(task_of("other"), failed | {"status": "completed"})
    await answer_to(subtitles("text"), b'{"a": "line that somebody said"}', "text/plain")
    await answer_to(task_of("other", "/v1/messages"), {"type": "message", "content": [], "detail": None})


# --- client errors ----------------------------------------------------------------------------------------------------

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
async def test_client_error_under_status_200_becomes_400(kind: str, error: Any, body: Any) -> None:
    answered = await answer_to(task_of(kind), body)
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
async def test_client_error_under_5xx_or_403_is_recognised(status: int, passed: int, error: Any) -> None:
    answered = await answer_to(task_of("chat"), {"error": error}, status=status)
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
async def test_backend_fault_that_mentions_context_is_not_a_client_error(status: int, error: Any) -> None:
    async with Upstream(answer(json={"error": error}, status=status)) as upstream, opened(upstream.url) as (backend, _):
        with pytest.raises(BackendUnavailable):
            await result(backend, task_of("chat"))


async def test_deep_error_body_is_decoded_only_as_far_as_needed() -> None:
    deep, wide = b"[" * 200 + b"]" * 200, b"{}," * 60000
    deep = b'{"error": {"message": "boom", "x": ' + deep + b', "y": [' + wide + b"1]}}"
    async with Upstream(answer(deep, status=500)) as upstream, opened(upstream.url) as (backend, _):
        with pytest.raises(BackendUnavailable) as failed:
            await result(backend, task_of("chat"))
    assert failed.value.detail == "boom"


# --- oversized answers ------------------------------------------------------------------------------------------------

FLOODS = {
    "choices": (task_of("chat"), b'{"choices": [' + b'{"message": {}},' * 700_000 + b'{"message": {}}]}'),
    "empty choices": (task_of("chat"), b'{"choices": [' + b"{}," * 3_000_000 + b"{}]}"),
    "texts": (task_of("completion"), b'{"choices": [' + b'{"text": ""},' * 700_000 + b'{"text": ""}]}'),
    "vectors": (task_of("embeddings"), b'{"data": [' + b'{"embedding": [1]},' * 500_000 + b'{"embedding": [1]}]}'),
    "members": (task_of("other"), b'{"object": "error"' + b',"aaaaa":1' * 1_000_000 + b"}"),
    "a message's members": (
        task_of("chat"),
        b'{"choices": [{"message": {"a":1' + b',"aaaaa":1' * 1_000_000 + b"}}, 1]}",
    ),
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
async def test_oversized_answer_is_rejected_in_linear_time(name: str) -> None:
    task, body = FLOODS[name]
    assert min([await fails_in_s(task, body) for _ in range(5)]) < 4 * min(walks_in_s(body) for _ in range(5))


async def test_answer_with_all_requested_choices_is_accepted() -> None:
    for n in (128, 300):
        task = task_of("chat", body=json.dumps({"model": "m", "messages": [], "n": n}).encode())
        await answer_to(task, {"choices": [{"message": {"content": "hi"}}] * n})
