"""Event streams as clients read them, and parts collected into whole responses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.api.content import has_content
from gateway.api.parse import ParsedRequest
from gateway.api.render import ResponseRenderer, streamed, wants_whole
from gateway.api.sse import events_of
from gateway.api.streams import StreamEncoder
from gateway.plugin import BackendUnavailable, Kind, Part, Result

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
TYPED_KINDS: tuple[Kind, ...] = ("chat", "completion")


def draft(kind: Kind = "chat", **more: Any) -> ParsedRequest:
    return ParsedRequest(
        kind=kind, name="assistant", path="/", body=b"", content_type="application/json", stream=True, **more
    )


def stream_of(kind: Kind = "chat", served_as: str | None = "assistant", **more: Any) -> StreamEncoder:
    return streamed(draft(kind, **more), request_id="r1", served_as=served_as)


def sent(stream: StreamEncoder, parts: Sequence[Part], timing: dict[str, Any] | None = None) -> bytes:
    return b"".join([*(stream.part(part) for part in parts), stream.end(timing)])


def values(raw: bytes) -> list[Any]:
    """Return the JSON data of every event, and `[DONE]` as a string."""
    found = [data for _, data in events_of(raw)]
    return ["[DONE]" if data == b"[DONE]" else json.loads(data) for data in found]


def raw(value: Any) -> Part:
    return Part(raw=b"data: " + (value if isinstance(value, bytes) else msgspec.json.encode(value)) + b"\n\n")


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"model": "up", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


# ── chat from texts ──────────────────────────────────────────────────────────────────────────────


def test_texts_become_chunks_with_role_first_finish_reason_last_and_one_done() -> None:
    events = values(sent(stream_of(), [Part("he"), Part("llo"), Part("")]))
    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    assert deltas == [{"role": "assistant", "content": "he"}, {"content": "llo"}, {}]
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None, None, "stop"]
    assert {(event["id"], event["object"], event["model"]) for event in events[:-1]} == {
        ("chatcmpl-r1", "chat.completion.chunk", "assistant")
    }
    assert events[-1] == "[DONE]"


def test_completions_stream_texts() -> None:
    events = values(sent(stream_of("completion"), [Part("a"), Part("b")]))
    assert [event["choices"][0]["text"] for event in events[:-1]] == ["a", "b", ""]
    assert events[0]["object"] == "text_completion"


@pytest.mark.parametrize(("wanted", "count"), [(True, 1), (False, 0)])
def test_usage_is_sent_last_and_only_on_request(wanted: bool, count: int) -> None:
    parts = [Part({"usage": USAGE}), Part("hi")]
    events = values(sent(stream_of(include_usage=wanted), parts))
    assert sum(1 for event in events[:-1] if event.get("usage")) == count
    if wanted:
        assert events[-2]["choices"] == []
        assert events[-2]["usage"] == USAGE


def test_empty_stream_ends_with_finish_reason_and_done() -> None:
    events = values(sent(stream_of(), []))
    assert events[0]["choices"][0] == {
        "index": 0,
        "delta": {"role": "assistant"},
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert events[1] == "[DONE]"


def test_chunks_of_a_plugin_keep_their_fields() -> None:
    parts = [Part(chunk({"role": "assistant", "content": "x"}, x_extra=1)), Part(chunk({}, "length"))]
    events = values(sent(stream_of(), parts))
    assert events[0]["x_extra"] == 1
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None, "length"]


def test_stream_with_a_tool_call_ends_with_finish_reason_tool_calls() -> None:
    events = values(sent(stream_of(), [Part({"tool_calls": [{"index": 0, "id": "c"}]})]))
    assert events[-2]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("value", [3, [1], b"bytes", None])
def test_non_text_part_in_a_text_stream_raises_backend_unavailable(value: Any) -> None:
    with pytest.raises(BackendUnavailable):
        stream_of().part(Part(value))


# ── an upstream's events ─────────────────────────────────────────────────────────────────────────


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


def test_relayed_stream_of_another_kind_passes_unchanged_without_added_done() -> None:
    event = b'event: message_stop\ndata: {"type":"message_stop","model":"x"}\n\n'
    assert sent(stream_of("other", None), [Part(raw=event)], {"total_ms": 1}) == event + b': timing {"total_ms":1}\n\n'
    with_done = sent(stream_of("other"), [Part(raw=event), raw(b"[DONE]")])
    assert with_done == event + b"data: [DONE]\n\n"


@pytest.mark.parametrize("holder", ["response", "message"])
def test_relayed_stream_restores_the_requested_model_name_in_nested_objects(holder: str) -> None:
    told = b'event: begins\ndata: {"type":"x","%b":{"id":"r","model":"big","n":1.10}}\n\n' % holder.encode()
    assert sent(stream_of("other", "big"), [Part(raw=told)]) == told.replace(b"big", b"assistant")
    said = b'event: delta\ndata: {"delta":"a \\"model\\" is said"}\n\n'
    assert sent(stream_of("other", "big"), [Part(raw=said)]) == said


# ── tasks and transcripts ────────────────────────────────────────────────────────────────────────


def test_task_stream_wraps_each_generator_value_in_a_part_event() -> None:
    out = sent(stream_of("task"), [Part(1), Part(None), Part({"a": b"\x00"}), Part("")])
    assert out == (
        b'data: {"part":1}\n\ndata: {"part":null}\n\ndata: {"part":{"a":"AA=="}}\n\ndata: {"part":""}\n\n'
        b"data: [DONE]\n\n"
    )


def test_transcript_stream_sends_deltas_then_the_whole_text() -> None:
    events = values(sent(stream_of("transcription"), [Part("go "), Part({"text": "forward"})]))
    assert events == [
        {"type": "transcript.text.delta", "delta": "go "},
        {"type": "transcript.text.delta", "delta": "forward"},
        {"type": "transcript.text.done", "text": "go forward"},
        "[DONE]",
    ]


def test_transcript_done_event_of_a_backend_is_not_repeated() -> None:
    done = {"type": "transcript.text.done", "text": "go"}
    assert values(sent(stream_of("transcription"), [Part(done)])) == [done, "[DONE]"]
    assert values(sent(stream_of("transcription"), [raw(done)])) == [done, "[DONE]"]


# ── errors ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["chat", "completion", "transcription", "task", "other"])
def test_error_event_is_not_followed_by_done(kind: Kind) -> None:
    stream = stream_of(kind)
    stream.part(Part("x"))
    assert stream.error({"error": {"message": "m"}}) == b'data: {"error":{"message":"m"}}\n\n'
    assert stream.heartbeat() == b": keep-alive\n\n"
    assert stream.headers["Content-Type"] == "text/event-stream"


# ── whole results for streaming clients ──────────────────────────────────────────────────────────


def test_whole_text_streams_as_content_finish_reason_and_done() -> None:
    stream = stream_of()
    events = values(stream.whole(Result(json="hello")) + stream.end())
    assert events[0]["choices"][0]["delta"]["content"] == "hello"
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert events[1]["choices"][0]["finish_reason"] == "stop"
    assert events[2:] == ["[DONE]"]


def test_relayed_whole_response_streams_with_tool_calls_finish_reason_and_usage() -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    whole = {
        "id": "up",
        "model": "assistant",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
        "usage": USAGE,
    }
    stream = stream_of(include_usage=True)
    events = values(stream.whole(Result(body=msgspec.json.encode(whole))) + stream.end())
    assert events[0]["id"] == "up"
    assert events[0]["choices"][0]["delta"]["tool_calls"] == [{"index": 0, **calls[0]}]
    assert events[1]["choices"][0]["finish_reason"] == "tool_calls"
    assert events[2]["usage"] == USAGE


@pytest.mark.parametrize(
    "result", [Result(json="hi"), Result(json={"text": "hi"}), Result(body=b"hi\n", content_type="text/plain")]
)
def test_whole_transcript_streams_as_delta_and_done(result: Result) -> None:
    stream = stream_of("transcription")
    events = values(stream.whole(result) + stream.end())
    assert [event["type"] for event in events[:-1]] == ["transcript.text.delta", "transcript.text.done"]
    assert events[1]["text"] == "hi"


# ── events of several lines ──────────────────────────────────────────────────────────────────────


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


@pytest.mark.parametrize("choices", [["x"], [None], "x", {}, 3, [{"delta": "x"}], [{"index": "0"}]])
def test_chunk_with_malformed_choices_raises_backend_unavailable(choices: Any) -> None:
    for kind in ("chat", "completion"):
        with pytest.raises(BackendUnavailable):
            stream_of(kind).part(Part({"choices": choices}))
        with pytest.raises(BackendUnavailable):
            collected(draft(kind), [Part({"choices": choices})])


# ── parts for non-streaming clients ──────────────────────────────────────────────────────────────


def test_texts_are_collected_into_one_chat_completion() -> None:
    chat = answer_of(draft(), [Part("he"), Part("llo")])
    assert chat["choices"][0]["message"]["content"] == "hello"
    assert chat["choices"][0]["finish_reason"] == "stop"
    assert chat["object"] == "chat.completion"


def test_an_upstreams_chunks_are_merged() -> None:
    def tool(index: int, **more: Any) -> dict[str, Any]:
        return {"tool_calls": [{"index": index, **more}]}

    parts = [
        raw(chunk({"role": "assistant", "content": None}, id="up", object="chat.completion.chunk", usage=None)),
        raw(chunk(tool(0, id="a", type="function", function={"name": "f", "arguments": '{"x'}))),
        raw(chunk(tool(1, id="b", type="function", function={"name": "g", "arguments": ""}))),
        raw(chunk(tool(0, id="a", type="function", function={"name": "f", "arguments": '":1}'}))),
        raw(chunk({}, "tool_calls")),
        raw({"model": "up", "choices": [], "usage": USAGE}),
        raw(b"[DONE]"),
    ]
    chat = answer_of(draft(), parts)
    assert chat["choices"] == [
        {
            "index": 0,
            "logprobs": None,
            "message": {
                "role": "assistant",
                "content": None,
                "refusal": None,
                "tool_calls": [
                    {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
                    {"id": "b", "type": "function", "function": {"name": "g", "arguments": ""}},
                ],
            },
            "finish_reason": "tool_calls",
        }
    ]
    assert (chat["id"], chat["model"], chat["usage"], chat["object"]) == ("up", "up", USAGE, "chat.completion")


deltas = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), min_size=1),
    st.builds(lambda text: {"content": text}, st.text(st.characters(exclude_categories=("Cs",)))),
    st.builds(
        lambda index, arguments: {
            "tool_calls": [{"index": index, "id": str(index), "function": {"arguments": arguments}}]
        },
        st.integers(0, 2),
        st.text(st.characters(exclude_categories=("Cs",))),
    ),
    st.builds(
        lambda index, text: {"choices": [{"index": index, "delta": {"content": text}}]},
        st.integers(0, 2),
        st.text("ab"),
    ),
    st.just({"usage": USAGE}),
)


@given(st.lists(deltas, min_size=1))
def test_collecting_a_rendered_stream_equals_collecting_its_parts(said: list[Any]) -> None:
    """Streaming and non-streaming clients read the same response."""
    assume(any(value != {"usage": USAGE} for value in said))  # usage alone is not a response
    parts = [Part(value) for value in said]
    asked = draft(include_usage=True)
    direct = answer_of(asked, parts)
    relayed = [Part(raw=framed) for framed, _ in events_of(sent(stream_of(include_usage=True), parts))]
    streamed_answer = answer_of(asked, relayed)
    for one in (direct, streamed_answer):
        one.pop("id"), one.pop("created")
        assert one["choices"]
    assert_same_choices(direct["choices"], streamed_answer["choices"])
    assert direct.get("usage") == streamed_answer.get("usage")


def answer_of(asked: ParsedRequest, parts: Sequence[Part]) -> dict[str, Any]:
    return json.loads(collected(asked, parts).body or b"")


def collected(asked: ParsedRequest, parts: Sequence[Part]) -> Result:
    wanted = ResponseRenderer(replace(asked, stream=False), "r", "the backend", "assistant")
    for part in parts:
        wanted.add(part)
    return asyncio.run(wanted.whole(None))


def assert_same_choices(direct: list[dict[str, Any]], streamed_ones: list[dict[str, Any]]) -> None:
    said = {choice["index"]: choice for choice in streamed_ones}
    for choice in direct:
        assert said[choice["index"]]["message"] == choice["message"]


@given(
    st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1), min_size=1, max_size=3),
    st.sampled_from(["stop", "length", "content_filter"]),
)
def test_whole_response_is_unchanged_after_streaming_and_collecting(texts: list[str], reason: str) -> None:
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": reason,
        }
        for i, text in enumerate(texts)
    ]
    whole = {"id": "x", "created": 1, "model": "assistant", "choices": choices, "usage": USAGE, "x_more": {"a": 1}}
    stream = stream_of(include_usage=True)
    events = [Part(raw=framed) for framed, _ in events_of(stream.whole(Result(json=whole)) + stream.end())]
    assert answer_of(draft(), events) == {"object": "chat.completion", **whole}


def test_completion_parts_are_collected_into_one_completion() -> None:
    parts = [Part("a"), raw({"choices": [{"index": 0, "text": "b", "finish_reason": "length"}]})]
    completion = answer_of(draft("completion"), parts)
    assert completion["choices"] == [{"logprobs": None, "index": 0, "text": "ab", "finish_reason": "length"}]


@pytest.mark.parametrize(
    "parts",
    [
        [Part("go "), Part("on")],
        [raw({"type": "transcript.text.delta", "delta": "go "}), raw({"type": "transcript.text.delta", "delta": "on"})],
        [Part("x"), raw({"type": "transcript.text.done", "text": "go on"}), raw(b"[DONE]")],
    ],
)
def test_transcript_parts_are_collected_into_one_transcript(parts: list[Part]) -> None:
    assert answer_of(draft("transcription"), parts) == {"text": "go on"}


def test_error_or_invalid_part_while_collecting_raises_backend_unavailable() -> None:
    for kind in TYPED_KINDS:
        for bad in (raw({"error": {"message": "no"}}), raw(b"{nonsense"), Part(3)):
            with pytest.raises(BackendUnavailable):
                collected(draft(kind), [Part("x"), bad])


def test_task_values_are_collected_as_a_list_and_relayed_streams_are_not_collected() -> None:
    assert not wants_whole(replace(draft("other"), stream=False), raw({"b": 1}))
    assert answer_of(draft("other"), [Part(1), Part(2)]) == {"result": [1, 2]}
    assert answer_of(draft("task"), [Part(1), Part(2)]) == {"result": [1, 2]}


@pytest.mark.parametrize("kind", ["chat", "completion"])
@pytest.mark.parametrize("parts", [[], [Part({"usage": USAGE})], [raw({"choices": [], "usage": USAGE})]])
def test_stream_without_content_raises_when_collected(kind: Kind, parts: list[Part]) -> None:
    with pytest.raises(BackendUnavailable, match="before it had begun"):
        collected(draft(kind), parts)


# ── what counts as content ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (Part("x"), True),
        (Part(""), False),
        (Part({"content": "x"}), True),
        (Part({"usage": USAGE}), False),
        (Part({"role": "assistant"}), False),
        (Part({"content": ""}), False),
        (Part({"content": None}), False),
        (Part({"tool_calls": [{"index": 0}]}), True),
        (Part({"error": "no"}), False),
        (raw(chunk({"role": "assistant"})), False),
        (raw(chunk({"role": "assistant", "content": ""})), False),
        (raw(chunk({"role": "assistant", "content": None, "tool_calls": []})), False),
        (raw(chunk({"content": "x"})), True),
        (raw(chunk({"reasoning_content": "hm"})), True),
        (raw(chunk({"tool_calls": [{"index": 0}]})), True),
        (raw(chunk({}, "stop")), True),
        (raw({"choices": [{"text": "x"}]}), True),
        (raw({"choices": [{"text": ""}]}), False),
        (raw({"choices": [], "usage": USAGE}), False),
        (raw({"error": {"message": "no"}}), False),
        (raw(b"[DONE]"), False),
        (raw(b"{nonsense"), False),
        (raw({"type": "response.created"}), False),
        (raw({"type": "ping"}), False),
        (raw({**chunk({"content": "x"}), "error": None}), True),
        (raw({"object": "error", "message": "no"}), False),
        (raw({"detail": "no"}), False),
        (raw(b"alive"), False),
        (Part(raw=b": keep-alive\n\n"), False),
    ],
    ids=range(29),
)
def test_has_content_recognises_generated_content(part: Part, expected: bool) -> None:
    assert has_content(draft(), part) is expected


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("other", {"type": "response.output_text.delta", "delta": "x"}),
        ("other", {"delta": "x"}),
        ("transcription", {"type": "transcript.text.delta", "delta": "x"}),
    ],
)
def test_delta_events_of_other_kinds_count_as_content(kind: Kind, value: Any) -> None:
    assert has_content(draft(kind), raw(value))


def test_every_value_of_a_task_generator_counts_as_content() -> None:
    assert all(has_content(draft("task"), Part(value)) for value in (None, 0, "", [], "x"))
    assert all(
        has_content(draft("task"), raw(value)) for value in ({"type": 3}, {"choices": "abc"}, 3, "", {"error": 1})
    )
    assert not has_content(draft("task"), raw(b"[DONE]"))


@pytest.mark.parametrize("none", [None, "", False, {}])
def test_empty_error_field_does_not_end_the_stream(none: Any) -> None:
    said = raw({"error": none, **chunk({"content": "x"})})
    assert values(stream_of().part(said)) == [{"error": none, **chunk({"content": "x"})}]


def test_repeated_content_filter_results_are_merged_into_one() -> None:
    results = {"hate": {"filtered": False, "severity": "safe"}}
    said = {"index": 0, "delta": {"content": "x"}, "content_filter_results": results}
    whole = answer_of(draft(), [Part({"choices": [said]}), Part({"choices": [said]})])
    assert whole["choices"][0]["content_filter_results"] == results
    assert whole["choices"][0]["message"]["content"] == "xx"
