"""Forwarded JSON and forms are unchanged byte for byte, except for the model name."""

from __future__ import annotations

import time

import pytest

from gateway.plugin import Task, TaskInvalid, Upload, set_form_model
from gateway_http.rewrite_model import set_json_model
from support.http_backend import chat, opened, result
from support.upstream import Upstream, answer

COMPLETION = {"id": "1", "object": "chat.completion", "choices": [{"index": 0, "message": {"content": "hi"}}]}


# --- JSON -------------------------------------------------------------------------------------------------------------


async def test_body_is_unchanged_when_the_model_name_is_the_same() -> None:
    body = b'{ "model" : "m",  "seed": 1.0, "x": 12345678901234567890123 }'
    async with Upstream(answer(json=COMPLETION)) as upstream, opened(upstream.url) as (backend, _):
        await result(backend, chat("m", body=body))
    assert upstream.requests[0].body == body


async def test_only_the_model_name_changes_for_the_backend() -> None:
    body = b'{"model":"assistant","seed":1.0,"x":12345678901234567890123,"s":"\\u00e9"}'
    async with Upstream(answer(json=COMPLETION)) as upstream, opened(upstream.url) as (backend, _):
        await result(backend, chat("llama3.2:3b", body=body))
    assert upstream.requests[0].body == body.replace(b"assistant", b"llama3.2:3b")


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (b' {\n  "model" : "a",\n  "a": 1.0, "a": 2, "\\u0065": "\\/" } ',
         b' {\n  "model" : "b/\xc3\xa9",\n  "a": 1.0, "a": 2, "\\u0065": "\\/" } '),
        (b'{"x": {"model": "a"}, "s": "\\"model\\":\\"a\\"", "model": "a"}',
         b'{"x": {"model": "a"}, "s": "\\"model\\":\\"a\\"", "model": "b/\xc3\xa9"}'),
        (b'{"model": "a", "x": [{"model": "a"}]}', b'{"model": "b/\xc3\xa9", "x": [{"model": "a"}]}'),
        (b'{"model": null}', b'{"model": "b/\xc3\xa9"}'),
        (b' {"a": 1}', b' {"model":"b/\xc3\xa9","a": 1}'),
        (b"{ }", b'{"model":"b/\xc3\xa9" }'),
        (b'{"x": {"model": "a"}, "model": "a", "y": {"model": "a"}}',
         b'{"x":{"model": "a"},"model":"b/\xc3\xa9","y":{"model": "a"}}'),
        (b'{"mod\\u0065l": "a", "x":  1}', b'{"model":"b/\xc3\xa9","x":1}'),
        (b'{"model": "z", "model": "a"}', b'{"model": "z", "model": "b/\xc3\xa9"}'),
    ],
    ids=["spaces", "last", "first", "null", "none", "nothing", "between", "escaped", "twice"],
)  # fmt: skip
def test_model_value_is_replaced_in_place(body: bytes, sent: bytes) -> None:
    assert set_json_model(body, "b/é") == sent


@pytest.mark.parametrize("body", [b"[1]", b'{"model": ', b'{"model": 1}', b"\xff", b"[" * 9000])
def test_body_that_cannot_name_its_model_is_not_sent(body: bytes) -> None:
    with pytest.raises(TaskInvalid):
        set_json_model(body, "b")


# --- forms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "model"),
    [
        (b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nsmall', "big"),
        (b'--b\r\nContent-Disposition: form-data; name="model"\r\nContent-Type: text/plain\r\n\r\nsmall', "big"),
        (b"--b\r\ncontent-disposition: form-data; name=model\r\n\r\n", "big"),
    ],
    ids=["plain", "with content type", "empty, unquoted"],
)
async def test_relayed_form_gets_the_backend_model_and_keeps_every_other_byte(form: bytes, model: str) -> None:
    image = b'\r\n--b\r\nContent-Disposition: form-data; name="image[]"; filename="a"\r\n\r\n\x00\r\nmodel\r\n'
    body = form + image + image + b"--b--\r\n"
    kind = {"path": "/v1/images/edits", "content_type": 'multipart/form-data; boundary="b"'}
    async with Upstream(answer(json={"data": []})) as upstream, opened(upstream.url) as (backend, _):
        await result(backend, chat(model, body=body, **kind).replace(kind="other"))
    head = form.rpartition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    assert upstream.requests[-1].body == head + b"big" + image + image + b"--b--\r\n"


async def test_relayed_form_without_a_model_gets_one_added() -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nx\r\n--b--\r\n'
    kind = {"path": "/v1/images/edits", "content_type": "multipart/form-data; boundary=b"}
    async with Upstream(answer(json={"data": []})) as upstream, opened(upstream.url) as (backend, _):
        await result(backend, chat("big", body=body, **kind).replace(kind="other"))
    sent = upstream.requests[-1].body
    assert sent.endswith(body)
    assert b'name="model"\r\n\r\nbig\r\n--b' in sent


HEAD = 'Content-Disposition: form-data; name="'


def others(b: str) -> str:
    """The parts after the model's, up to the end of the form.

    The file part contains a fake model part.
    """
    return (
        f'{HEAD}timestamp_granularities[]"\r\nX-Own: 1\r\n\r\nword\r\n--{b}\r\n'
        f'{HEAD}timestamp_granularities[]"\r\n\r\nsegment\r\n--{b}\r\n'
        f'{HEAD}file"; filename="model"\r\n\r\n\r\n--x{b}\r\n{HEAD}model"\r\n\r\nmodel\r\n--{b}--\r\n'
    )


@pytest.mark.parametrize(
    ("head", "boundary", "content_type"),
    [
        (f'{HEAD}model"', "b", "multipart/form-data; charset=utf-8; boundary=b"),
        (f'{HEAD}model"', "a b", 'Multipart/Form-Data; charset=utf-8; boundary="a b"'),
        (f'{HEAD}model"\r\nContent-Type: text/plain; charset="utf-8"', "'()+_,-./:=?",
         """multipart/form-data; boundary="'()+_,-./:=?" """),
        ('X-Own: name="no"\r\ncontent-disposition:form-data;name=model', "b", "multipart/form-data;boundary=b"),
        ('Content-Disposition: form-data; NAME="model"', "b", "multipart/form-data; boundary=b"),
    ],
    ids=["charset", "space", "typed", "unquoted", "capitals"],
)  # fmt: skip
def test_only_the_part_named_model_is_replaced(head: str, boundary: str, content_type: str) -> None:
    form = f"--{boundary}\r\n{head}\r\n\r\n{{}}\r\n--{boundary}\r\n{others(boundary)}"
    for before in ("old", "", "\r\n", "-- \r\n\r\n"):
        named = set_form_model(form.replace("{}", before).encode(), content_type, "né/w")
        shown = boundary if boundary == "b" else f'"{boundary}"'
        assert named == (form.replace("{}", "né/w").encode(), f"multipart/form-data; boundary={shown}")


@pytest.mark.parametrize(
    "body",
    [
        b"", b"--b", b"--b\r\n", b"--b\r\nx: y\r\n\r\nz\r\n--b\r\n", b"--c--\r\n", b"as it came",
        b'--b\r\n\r\nContent-Disposition: form-data; name="model"\r\n\r\nold\r\n--b--\r\n',
    ],
)  # fmt: skip
def test_malformed_form_is_not_sent(body: bytes) -> None:
    for content_type in ("multipart/form-data; boundary=b", "multipart/form-data"):
        with pytest.raises(TaskInvalid):
            set_form_model(body, content_type, "new")


def test_missing_content_type_is_rebuilt_from_the_form() -> None:
    body = b'--a b\r\nContent-Disposition: form-data; name="model"\r\n\r\nold\r\n--a b--'
    assert set_form_model(body, "", "new") == (body.replace(b"old", b"new"), 'multipart/form-data; boundary="a b"')


async def test_transcription_form_is_forwarded_with_the_backend_model_name() -> None:
    body = f'--b\r\n{HEAD}model"\r\n\r\nears\r\n--b\r\n{others("b")}'.encode()
    task = Task(
        kind="transcription", name="whisper", path="/v1/audio/transcriptions", deadline=time.monotonic() + 5,
        body=body, content_type="multipart/form-data; boundary=b",
        fields={"model": "ears", "timestamp_granularities[]": ["word", "segment"]}, files={"file": Upload(b"x")},
    )  # fmt: skip
    async with Upstream(answer(json={"text": "go"})) as upstream, opened(upstream.url) as (backend, _):
        await result(backend, task)
    assert upstream.requests[0].body == body.replace(b"ears", b"whisper")


async def test_parsed_fields_are_encoded_as_a_form_with_the_backend_model() -> None:
    task = Task(
        kind="transcription", name="whisper", path="/v1/audio/transcriptions", deadline=time.monotonic() + 5,
        fields={"model": "ears", "language": "en", "granularities[]": ["word", "segment"]},
        files={"file": Upload(b"RIFF\r\n--b\r\n", 'a"b.wav', "audio/wav")},
    )  # fmt: skip
    async with Upstream(answer(json={"text": "go"})) as upstream, opened(upstream.url) as (backend, _):
        await result(backend, task)
    body = upstream.requests[0].body
    assert b'name="model"\r\n\r\nwhisper\r\n' in body
    assert body.count(b'name="granularities[]"') == 2
    assert b'name="file"; filename="a%22b.wav"\r\nContent-Type: audio/wav\r\n\r\nRIFF\r\n--b\r\n\r\n--' in body
