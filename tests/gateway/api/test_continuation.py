"""What goes on after a break, by value: nothing twice, nothing missing, however the text is cut into chunks."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.continuation import MAX_TEXT_CHARS, REPEATED_CHARS, ChatContinuation, Overlap, continuation
from gateway.api.parse import ParsedRequest, parse_request
from gateway.api.render import streamed
from gateway.api.routes import match
from gateway.plugin import BackendUnavailable, GatewayError, Part, Result, Task

MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "x"}]
texts = st.text(alphabet="ab ", max_size=40)


def task(messages: list[dict[str, Any]] | None = None, **members: Any) -> Task:
    body = json.dumps({"model": "m", "messages": messages or MESSAGES, "extra": [1], **members}).encode()
    return Task(kind="chat", name="m", body=body, deadline=1e12)


def draft(kind: Any = "chat") -> ParsedRequest:
    return ParsedRequest(kind=kind, name="m", path="/", body=b"", content_type="application/json", stream=True)


def raw(text: str | None = None, **choice: Any) -> Part:
    delta = {} if text is None else {"content": text}
    chunk = {"id": "b", "model": "other", "choices": [{"index": 0, "delta": delta, **choice}]}
    return Part(raw=b"data: %s\n\n" % json.dumps(chunk).encode())


def said_on(text: str, **choice: Any) -> Part:
    """A chunk of a continued text."""
    return Part(raw=b"data: %s\n\n" % json.dumps({"choices": [{"index": 0, "text": text, **choice}]}).encode())


def heard(*parts: Part, kind: Any = "chat") -> ChatContinuation:
    said = continuation(draft(kind))
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
def test_after_a_restart_the_client_gets_the_text_once(old: str, rest: str, data: st.DataObject) -> None:
    overlap = Overlap(old, how="restart")
    assert "".join([overlap.new(piece) for piece in data.draw(cut_up(old + rest))]) + overlap.end() == rest


@given(old=texts, new=texts, data=st.data())
def test_a_restart_that_differs_never_gets_a_letter_through_before_it_is_known(
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
def test_a_continuation_loses_nothing_and_what_it_repeats_is_taken_off(
    old: str, rest: str, data: st.DataObject
) -> None:
    repeats = data.draw(st.booleans())
    said = old + rest if repeats and len(old) >= REPEATED_CHARS else rest
    overlap = Overlap(old, how="prefill")
    got = "".join([overlap.new(piece) for piece in data.draw(cut_up(said))]) + overlap.end()
    assert got == (said.removeprefix(old) if len(old) >= REPEATED_CHARS else said)


def test_the_text_so_far_becomes_the_assistants_turn_and_the_rest_of_the_body_stays() -> None:
    said = heard(raw("one "), Part("two "), Part(raw=b"data: [DONE]\n\n"))
    resumed = said.resumed(task(), "prefill")
    assert resumed is not None
    assert resumed.json == {"model": "m", "messages": [*MESSAGES, {"role": "assistant", "content": "one two "}],
                            "extra": [1]}  # fmt: skip
    asked = task()
    assert said.resumed(asked, "restart") is asked


def test_a_beginning_that_the_client_gave_itself_is_gone_on_with() -> None:
    own = [*MESSAGES, {"role": "assistant", "content": "zero "}]
    resumed = heard(raw("one ")).resumed(task(own), "prefill")
    assert resumed is not None
    assert resumed.json["messages"] == [*MESSAGES, {"role": "assistant", "content": "zero one "}]


@pytest.mark.parametrize("first", ["one ", "zero half one "])
def test_a_beginning_in_parts_is_gone_on_with_in_its_last_one(first: str) -> None:
    parts = [{"type": "text", "text": "zero "}, {"type": "text", "text": "half ", "cache_control": {}}]
    said = heard(raw(first))
    resumed = said.resumed(task([*MESSAGES, {"role": "assistant", "content": parts}]), "prefill")
    assert resumed is not None
    assert resumed.json["messages"][-1]["content"] == [parts[0], parts[1] | {"text": "half one "}]
    assert text_of([*said.joined(raw("zero half one two"))]) == "two"


def test_one_prompt_in_a_list_is_gone_on_with() -> None:
    resumed = heard(said_on("upon "), kind="completion").resumed(task(prompt=["once "]), "prefill")
    assert resumed is not None
    assert resumed.json["prompt"] == "once upon "


def test_nobody_can_be_given_a_beginning_that_is_no_text() -> None:
    for content in ([{"type": "refusal", "refusal": "no"}], [], None):
        own = [*MESSAGES, {"role": "assistant", "content": content}]
        assert heard(raw("one ")).resumed(task(own), "prefill") is None
    assert heard(raw("one "), kind="completion").resumed(task(prompt=[1, 2]), "prefill") is None


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
    ids=["tool call", "reasoning", "second choice", "delta of another shape", "not JSON", "own tool call", "too long"],
)
def test_with_anything_but_one_plain_text_nobody_can_go_on(part: Part) -> None:
    said = heard(raw("one "), part)
    assert said.resumed(task(), "prefill") is None
    assert said.resumed(task(), "restart") is None


@pytest.mark.parametrize("kind", ["transcription", "task", "other", "embeddings"])
def test_of_other_kinds_nothing_is_kept(kind: Any) -> None:
    assert continuation(draft(kind)) is None


def test_what_was_said_before_an_event_that_cannot_be_read_has_reached_the_client() -> None:
    said = heard(raw("Once "))
    said.resumed(task(), "prefill")
    sent: list[Part] = []
    with pytest.raises(BackendUnavailable, match="cannot be read"):
        sent += said.joined(Part(raw=(raw("upon a time ").raw or b"") + b"data: {\n\n"))
    third = said.resumed(task(), "prefill")
    assert third is not None
    assert third.json["messages"][-1]["content"] == "Once " + text_of(sent)


def test_the_rest_comes_under_the_first_ones_name_and_says_its_role_no_more() -> None:
    first = Part(raw=raw("one ").raw.replace(b'"b"', b'"a"'))  # type: ignore[union-attr]
    said = heard(first)
    said.resumed(task(), "prefill")
    (joined,) = said.joined(raw(delta={"role": "assistant", "content": "two"}))
    assert json.loads(json.dumps(joined.data, default=lambda value: json.loads(bytes(value)))) == {
        "id": "a", "model": "other", "choices": [{"index": 0, "delta": {"content": "two"}}]
    }  # fmt: skip
    assert list(said.joined(raw(delta={"role": "assistant", "content": ""}))) == []


def test_what_is_said_again_is_not_counted_again_among_the_logprobs() -> None:
    def likely(*tokens: str) -> dict[str, Any]:
        return {"logprobs": {"content": [{"token": token} for token in tokens]}}

    said = heard(raw("Hel", **likely("Hel")), raw("lo ", **likely("lo ")))
    said.resumed(task(), "restart")
    parts = [
        *said.joined(raw("Hello wide ", **likely("Hello ", "wide "))),
        *said.joined(raw("world", **likely("world"))),
    ]
    assert [part.data["choices"][0]["logprobs"] for part in parts] == [likely("wide ")["logprobs"],
                                                                       likely("world")["logprobs"]]  # fmt: skip


@pytest.mark.parametrize(("how", "again", "offset"), [("restart", "upon ", 0), ("prefill", "", 9)])
def test_the_rests_tokens_begin_where_the_clients_text_ends(how: Any, again: str, offset: int) -> None:
    def likely(*offsets: int) -> dict[str, Any]:
        tokens = ["upon ", "a"][-len(offsets) :]
        return {"logprobs": {"tokens": tokens, "text_offset": list(offsets)}}

    said = heard(said_on("upon ", **likely(4)), kind="completion")
    said.resumed(task(prompt="once"), how)
    (part,) = said.joined(said_on(again + "a", **(likely(4, 9) if again else likely(offset))))
    assert part.data["choices"][0]["text"] == "a"
    assert part.data["choices"][0]["logprobs"] == {"tokens": ["a"], "text_offset": [9]}


# ── usage ────────────────────────────────────────────────────────────────────────────────────────


def account(total: int) -> Part:
    return Part(raw=b'data: {"choices":[],"usage":{"total_tokens":%d}}\n\n' % total)


def streamed_to_the_end(*parts: Part) -> bytes:
    stream = streamed(replace(draft(), include_usage=True), request_id="r", served_as="m")
    return b"".join(map(stream.part, parts)) + stream.end()


def test_usage_told_before_the_break_is_told_once_by_whoever_finishes() -> None:
    first = [raw("one "), account(3)]
    said = heard(*first)
    said.resumed(task(), "prefill")
    rest = [missing for part in (raw("two"), raw(finish_reason="stop"), account(5)) for missing in said.joined(part)]
    told = streamed_to_the_end(*first, *rest)
    assert told.count(b'"usage"') == 1
    assert b'"total_tokens":5' in told


def test_usage_of_an_answer_that_did_not_end_is_not_told_for_all_of_it() -> None:
    said = heard(raw("one "), account(3))
    said.resumed(task(), "prefill")
    told = streamed_to_the_end(raw("one "), account(3), *said.joined(raw("two", finish_reason="stop")))
    assert b'"usage"' not in told


def test_usage_stays_the_last_word_byte_for_byte_where_nothing_breaks() -> None:
    end, done = raw(finish_reason="stop"), Part(raw=b"data: [DONE]\n\n")
    usual = [raw("one"), end, account(3), done]
    assert streamed_to_the_end(*usual) == b"".join(part.raw or b"" for part in usual)
    assert streamed_to_the_end(raw("one"), account(3), end, done) == streamed_to_the_end(*usual)


def test_usage_in_every_chunk_is_relayed_as_it_comes() -> None:
    chunk = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}],"usage":{"total_tokens":3}}\n\n'
    filters = b'data: {"choices":[],"prompt_filter_results":[],"usage":null}\n\n'
    stream = streamed(draft(), request_id="r", served_as="m")
    assert [stream.part(Part(raw=each)) for each in (filters, chunk)] == [filters, chunk]


def test_a_whole_answer_goes_on_too() -> None:
    said = heard(raw("one "))
    said.resumed(task(), "restart")
    parts = [missing for part in said.parts_of(Result(json="one two")) for missing in said.joined(part)]
    assert text_of(parts) == "two"
    assert said.is_complete


@pytest.mark.parametrize("data", [b"{", b'{"choices":null}', b'{"choices":[1]}', b"[]", b"\xff"])
def test_a_chunk_that_cannot_be_read_is_a_failure_of_who_sent_it(data: bytes) -> None:
    said = heard(raw("one "))
    said.resumed(task(), "prefill")
    with pytest.raises(GatewayError):
        list(said.joined(Part(raw=b"data: " + data + b"\n\n")))


def test_it_is_complete_when_every_choice_has_said_why_it_ended() -> None:
    said = heard(raw("one"), raw("eins", index=1), raw(finish_reason="stop"))
    assert not said.is_complete
    said.record(raw(index=1, finish_reason="length"))
    assert said.is_complete


# ── what the request for the rest says ───────────────────────────────────────────────────────────


@pytest.mark.parametrize(("most", "left"), [(10, 8), (2, 1), (1, 1)])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_rest_may_have_as_many_tokens_as_are_left(name: str, most: int, left: int) -> None:
    rest = heard(raw("a"), raw("b")).resumed(task(**{name: most}), "prefill")
    assert rest is not None
    assert rest.json[name] == left


def test_a_text_that_echoes_its_prompt_is_not_echoed_again() -> None:
    asked = Task(kind="completion", name="m", body=b'{"model":"m","prompt":"once ","echo":true}', deadline=1e12)
    begun = Part(raw=b'data: {"choices":[{"index":0,"text":"once upon"}]}\n\n')
    rest = heard(begun, kind="completion").resumed(asked, "prefill")
    assert rest is not None
    assert rest.json == {"model": "m", "prompt": "once upon", "echo": False}
    other = Part(raw=b'data: {"choices":[{"index":0,"text":"else"}]}\n\n')
    assert heard(other, kind="completion").resumed(asked, "prefill") is None


def test_an_empty_reason_to_finish_finishes_nothing() -> None:
    assert not heard(raw("a", finish_reason="")).is_complete
    assert heard(raw("a", finish_reason=""), raw(finish_reason="stop")).is_complete


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
def test_several_answers_at_once_are_gone_on_with_by_nobody(path: str, body: Any, choices: int) -> None:
    asked = parse_request(match("POST", path), "", json.dumps({"model": "m", **body}).encode())
    assert asked.choices == choices
    assert (continuation(asked) is None) == (choices > 1)


def test_a_turn_that_the_client_began_is_repeated_whole_and_taken_off_whole() -> None:
    began = [*MESSAGES, {"role": "assistant", "content": "one two three "}]
    said = heard(raw("four "))
    rest = said.resumed(task(began), "prefill")
    assert rest is not None
    assert rest.json["messages"][-1]["content"] == "one two three four "
    got = [*said.joined(raw("one two ")), *said.joined(raw("three four five", finish_reason="stop"))]
    assert text_of(got) == "five"


def test_where_the_first_backend_had_repeated_the_clients_beginning_it_is_not_begun_twice() -> None:
    began = [*MESSAGES, {"role": "assistant", "content": "one two "}]
    rest = heard(raw("one two "), raw("three ")).resumed(task(began), "prefill")
    assert rest is not None
    assert rest.json["messages"][-1]["content"] == "one two three "


def test_who_starts_again_and_thinks_first_is_waited_for() -> None:
    said = heard(raw("so it "))
    assert said.resumed(task(), "restart") is not None
    thought = Part(raw=b'data: {"choices":[{"index":0,"delta":{"reasoning_content":"hm"}}]}\n\n')
    got = [*said.joined(thought), *said.joined(raw("so it is", finish_reason="stop"))]
    assert text_of(got) == "is"


def test_a_long_answer_in_tiny_pieces_takes_little_memory() -> None:
    said = continuation(draft())
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
