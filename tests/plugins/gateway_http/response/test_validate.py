"""Checks of whole answers: by kind, and by path for relayed ones."""

from __future__ import annotations

import base64
import time
from typing import Any

import msgspec
import pytest

from gateway.plugin import BackendUnavailable, Task
from support.http_backend import chat, opened, result
from support.upstream import CHUNKED, EVENTS, JSON, Upstream, answer, chunk, head, sends, sends_and_cuts

TWO_FLOATS = base64.b64encode(bytes(8)).decode()


def embed(items: int = 1) -> Task:
    return chat(path="/v1/embeddings", items=items).replace(kind="embeddings")


def relayed(path: str) -> Task:
    return chat(path=path).replace(kind="other")


def transcription(response_format: str | None = None) -> Task:
    fields = {"model": "m"} | ({"response_format": response_format} if response_format else {})
    return Task(
        kind="transcription", name="m", path="/v1/audio/transcriptions", body=b"f", fields=fields,
        content_type="multipart/form-data; boundary=b", deadline=time.monotonic() + 5,
    )  # fmt: skip


async def fails(task: Task, script: Any) -> str:
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        with pytest.raises(BackendUnavailable) as failed:
            async for _ in backend.run(task):
                pass
    assert failed.value.code == "upstream_bad_response"
    return failed.value.message


async def passes(task: Task, script: Any) -> None:
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        assert (await result(backend, task)).status == 200


# --- chat and completions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["x", None, {}, {"message": None}, {"message": "hi"}, {"text": "hi"}, [], 1])
async def test_chat_choice_without_message_is_a_failure(choice: Any) -> None:
    assert "no `message`" in await fails(chat(), answer(json={"choices": [{"message": {}}, choice]}))


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"content": ""},
        {"content": None, "refusal": "no"},
        {"reasoning_content": "hm", "content": None},
        {"content": [{"type": "text", "text": "hi"}]},
    ],
)
async def test_chat_message_may_have_any_members(message: Any) -> None:
    await passes(chat(), answer(json={"error": None, "choices": [{"message": message, "finish_reason": None}]}))


@pytest.mark.parametrize("choice", ["x", None, {}, {"text": None}, {"message": {"content": "hi"}}])
async def test_completion_choice_without_text_is_a_failure(choice: Any) -> None:
    task = chat(path="/v1/completions").replace(kind="completion")
    assert "no `text`" in await fails(task, answer(json={"choices": [choice]}))
    await passes(task, answer(json={"choices": [{"text": ""}]}))


# --- embeddings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry",
    [None, "a", 1, [], {}, {"embedding": None}, {"embedding": []}, {"embedding": ""}, {"embedding": "a"},
     {"embedding": "A*=="}, {"embedding": "AAAA"}, {"embedding": [None]}, {"embedding": ["1"]}, {"embedding": [[1]]},
     {"embedding": {}}, {"embedding": [1, True]}],
)  # fmt: skip
async def test_invalid_embedding_is_a_failure(entry: Any) -> None:
    await fails(embed(), answer(json={"data": [entry]}))


@pytest.mark.parametrize("vector", [[1], [0.5, -1e-7, 2], TWO_FLOATS])
async def test_embeddings_may_be_numbers_or_base64_floats(vector: Any) -> None:
    await passes(embed(2), answer(json={"object": "list", "data": [{"embedding": vector}] * 2}))


async def test_base64_with_escaped_slashes_is_accepted() -> None:
    await passes(embed(), answer(b'{"data": [{"embedding": "\\/\\/\\/\\/AAAA" }]}'.replace(b"AAAA", b"AA==")))


@pytest.mark.parametrize("count", [1, 3])
async def test_embedding_count_must_match_the_inputs(count: int) -> None:
    assert "for 2 inputs" in await fails(embed(2), answer(json={"data": [{"embedding": [1]}] * count}))


async def test_subtask_embeddings_are_counted_by_its_own_inputs() -> None:
    for given, count in ((["a", "b"], 2), ([[1, 2], [3]], 2), ([1, 2, 3], 1), ("a", 1)):
        task = embed(1).replace(body=msgspec.json.encode({"model": "m", "input": given}))
        await passes(task, answer(json={"data": [{"embedding": [1]}] * count}))


async def test_stream_in_answer_to_embeddings_is_a_failure() -> None:
    script = sends(head(200, [EVENTS, CHUNKED]) + chunk(b'data: {"data": []}\n\ndata: [DONE]\n\n') + b"0\r\n\r\n")
    assert "text/event-stream" in await fails(embed(), script)


# --- transcriptions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("response_format", [None, "json", "verbose_json", "diarized_json"])
@pytest.mark.parametrize("body", [{}, {"text": None}, {"text": ["a"]}, {"error": "no"}, []])
async def test_json_transcript_without_text_is_a_failure(response_format: str | None, body: Any) -> None:
    await fails(transcription(response_format), answer(json=body))
    await passes(transcription(response_format), answer(json={"text": ""}))


async def test_transcript_in_another_format_is_not_checked() -> None:
    await passes(transcription("srt"), answer(b"", content_type="text/plain"))


# --- relayed answers --------------------------------------------------------------------------------------------------

OBJECTS = ("/v1/responses", "/v1/messages", "/v1/images/generations")


@pytest.mark.parametrize("path", OBJECTS)
@pytest.mark.parametrize(
    "body",
    [
        b"", b"{}", b"[]", b'{"id": "x", ', b'{"error": {"message": "no"}}',
        b'{"type": "error", "error": {"type": "overloaded_error", "message": "no"}}',
    ],
)  # fmt: skip
async def test_relayed_answer_that_is_empty_cut_or_an_error_is_a_failure(path: str, body: bytes) -> None:
    await fails(relayed(path), answer(body))
    await fails(relayed(path), answer(body, content_type=None))


@pytest.mark.parametrize("path", [*OBJECTS, "/v1/audio/speech", "/v1/audio/speech?x=1"])
async def test_relayed_answer_without_content_is_a_failure(path: str) -> None:
    await fails(relayed(path), sends(head(204)))
    await fails(relayed(path), answer(b"", content_type="audio/mpeg"))


async def test_relayed_object_with_members_is_accepted() -> None:
    for path in OBJECTS:
        await passes(relayed(path), answer(json={"id": "x", "error": None, "output": []}))


async def test_body_labelled_json_must_be_json_on_every_path() -> None:
    cut = sends_and_cuts(head(200, [JSON]) + b'{"text": "hel')
    assert "not JSON" in await fails(relayed("/v1/audio/translations"), cut)
    await passes(relayed("/v1/audio/speech"), answer(b"ID3", content_type="audio/mpeg"))
