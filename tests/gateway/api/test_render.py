"""Whole answers: passed as they are, or shaped as this client asked."""

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
    return ParsedRequest(
        operation=OPERATIONS[kind], name="assistant", path="/", body=b"", content_type="application/json", **more
    )


def rendered(result: Result, kind: Kind = "chat", served_as: str | None = "assistant", **more: Any) -> Result:
    return asyncio.run(ResponseRenderer(draft(kind, **more), "r1", "the backend", served_as).whole(result))


def answer(value: Any, kind: Kind = "chat") -> Any:
    return json.loads(rendered(Result(json=value), kind).body or b"")


def test_a_text_becomes_a_whole_chat_completion() -> None:
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


def test_a_message_that_calls_a_tool_says_why_it_ended() -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    chat = answer({"tool_calls": calls, "usage": {"total_tokens": 3}})
    assert chat["choices"][0]["finish_reason"] == "tool_calls"
    assert chat["choices"][0]["message"]["tool_calls"] == calls
    assert chat["usage"] == {"total_tokens": 3}


def test_what_has_choices_keeps_all_it_says() -> None:
    given = {"id": "x", "object": "o", "created": 1, "model": "dated-2024", "choices": [{"a": 1}], "x_extra": True}
    assert answer(given) == given


def test_a_text_becomes_a_text_completion() -> None:
    completion = answer("and so on", "completion")
    assert completion["object"] == "text_completion"
    assert completion["choices"] == [{"index": 0, "text": "and so on", "logprobs": None, "finish_reason": "stop"}]


@pytest.mark.parametrize("value", [None, 3, [], {}, {"choices": 3}])
@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_what_is_no_answer_is_the_backends_failure(value: Any, kind: Kind) -> None:
    with pytest.raises(BackendUnavailable) as failed:
        answer(value, kind)
    assert failed.value.code == "upstream_bad_response"


@pytest.mark.parametrize("kind", ["chat", "completion", "transcription", "task", "other"])
def test_a_relayed_body_passes_byte_for_byte(kind: Kind) -> None:
    body = b'{ "model":"whatever-2024-01", "x": 1.0, "choices": [] }'
    given = Result(body=body, content_type="application/json; charset=utf-8")
    assert rendered(given, kind) == Result(status=200, content_type=given.content_type, body=body)


@pytest.mark.parametrize("served_as", ["llama3.2:3b", None])
def test_the_clients_name_of_a_model_is_put_back_and_nothing_else_changes(served_as: str | None) -> None:
    body = (
        b'{"id":"x","model":"llama3.2:3b","choices":[{"model":"llama3.2:3b","n":1.00}],"big":12345678901234567890123}'
    )
    changed = rendered(Result(body=body), served_as=served_as).body
    assert changed == body.replace(b'"llama3.2:3b"', b'"assistant"', 1)


def test_a_relayed_body_that_cannot_be_renamed_is_the_backends_failure() -> None:
    with pytest.raises(BackendUnavailable):
        rendered(Result(body=b'"model" <html>'), served_as="other-name")


def test_a_refusal_passes_untouched() -> None:
    body = b'{"error":{"message":"context too long"},"model":"llama3.2:3b"}'
    for kind in ("chat", "embeddings", "transcription"):
        out = rendered(Result(body=body, status=400), kind, served_as="llama3.2:3b")
        assert (out.status, out.body) == (400, body)


def test_a_tasks_answer_is_its_json_with_bytes_as_base64() -> None:
    assert rendered(Result(json={"result": b"\x00\xff"}), "task").body == b'{"result":"AP8="}'


def test_what_has_no_json_form_is_the_backends_failure() -> None:
    for value in (object(), "\ud800", {"a": object()}):
        with pytest.raises(BackendFailed, match="no JSON form"):
            encode_json(value)


def test_a_transcript_is_in_the_format_asked_for() -> None:
    out = rendered(Result(json="hello"), "transcription", response_format="text")
    assert (out.content_type, out.body) == ("text/plain; charset=utf-8", b"hello\n")


def test_models_are_listed_as_openai_lists_them() -> None:
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


def test_a_relayed_answer_has_the_clients_name_of_the_model_and_what_is_no_json_is_untouched() -> None:
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
def test_a_recogniser_that_knows_json_only_is_no_reason_to_refuse_a_format(wanted: str, shown: bytes) -> None:
    heard = Result(body=b'{"text":"hello there","duration":2.0}', content_type="application/json; charset=utf-8")
    assert rendered(heard, "transcription", response_format=wanted).body == shown
    already = Result(body=b"as it came", content_type="text/plain")
    assert rendered(already, "transcription", response_format=wanted).body == b"as it came"
