"""An upstream's events as clients receive them, and how a stream ends."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.plugin import BackendUnavailable, Kind, Part
from support.api_streams import chunk, raw, sent, stream_of, values


def test_upstream_events_pass_unchanged_with_one_done_after_the_timing_comment() -> None:
    events = [b'data: {"model":"x-2024","choices":[]}\n\n', b'event: x\ndata: {"y":1}\nid: 3\n\n']
    out = sent(stream_of(), [Part(raw=e) for e in [*events, b"data: [DONE]\n\n"]], {"total_ms": 1.5})
    assert out == b"".join(events) + b': timing {"total_ms":1.5}\n\ndata: [DONE]\n\n'


def test_done_is_added_when_the_upstream_sends_none() -> None:
    assert sent(stream_of(), [raw({"choices": []})]).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("served_as", ["llama3.2:3b", None])
def test_requested_model_name_is_restored_in_every_event(served_as: str | None) -> None:
    event = (
        b'data: {"id":"1","model":"llama3.2:3b","choices":[{"delta":{"content":"\\"model\\":\\"llama3.2:3b\\""}}]}\n\n'
    )
    out = stream_of(served_as=served_as).part(Part(raw=event))
    assert out == event.replace(b'"model":"llama3.2:3b"', b'"model":"assistant"', 1)


def test_upstream_comments_are_dropped() -> None:
    parts = [Part(raw=b": keep-alive\n\n"), Part(raw=b": timing {}\n\n"), Part(raw=b"event: ping\n\n")]
    assert b"".join(stream_of().part(part) for part in parts) == b""


def test_several_events_per_part_and_crlf_line_ends_are_parsed() -> None:
    out = stream_of().part(Part(raw=b'data: {"a":1}\r\n\r\ndata: {"b":2}\n\ndata: [DONE]\n\n'))
    assert values(out) == [{"a": 1}, {"b": 2}]


def test_upstream_error_event_raises_instead_of_ending_the_stream() -> None:
    with pytest.raises(BackendUnavailable, match="broke off its stream") as caught:
        stream_of().part(raw({"error": {"message": "no memory"}}))
    assert caught.value.detail == "no memory"
    with pytest.raises(BackendUnavailable):
        stream_of().part(Part(raw=b'data: {"error": nonsense\n\n'))


@pytest.mark.parametrize("kind", ["chat", "completion", "transcription", "task", "other"])
def test_error_event_is_not_followed_by_done(kind: Kind) -> None:
    stream = stream_of(kind)
    stream.part(Part("x"))
    assert stream.error({"error": {"message": "m"}}) == b'data: {"error":{"message":"m"}}\n\n'
    assert stream.heartbeat() == b": keep-alive\n\n"
    assert stream.headers["Content-Type"] == "text/event-stream"


@pytest.mark.parametrize("kind", ["chat", "completion", "other"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_multi_line_event_changes_only_in_its_model_name(kind: Kind, end: str) -> None:
    said = {"model": "up", "choices": [{"index": 0, "delta": {"content": "x"}}]}
    lines = json.dumps(said, indent=1).split("\n")
    framed = end.join(["event: e", *(f"data: {line}" for line in lines), "id: 7", "", ""]).encode()
    out = stream_of(kind, served_as="up").part(Part(raw=framed))
    assert values(out) == [said | {"model": "assistant"}]
    assert out.startswith(b"event: e\nid: 7\ndata: ")
    assert out.endswith(b"\n\n")
    assert b"\n\n" not in out[:-2]


@pytest.mark.parametrize("none", [None, "", False, {}])
def test_empty_error_field_does_not_end_the_stream(none: Any) -> None:
    said = raw({"error": none, **chunk({"content": "x"})})
    assert values(stream_of().part(said)) == [{"error": none, **chunk({"content": "x"})}]
