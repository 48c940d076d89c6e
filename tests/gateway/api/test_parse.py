"""Parsing of request bodies, and the error messages for invalid bodies."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.operation import ParsedRequest
from gateway.api.operations import parse_request
from gateway.api.parse import MAX_KEYS
from gateway.api.routes import match
from gateway.plugin import TaskInvalid, Upload
from support.forms import encode

MESSAGES = [{"role": "user", "content": "hi", "name": "x"}]


def draft_of(path: str, body: Any, content_type: str = "application/json") -> ParsedRequest:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse_request(match("POST", path), content_type, raw)


def refusal_of(path: str, body: Any, content_type: str = "application/json") -> TaskInvalid:
    with pytest.raises(TaskInvalid) as refused:
        draft_of(path, body, content_type)
    assert refused.value.code == "bad_request"
    return refused.value


# ── chat and completions ─────────────────────────────────────────────────────────────────────────


def test_chat_body_is_forwarded_unchanged() -> None:
    raw = b'{ "model": "m",  "messages":[{"role":"user","content":"hi"}], "unheard_of": [1e2, {"x": null}] }'
    draft = draft_of("/v1/chat/completions", raw)
    assert (draft.kind, draft.name, draft.body) == ("chat", "m", raw)
    assert (draft.stream, draft.include_usage, draft.items, draft.fields) == (False, False, 1, None)


def test_stream_and_include_usage_are_parsed() -> None:
    draft = draft_of(
        "/chat/completions",
        {"model": "m", "messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True, "x": 1}},
    )
    assert draft.stream
    assert draft.include_usage
    assert draft.path == "/v1/chat/completions"


def test_default_content_type_of_curl_is_treated_as_json() -> None:
    draft = draft_of("/v1/completions", {"model": "m", "prompt": "a"}, "application/x-www-form-urlencoded")
    assert draft.content_type == "application/json"


NAMING = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/images/edits"]
REST = b'"messages":[{"role":"user"}],"prompt":"","input":"x"'


@pytest.mark.parametrize("path", NAMING)
@pytest.mark.parametrize(
    ("first", "last"),
    [
        (b'"model":"dear"', b'"model":"cheap"'),
        (b'"model":"cheap"', b'"Model":"dear"'),
        (b'"MODEL":"dear"', b'"model":"cheap"'),
        (rb'"mod\u0065l":"dear"', b'"model":"cheap"'),
        (b'"model":"cheap"', rb'"mod\u0045l":"dear"'),
        (rb'"\u006D\u006f\u0064\u0065\u006c":"dear"', b'"model":"cheap"'),
    ],
)
def test_duplicate_or_differently_spelled_model_keys_are_refused(path: str, first: bytes, last: bytes) -> None:
    refusal = refusal_of(path, b"{" + first + b"," + REST + b"," + last + b"}")
    assert refusal.param == "model"
    assert "write `model`, once" in refusal.message


@pytest.mark.parametrize("path", NAMING)
def test_model_keys_in_nested_values_are_ignored(path: str) -> None:
    within = rb'"x":{"model":"a","Model":"b"},"y":["model","mod\u0065l"],"z":"\"model\":"'
    assert draft_of(path, b'{"model":"cheap",' + REST + b"," + within + b"}").name == "cheap"


def test_model_key_in_another_case_is_named_in_the_error() -> None:
    assert "`Model`" in refusal_of("/v1/responses", b'{"Model":"dear"}').message


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/images/edits"])
@pytest.mark.parametrize("names", [("Model", "model"), ("model", "MODEL"), ("model", "model")])
def test_duplicate_model_fields_of_a_form_are_refused(path: str, names: tuple[str, str]) -> None:
    parts = b"".join(b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\nm\r\n' % n.encode() for n in names)
    refusal = refusal_of(path, parts + b"--b--\r\n", "multipart/form-data; boundary=b")
    assert refusal.param == "model"


def test_duplicate_model_hidden_behind_too_many_keys_is_refused() -> None:
    many = b",".join(b'"k%d":1' % n for n in range(MAX_KEYS + 1))
    assert "more than" in refusal_of("/v1/responses", b'{"model":"m",' + many + b',"model":"m"}').message
    assert draft_of("/v1/responses", b'{"model":"m",' + many + b"}").name == "m"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": MESSAGES}, "model"),
        ({"model": "", "messages": MESSAGES}, "model"),
        ({"model": None, "messages": MESSAGES}, "model"),
        ({"model": 3, "messages": MESSAGES}, "model"),
        ({"model": "a\r\nx-evil: 1", "messages": MESSAGES}, "model"),
        ({"model": "m" * 300, "messages": MESSAGES}, "model"),
        ({"model": "m"}, "messages"),
        ({"model": "m", "messages": []}, "messages"),
        ({"model": "m", "messages": ["hi"]}, "messages"),
        ({"model": "m", "messages": [{"content": "hi"}]}, "messages"),
        ({"model": "m", "messages": MESSAGES, "stream": "true"}, "stream"),
        ({"model": "m", "messages": MESSAGES, "stream": 1}, "stream"),
    ],
)
def test_invalid_chat_field_is_named_in_the_error(body: dict[str, Any], param: str) -> None:
    refused = refusal_of("/v1/chat/completions", body)
    assert refused.param == param
    assert param in refused.message


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the body is empty"),
        (b"[]", "Expected `object`"),
        (b'{"model":', "not valid JSON"),
        (b'{"x": NaN}', "not valid JSON"),
        (b'{"x": [1, -Infinity]}', "not valid JSON"),
        (b'{"model":"m","messages":[{"role":"u"}]} x', "trailing characters"),
        (b'{"x":"\xff"}', "not UTF-8 (byte 6)"),
        (b'{"\xff":1,"model":"m","messages":[{"role":"u"}]}', "not UTF-8 (byte 2)"),
        (b'"\\ud800"', "stands alone"),
        (b'{"x":"\\udc00"}', "not valid JSON"),
        (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"x":' * 100_000, "nested too deeply"),
        (b"a=1&b=2", "not valid JSON"),
        ("{}".encode("utf-16"), "not UTF-8"),
    ],
    ids=range(14),
)
def test_body_that_is_not_json_is_refused_with_the_reason(body: bytes, words: str) -> None:
    assert words in refusal_of("/v1/chat/completions", body).message


@given(st.binary())
def test_any_bytes_are_parsed_or_refused_as_invalid(body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/embeddings", "/v1/tasks/t", "/v1/audio/transcriptions", "/v1/messages"):
        with suppress(TaskInvalid):
            draft_of(path, body)


# ── embeddings ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("inputs", "items"),
    [("a", 1), (["a"], 1), (["a", "b", ""], 3), ([1, 2, 3], 1), ([[1, 2], [3]], 2)],
)
def test_embedding_inputs_are_counted(inputs: Any, items: int) -> None:
    assert draft_of("/v1/embeddings", {"model": "m", "input": inputs}).items == items


@pytest.mark.parametrize("inputs", ["", [], [[]], ["a", 1], [[1], 2], [True], [-1], [1.5], None, {"a": 1}, [None]])
def test_malformed_embedding_inputs_are_refused(inputs: Any) -> None:
    assert refusal_of("/v1/embeddings", {"model": "m", "input": inputs}).param == "input"


def test_encoding_format_is_parsed_and_validated() -> None:
    body = {"model": "m", "input": "a"}
    assert draft_of("/v1/embeddings", body).encoding_format is None
    assert draft_of("/v1/embeddings", body | {"encoding_format": "base64"}).encoding_format == "base64"
    assert refusal_of("/v1/embeddings", body | {"encoding_format": "hex"}).param == "encoding_format"


# ── tasks ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("body", "items"),
    [
        (b'{"a":10,"b":20}', 1),
        (b'{"items":[1,[2],{"x":3}]}', 3),
        (b' {"items" : [1, 2]}', 2),
        (b'{"items":[]}', 1),
        (b'{"items":7}', 1),
        (b"[1,2,3]", 1),
        (b'"text"', 1),
        (b"null", 1),
    ],
)
def test_a_task_takes_any_json_and_counts_its_items(body: bytes, items: int) -> None:
    draft = draft_of("/v1/tasks/add", body)
    assert (draft.name, draft.items, draft.body) == ("add", items, body)


def test_an_empty_task_body_is_an_empty_object() -> None:
    assert draft_of("/v1/tasks/now", b"", "").body == b"{}"


@pytest.mark.parametrize("body", [b"nope", b'{"a":1', b'{"items":[1,NaN]}', b'{"a":"\xff"}', b"{}{}", b" "])
def test_task_body_that_is_not_json_is_refused(body: bytes) -> None:
    refusal_of("/v1/tasks/add", body)


def test_task_arguments_named_stream_or_model_are_not_interpreted() -> None:
    draft = draft_of("/v1/tasks/add", {"stream": "x", "model": 3})
    assert not draft.stream


# ── forms ────────────────────────────────────────────────────────────────────────────────────────

WAV = Upload(b"RIFF\r\n--not-a-boundary\x00\xff", "speech.wav", "audio/wav")


def form(fields: dict[str, Any], files: dict[str, Upload] | None = None) -> tuple[bytes, str]:
    content_type, body = encode(fields, {"file": WAV} if files is None else files)
    return body, content_type


def test_transcription_form_is_parsed() -> None:
    asked = {"model": "m", "response_format": "srt", "stream": "true", "timestamp_granularities[]": ["word"]}
    body, content_type = form(asked)
    draft = draft_of("/v1/audio/transcriptions", body, content_type)
    assert (draft.name, draft.response_format, draft.stream) == ("m", "srt", True)
    assert draft.fields == asked
    assert draft.files == {"file": WAV}
    assert (draft.body, draft.content_type) == (body, content_type)


def test_form_without_a_content_type_is_recognised_by_its_boundary() -> None:
    body, _ = form({"model": "m"})
    assert draft_of("/v1/audio/transcriptions", body, "").name == "m"


@pytest.mark.parametrize(
    ("fields", "files", "param"),
    [
        ({}, None, "model"),
        ({"model": ""}, None, "model"),
        ({"model": ["a", "b"]}, None, "model"),
        ({"model": "m"}, {}, "file"),
        ({"model": "m", "file": "speech.wav"}, {}, "file"),
        ({"model": "m"}, {"audio": WAV}, "file"),
        ({"model": "m", "response_format": "docx"}, None, "response_format"),
        ({"model": "m", "stream": "perhaps"}, None, "stream"),
    ],
)
def test_invalid_form_field_is_named_in_the_error(fields: Any, files: Any, param: str) -> None:
    body, content_type = form(fields, files)
    assert refusal_of("/v1/audio/transcriptions", body, content_type).param == param


def test_transcription_that_is_not_a_form_is_refused() -> None:
    assert "multipart/form-data" in refusal_of("/v1/audio/transcriptions", {"model": "m"}).message


def test_a_task_may_be_a_form() -> None:
    body, content_type = form({"language": "en"})
    draft = draft_of("/v1/tasks/spell", body, content_type)
    assert (draft.fields, draft.files) == ({"language": "en"}, {"file": WAV})


# ── relayed requests ─────────────────────────────────────────────────────────────────────────────


def test_relayed_body_is_read_only_for_model_and_stream() -> None:
    draft = draft_of("/v1/responses", {"model": "m", "input": [], "stream": True})
    assert (draft.kind, draft.name, draft.stream) == ("other", "m", True)
    assert draft_of("/v1/images/generations", {"prompt": "a cat"}).name == ""


@pytest.mark.parametrize("path", ["/v1/audio/speech", "/v1/audio/speech?x=1"])
def test_speech_request_with_stream_is_not_treated_as_an_event_stream(path: str) -> None:
    assert not draft_of(path, {"model": "m", "input": "x", "stream": True}).stream


def test_relayed_form_is_forwarded_unchanged() -> None:
    body, content_type = form({"model": "m"})
    draft = draft_of("/v1/audio/translations", body, content_type)
    assert (draft.kind, draft.name, draft.body, draft.content_type) == ("other", "m", body, content_type)
