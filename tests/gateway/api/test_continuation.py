"""Continuation of a broken stream: no text repeated or lost, for any chunking."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.continuation import MAX_TEXT_CHARS, REPEATED_CHARS, ChatContinuation, Overlap
from gateway.api.operation import ParsedRequest
from gateway.api.operations import OPERATIONS, parse_request
from gateway.api.routes import match
from gateway.plugin import BackendUnavailable, GatewayError, Part, Result, Task

MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "x"}]
texts = st.text(alphabet="ab ", max_size=40)


def task(messages: list[dict[str, Any]] | None = None, **members: Any) -> Task:
    body = json.dumps({"model": "m", "messages": messages or MESSAGES, "extra": [1], **members}).encode()
    return Task(kind="chat", name="m", body=body, deadline=1e12)


def draft(kind: Any = "chat") -> ParsedRequest:
    operation = OPERATIONS[kind]
    return ParsedRequest(
        operation=operation, name="m", path="/", body=b"", content_type="application/json", stream=True
    )


def raw(text: str | None = None, **choice: Any) -> Part:
    delta = {} if text is None else {"content": text}
    chunk = {"id": "b", "model": "other", "choices": [{"index": 0, "delta": delta, **choice}]}
    return Part(raw=b"data: %s\n\n" % json.dumps(chunk).encode())


def text_chunk(text: str, **choice: Any) -> Part:
    """A chunk of a continued text."""
    return Part(raw=b"data: %s\n\n" % json.dumps({"choices": [{"index": 0, "text": text, **choice}]}).encode())


def continuation_after(*parts: Part, kind: Any = "chat") -> ChatContinuation:
    said = OPERATIONS[kind].continuation(draft(kind))
    assert isinstance(said, ChatContinuation)
    for part in parts:
        said.record(part)
    return said


def text_of(parts: list[Part]) -> str:
    return "".join(choice.get("delta", {}).get("content", "") for part in parts for choice in part.data["choices"])


@st.composite
def cut_up(draw: st.DrawFn, whole: str) -> list[str]:
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


@given(old=texts, rest=texts, data=st.data())
def test_restarted_stream_delivers_the_text_once(old: str, rest: str, data: st.DataObject) -> None:
    overlap = Overlap(old, how="restart")
    assert "".join([overlap.new(piece) for piece in data.draw(cut_up(old + rest))]) + overlap.end() == rest


@given(old=texts, new=texts, data=st.data())
def test_restarted_stream_with_different_text_delivers_nothing_before_raising(
    old: str, new: str, data: st.DataObject
) -> None:
    overlap = Overlap(old, how="restart")
    got = ""
    try:
        for piece in data.draw(cut_up(new)):
            got += overlap.new(piece)
        got += overlap.end()
    except BackendUnavailable:
        assert got == ""
        assert not new.startswith(old)
    else:
        assert old + got == new


@given(old=texts, rest=texts, data=st.data())
def test_continuation_loses_no_text_and_repeated_text_is_removed(old: str, rest: str, data: st.DataObject) -> None:
    repeats = data.draw(st.booleans())
    said = old + rest if repeats and len(old) >= REPEATED_CHARS else rest
    overlap = Overlap(old, how="prefill")
    got = "".join([overlap.new(piece) for piece in data.draw(cut_up(said))]) + overlap.end()
    assert got == (said.removeprefix(old) if len(old) >= REPEATED_CHARS else said)


def test_text_so_far_becomes_the_assistant_turn_of_the_continuation_request() -> None:
    said = continuation_after(raw("one "), Part("two "), Part(raw=b"data: [DONE]\n\n"))
    resumed = said.resumed(task(), "prefill")
    assert resumed is not None
    assert resumed.json == {"model": "m", "messages": [*MESSAGES, {"role": "assistant", "content": "one two "}],
                            "extra": [1]}  # fmt: skip
    asked = task()
    assert said.resumed(asked, "restart") is asked


def test_assistant_prefill_of_the_client_is_extended() -> None:
    own = [*MESSAGES, {"role": "assistant", "content": "zero "}]
    resumed = continuation_after(raw("one ")).resumed(task(own), "prefill")
    assert resumed is not None
    assert resumed.json["messages"] == [*MESSAGES, {"role": "assistant", "content": "zero one "}]


@pytest.mark.parametrize("first", ["one ", "zero half one "])
def test_assistant_prefill_in_parts_is_extended_in_its_last_part(first: str) -> None:
    parts = [{"type": "text", "text": "zero "}, {"type": "text", "text": "half ", "cache_control": {}}]
    said = continuation_after(raw(first))
    resumed = said.resumed(task([*MESSAGES, {"role": "assistant", "content": parts}]), "prefill")
    assert resumed is not None
    assert resumed.json["messages"][-1]["content"] == [parts[0], parts[1] | {"text": "half one "}]
    assert text_of([*said.joined(raw("zero half one two"))]) == "two"


def test_single_prompt_in_a_list_is_extended() -> None:
    resumed = continuation_after(text_chunk("upon "), kind="completion").resumed(task(prompt=["once "]), "prefill")
    assert resumed is not None
    assert resumed.json["prompt"] == "once upon "


def test_prefill_that_is_not_text_cannot_be_continued() -> None:
    for content in ([{"type": "refusal", "refusal": "no"}], [], None):
        own = [*MESSAGES, {"role": "assistant", "content": content}]
        assert continuation_after(raw("one ")).resumed(task(own), "prefill") is None
    assert continuation_after(raw("one "), kind="completion").resumed(task(prompt=[1, 2]), "prefill") is None


@pytest.mark.parametrize(
    "part",
    [
        raw(delta={"tool_calls": [{"index": 0}]}),
        raw(delta={"reasoning_content": "hm"}),
        raw("x", index=1),
        raw(delta=["no", "object"]),
        Part(raw=b"data: {\n\n"),
        Part({"tool_calls": [{"index": 0}]}),
        Part("x" * (MAX_TEXT_CHARS + 1)),
    ],
    ids=["tool call", "reasoning", "second choice", "malformed delta", "not JSON", "tool call of a plugin", "too long"],
)
def test_stream_other_than_one_plain_text_cannot_be_continued(part: Part) -> None:
    said = continuation_after(raw("one "), part)
    assert said.resumed(task(), "prefill") is None
    assert said.resumed(task(), "restart") is None


@pytest.mark.parametrize("kind", ["transcription", "task", "other", "embeddings"])
def test_other_kinds_have_no_continuation(kind: Any) -> None:
    assert OPERATIONS[kind].continuation(draft(kind)) is None


def test_text_before_an_unreadable_event_counts_as_delivered() -> None:
    said = continuation_after(raw("Once "))
    said.resumed(task(), "prefill")
    sent: list[Part] = []
    with pytest.raises(BackendUnavailable, match="cannot be read"):
        sent += said.joined(Part(raw=(raw("upon a time ").raw or b"") + b"data: {\n\n"))
    third = said.resumed(task(), "prefill")
    assert third is not None
    assert third.json["messages"][-1]["content"] == "Once " + text_of(sent)


def test_continued_chunks_keep_the_first_id_and_omit_the_role() -> None:
    first = Part(raw=raw("one ").raw.replace(b'"b"', b'"a"'))  # type: ignore[union-attr]
    said = continuation_after(first)
    said.resumed(task(), "prefill")
    (joined,) = said.joined(raw(delta={"role": "assistant", "content": "two"}))
    assert json.loads(json.dumps(joined.data, default=lambda value: json.loads(bytes(value)))) == {
        "id": "a", "model": "other", "choices": [{"index": 0, "delta": {"content": "two"}}]
    }  # fmt: skip
    assert list(said.joined(raw(delta={"role": "assistant", "content": ""}))) == []


def test_logprobs_of_repeated_text_are_removed() -> None:
    def likely(*tokens: str) -> dict[str, Any]:
        return {"logprobs": {"content": [{"token": token} for token in tokens]}}

    said = continuation_after(raw("Hel", **likely("Hel")), raw("lo ", **likely("lo ")))
    said.resumed(task(), "restart")
    parts = [
        *said.joined(raw("Hello wide ", **likely("Hello ", "wide "))),
        *said.joined(raw("world", **likely("world"))),
    ]
    assert [part.data["choices"][0]["logprobs"] for part in parts] == [likely("wide ")["logprobs"],
                                                                       likely("world")["logprobs"]]  # fmt: skip


@pytest.mark.parametrize(("how", "again", "offset"), [("restart", "upon ", 0), ("prefill", "", 9)])
def test_text_offsets_of_continued_tokens_follow_the_delivered_text(how: Any, again: str, offset: int) -> None:
    def likely(*offsets: int) -> dict[str, Any]:
        tokens = ["upon ", "a"][-len(offsets) :]
        return {"logprobs": {"tokens": tokens, "text_offset": list(offsets)}}

    said = continuation_after(text_chunk("upon ", **likely(4)), kind="completion")
    said.resumed(task(prompt="once"), how)
    (part,) = said.joined(text_chunk(again + "a", **(likely(4, 9) if again else likely(offset))))
    assert part.data["choices"][0]["text"] == "a"
    assert part.data["choices"][0]["logprobs"] == {"tokens": ["a"], "text_offset": [9]}


# ── usage ────────────────────────────────────────────────────────────────────────────────────────


def usage_chunk(total: int) -> Part:
    return Part(raw=b'data: {"choices":[],"usage":{"total_tokens":%d}}\n\n' % total)


def streamed_to_the_end(*parts: Part) -> bytes:
    stream = OPERATIONS["chat"].encode_stream(replace(draft(), include_usage=True), request_id="r", served_as="m")
    return b"".join(map(stream.part, parts)) + stream.end()


def test_usage_sent_before_the_break_is_replaced_by_the_final_usage() -> None:
    first = [raw("one "), usage_chunk(3)]
    said = continuation_after(*first)
    said.resumed(task(), "prefill")
    rest = [
        missing for part in (raw("two"), raw(finish_reason="stop"), usage_chunk(5)) for missing in said.joined(part)
    ]
    told = streamed_to_the_end(*first, *rest)
    assert told.count(b'"usage"') == 1
    assert b'"total_tokens":5' in told


def test_usage_of_an_unfinished_response_is_not_sent() -> None:
    said = continuation_after(raw("one "), usage_chunk(3))
    said.resumed(task(), "prefill")
    told = streamed_to_the_end(raw("one "), usage_chunk(3), *said.joined(raw("two", finish_reason="stop")))
    assert b'"usage"' not in told


def test_usage_stays_last_and_unchanged_without_a_break() -> None:
    end, done = raw(finish_reason="stop"), Part(raw=b"data: [DONE]\n\n")
    usual = [raw("one"), end, usage_chunk(3), done]
    assert streamed_to_the_end(*usual) == b"".join(part.raw or b"" for part in usual)
    assert streamed_to_the_end(raw("one"), usage_chunk(3), end, done) == streamed_to_the_end(*usual)


def test_usage_in_every_chunk_is_relayed_unchanged() -> None:
    chunk = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}],"usage":{"total_tokens":3}}\n\n'
    filters = b'data: {"choices":[],"prompt_filter_results":[],"usage":null}\n\n'
    stream = OPERATIONS["chat"].encode_stream(draft(), request_id="r", served_as="m")
    assert [stream.part(Part(raw=each)) for each in (filters, chunk)] == [filters, chunk]


def test_whole_response_can_continue_a_stream() -> None:
    said = continuation_after(raw("one "))
    said.resumed(task(), "restart")
    parts = [missing for part in said.parts_of(Result(json="one two")) for missing in said.joined(part)]
    assert text_of(parts) == "two"
    assert said.is_complete


@pytest.mark.parametrize("data", [b"{", b'{"choices":null}', b'{"choices":[1]}', b"[]", b"\xff"])
def test_unreadable_chunk_of_a_continuation_raises(data: bytes) -> None:
    said = continuation_after(raw("one "))
    said.resumed(task(), "prefill")
    with pytest.raises(GatewayError):
        list(said.joined(Part(raw=b"data: " + data + b"\n\n")))


def test_stream_is_complete_when_every_choice_has_a_finish_reason() -> None:
    said = continuation_after(raw("one"), raw("eins", index=1), raw(finish_reason="stop"))
    assert not said.is_complete
    said.record(raw(index=1, finish_reason="length"))
    assert said.is_complete


# ── the continuation request ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("most", "left"), [(10, 8), (2, 1), (1, 1)])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_token_limit_of_the_continuation_is_the_remainder(name: str, most: int, left: int) -> None:
    rest = continuation_after(raw("a"), raw("b")).resumed(task(**{name: most}), "prefill")
    assert rest is not None
    assert rest.json[name] == left


def test_continuation_of_an_echoed_prompt_turns_echo_off() -> None:
    asked = Task(kind="completion", name="m", body=b'{"model":"m","prompt":"once ","echo":true}', deadline=1e12)
    begun = Part(raw=b'data: {"choices":[{"index":0,"text":"once upon"}]}\n\n')
    rest = continuation_after(begun, kind="completion").resumed(asked, "prefill")
    assert rest is not None
    assert rest.json == {"model": "m", "prompt": "once upon", "echo": False}
    other = Part(raw=b'data: {"choices":[{"index":0,"text":"else"}]}\n\n')
    assert continuation_after(other, kind="completion").resumed(asked, "prefill") is None


def test_empty_finish_reason_does_not_complete_the_stream() -> None:
    assert not continuation_after(raw("a", finish_reason="")).is_complete
    assert continuation_after(raw("a", finish_reason=""), raw(finish_reason="stop")).is_complete


@pytest.mark.parametrize(
    ("path", "body", "choices"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES, "n": 2}, 2),
        ("/v1/chat/completions", {"messages": MESSAGES}, 1),
        ("/v1/completions", {"prompt": ["a", "b"]}, 2),
        ("/v1/completions", {"prompt": ["a", "b"], "n": 2}, 4),
        ("/v1/completions", {"prompt": [1, 2]}, 1),
        ("/v1/completions", {"prompt": "a"}, 1),
    ],
)
def test_request_for_several_choices_has_no_continuation(path: str, body: Any, choices: int) -> None:
    asked = parse_request(match("POST", path), "", json.dumps({"model": "m", **body}).encode())
    assert asked.choices == choices
    assert (asked.operation.continuation(asked) is None) == (choices > 1)


def test_repeated_client_prefill_is_removed_from_the_continuation() -> None:
    began = [*MESSAGES, {"role": "assistant", "content": "one two three "}]
    said = continuation_after(raw("four "))
    rest = said.resumed(task(began), "prefill")
    assert rest is not None
    assert rest.json["messages"][-1]["content"] == "one two three four "
    got = [*said.joined(raw("one two ")), *said.joined(raw("three four five", finish_reason="stop"))]
    assert text_of(got) == "five"


def test_prefill_repeated_by_the_first_backend_is_not_duplicated() -> None:
    began = [*MESSAGES, {"role": "assistant", "content": "one two "}]
    rest = continuation_after(raw("one two "), raw("three ")).resumed(task(began), "prefill")
    assert rest is not None
    assert rest.json["messages"][-1]["content"] == "one two three "


def test_reasoning_before_a_restarted_text_is_skipped() -> None:
    said = continuation_after(raw("so it "))
    assert said.resumed(task(), "restart") is not None
    thought = Part(raw=b'data: {"choices":[{"index":0,"delta":{"reasoning_content":"hm"}}]}\n\n')
    got = [*said.joined(thought), *said.joined(raw("so it is", finish_reason="stop"))]
    assert text_of(got) == "is"


def test_long_response_in_small_pieces_takes_little_memory() -> None:
    said = OPERATIONS["chat"].continuation(draft())
    assert isinstance(said, ChatContinuation)
    tracemalloc.start()
    try:
        piece = raw("長")
        for _ in range(50_000):
            said.record(piece)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 8 * 50_000
