"""Chat completions: chunks from texts, deltas and chunks; responses split into chunks and collected from them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway.api.sse_framing import split_events
from gateway.plugin import BackendUnavailable, Part, Result
from support.api_streams import USAGE, answer_of, chunk, draft, raw, sent, stream_of, values


def test_texts_become_chunks_with_role_first_finish_reason_last_and_one_done() -> None:
    events = values(sent(stream_of(), [Part("he"), Part("llo"), Part("")]))
    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    assert deltas == [{"role": "assistant", "content": "he"}, {"content": "llo"}, {}]
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None, None, "stop"]
    assert {(event["id"], event["object"], event["model"]) for event in events[:-1]} == {
        ("chatcmpl-r1", "chat.completion.chunk", "assistant")
    }
    assert events[-1] == "[DONE]"


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
    relayed = [Part(raw=framed) for framed, _ in split_events(sent(stream_of(include_usage=True), parts))]
    streamed_answer = answer_of(asked, relayed)
    for one in (direct, streamed_answer):
        one.pop("id"), one.pop("created")
        assert one["choices"]
    assert_same_choices(direct["choices"], streamed_answer["choices"])
    assert direct.get("usage") == streamed_answer.get("usage")


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
    events = [Part(raw=framed) for framed, _ in split_events(stream.whole(Result(json=whole)) + stream.end())]
    assert answer_of(draft(), events) == {"object": "chat.completion", **whole}


def test_repeated_content_filter_results_are_merged_into_one() -> None:
    results = {"hate": {"filtered": False, "severity": "safe"}}
    said = {"index": 0, "delta": {"content": "x"}, "content_filter_results": results}
    whole = answer_of(draft(), [Part({"choices": [said]}), Part({"choices": [said]})])
    assert whole["choices"][0]["content_filter_results"] == results
    assert whole["choices"][0]["message"]["content"] == "xx"
