"""Whole responses: relayed unchanged, or rendered in the requested format."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.api import models, tasks
from gateway.api.operation import ParsedRequest
from gateway.api.operations import OPERATIONS
from gateway.api.render import ResponseRenderer
from gateway.api.response_json import encode_json
from gateway.plugin import BackendFailed, BackendUnavailable, Kind, Result


def draft(kind: Kind = "chat", **more: Any) -> ParsedRequest:
    operation = OPERATIONS[kind]
    return ParsedRequest(
        operation=operation, name="assistant", path="/", body=b"", content_type="application/json", **more
    )


def rendered(result: Result, kind: Kind = "chat", served_as: str | None = "assistant", **more: Any) -> Result:
    return asyncio.run(ResponseRenderer(draft(kind, **more), "r1", "the backend", served_as).whole(result))


def answer(value: Any, kind: Kind = "chat") -> Any:
    return json.loads(rendered(Result(json=value), kind).body or b"")


def test_text_becomes_a_whole_chat_completion() -> None:
    chat = answer("hello")
    assert chat["id"] == "chatcmpl-r1"
    assert (chat["object"], chat["model"]) == ("chat.completion", "assistant")
    assert isinstance(chat["created"], int)
    assert chat["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "hello", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert "usage" not in chat


def test_message_with_a_tool_call_gets_finish_reason_tool_calls() -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    chat = answer({"tool_calls": calls, "usage": {"total_tokens": 3}})
    assert chat["choices"][0]["finish_reason"] == "tool_calls"
    assert chat["choices"][0]["message"]["tool_calls"] == calls
    assert chat["usage"] == {"total_tokens": 3}


def test_completion_of_a_plugin_keeps_all_its_fields() -> None:
    given = {"id": "x", "object": "o", "created": 1, "model": "dated-2024", "choices": [{"a": 1}], "x_extra": True}
    assert answer(given) == given


def test_text_becomes_a_text_completion() -> None:
    completion = answer("and so on", "completion")
    assert completion["object"] == "text_completion"
    assert completion["choices"] == [{"index": 0, "text": "and so on", "logprobs": None, "finish_reason": "stop"}]


@pytest.mark.parametrize("value", [None, 3, [], {}, {"choices": 3}])
@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_result_of_the_wrong_type_raises_backend_unavailable(value: Any, kind: Kind) -> None:
    with pytest.raises(BackendUnavailable) as failed:
        answer(value, kind)
    assert failed.value.code == "upstream_bad_response"


@pytest.mark.parametrize("kind", ["chat", "completion", "transcription", "task", "other"])
def test_relayed_body_passes_unchanged(kind: Kind) -> None:
    body = b'{ "model":"whatever-2024-01", "x": 1.0, "choices": [] }'
    given = Result(body=body, content_type="application/json; charset=utf-8")
    assert rendered(given, kind) == Result(status=200, content_type=given.content_type, body=body)


@pytest.mark.parametrize("served_as", ["llama3.2:3b", None])
def test_requested_model_name_is_restored_and_nothing_else_changes(served_as: str | None) -> None:
    body = (
        b'{"id":"x","model":"llama3.2:3b","choices":[{"model":"llama3.2:3b","n":1.00}],"big":12345678901234567890123}'
    )
    changed = rendered(Result(body=body), served_as=served_as).body
    assert changed == body.replace(b'"llama3.2:3b"', b'"assistant"', 1)


def test_relayed_body_that_is_not_json_raises_when_the_model_is_renamed() -> None:
    with pytest.raises(BackendUnavailable):
        rendered(Result(body=b'"model" <html>'), served_as="other-name")


def test_error_response_passes_unchanged() -> None:
    body = b'{"error":{"message":"context too long"},"model":"llama3.2:3b"}'
    for kind in ("chat", "embeddings", "transcription"):
        out = rendered(Result(body=body, status=400), kind, served_as="llama3.2:3b")
        assert (out.status, out.body) == (400, body)


def test_task_result_is_json_with_bytes_as_base64() -> None:
    assert rendered(Result(json={"result": b"\x00\xff"}), "task").body == b'{"result":"AP8="}'


def test_value_without_a_json_form_raises_backend_failed() -> None:
    for value in (object(), "\ud800", {"a": object()}):
        with pytest.raises(BackendFailed, match="no JSON form"):
            encode_json(value)


def test_transcript_is_rendered_in_the_requested_format() -> None:
    out = rendered(Result(json="hello"), "transcription", response_format="text")
    assert (out.content_type, out.body) == ("text/plain; charset=utf-8", b"hello\n")


def test_models_are_listed_in_the_openai_format() -> None:
    listed = models.models_list([("assistant", "box")])
    assert listed == {
        "object": "list",
        "data": [{"id": "assistant", "object": "model", "created": 0, "owned_by": "box"}],
    }


def test_tasks_are_listed_with_their_backends() -> None:
    assert tasks.tasks_list({"add": ("local", "far")}) == {
        "object": "list",
        "data": [{"id": "add", "object": "task", "backends": ["local", "far"]}],
    }


def test_relayed_response_restores_the_model_name_and_non_json_is_unchanged() -> None:
    told = Result(body=b'{"object":"response","model":"big","n":1.10}')
    assert rendered(told, "other", "big").body == b'{"object":"response","model":"assistant","n":1.10}'
    for body, content_type in ((b'\x00"model"', "audio/mpeg"), (b'["model"]', "application/json")):
        assert rendered(Result(body=body, content_type=content_type), "other", "big").body == body


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        ("text", b"hello there\n"),
        ("srt", b"1\n00:00:00,000 --> 00:00:02,000\nhello there\n\n"),
        ("vtt", b"WEBVTT\n\n00:00:00.000 --> 00:00:02.000\nhello there\n\n"),
    ],
)
def test_json_transcript_is_converted_to_the_requested_format(wanted: str, shown: bytes) -> None:
    heard = Result(body=b'{"text":"hello there","duration":2.0}', content_type="application/json; charset=utf-8")
    assert rendered(heard, "transcription", response_format=wanted).body == shown
    already = Result(body=b"as it came", content_type="text/plain")
    assert rendered(already, "transcription", response_format=wanted).body == b"as it came"
