"""Complete responses that lack one of the usual signs, and incomplete ones beside them."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from gateway.plugin import BackendUnavailable, Task
from support.http_backend import chat, opened, parts, result
from support.upstream import (
    CHUNKED,
    EVENTS,
    LAST_CHUNK,
    Script,
    Upstream,
    answer,
    chunk,
    head,
    sends,
    sends_and_cuts,
    sse,
)

HEAD = {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "up"}
DONE = b"data: [DONE]\n\n"


def calling(*arguments: Any, index: int | None = 0, call_id: str | None = "a", choice: int = 0) -> list[dict[str, Any]]:
    """The chunks of one tool call without a finish reason, its arguments in these pieces."""
    first = {"index": index, "id": call_id, "type": "function", "function": {"name": "f", "arguments": arguments[0]}}
    later = [{"index": index, "function": {"arguments": piece}} for piece in arguments[1:]]
    return [
        HEAD | {"choices": [{"index": choice, "delta": {"tool_calls": [call]}, "finish_reason": None}]}
        for call in (first, *later)
    ]


def relayed_task(path: str, kind: Any = "other") -> Task:
    return chat(path=path, stream=True, deadline_s=3600).replace(kind=kind)


async def relayed(script: Script, task: Task | None = None) -> list[bytes]:
    async with Upstream(script) as upstream, opened(upstream.url) as (backend, _):
        return await parts(backend, (task or chat(stream=True)).replace(deadline=time.monotonic() + 5))


async def is_cut(script: Script, task: Task | None = None) -> bool:
    with pytest.raises(BackendUnavailable) as failed:
        await relayed(script, task)
    return "before" in failed.value.message or "broke" in failed.value.message


# --- tool calls -------------------------------------------------------------------------------------------------------

WHOLE_CALLS = {
    "one piece": calling("{}"),
    "pieces": calling('{"a"', ': "}', ' 1"}'),
    "an object": calling({"a": 1}),
    "two calls": [*calling('{"a":1}'), *calling('{"b":', "2}", index=1, call_id="b")],
    "two calls of one index": [*calling('{"a":1}'), *calling('{"b":2}', call_id="b")],
    "without index": calling("{}", index=None),
    "a function call": [
        HEAD | {"choices": [{"delta": {"function_call": call}}]}
        for call in ({"name": "f", "arguments": "{"}, {"arguments": "}"})
    ],
    "after text": [HEAD | {"choices": [{"delta": {"content": "hm"}}]}, *calling("{}")],
}  # fmt: skip


@pytest.mark.parametrize("done", [True, False], ids=["done", "body"])
@pytest.mark.parametrize("name", WHOLE_CALLS)
async def test_whole_tool_call_without_finish_reason_is_complete(name: str, done: bool) -> None:
    *events, last, end = await relayed(sse(*WHOLE_CALLS[name], done=done))
    assert len(events) == len(WHOLE_CALLS[name])
    choice = {"index": 0, "delta": {}, "finish_reason": "tool_calls"}
    assert json.loads(last.removeprefix(b"data: ")) == HEAD | {"choices": [choice]}
    assert end == DONE


CUT_CALLS = {
    "no arguments": calling(""),
    "half": calling('{"a": ', '"x'),
    "not an object": calling("1"),
    "the second of two": [*calling("{}"), *calling('{"b":', index=1, call_id="b")],
    "unreadable": [HEAD | {"choices": [{"delta": {"tool_calls": [7]}}]}],
}


@pytest.mark.parametrize("done", [True, False], ids=["done", "body"])
@pytest.mark.parametrize("name", CUT_CALLS)
async def test_tool_call_whose_arguments_do_not_parse_is_cut(name: str, done: bool) -> None:
    assert await is_cut(sse(*CUT_CALLS[name], done=done))


async def test_whole_tool_call_is_cut_when_the_connection_breaks() -> None:
    data = b"".join(b"data: %s\n\n" % json.dumps(each).encode() for each in calling("{}"))
    assert await is_cut(sends_and_cuts(head(200, [EVENTS, CHUNKED]) + chunk(data)))
    assert await is_cut(sends_and_cuts(head(200, [EVENTS]) + data))  # without framing, a break looks like an end


async def test_calls_of_several_choices_each_get_a_finish_reason() -> None:
    task = chat(body=b'{"model":"m","messages":[],"n":2}', stream=True)
    got = await relayed(sse(*calling("{}"), *calling("{}", choice=1)), task)
    assert [json.loads(each[6:])["choices"][0]["index"] for each in got[-3:-1]] == [0, 1]


# --- events of no known type ------------------------------------------------------------------------------------------

AUDIO = relayed_task("/v1/audio/transcriptions", "transcription")
UNTYPED = {
    "segments": (AUDIO, ['{"text":"one"}', '{"text":"two"}']),
    "texts": (AUDIO, ["one", "two"]),
    "texts of a translation": (relayed_task("/v1/audio/translations"), ["one"]),
    "other types": (relayed_task("/v1/responses"), ['{"type":"custom.delta"}', '{"type":"custom.end"}']),
    "done": (relayed_task("/v1/responses"), ['{"type":"response.created"}', '{"type":"response.done"}']),
    "cancelled": (relayed_task("/v1/responses"), ['{"type":"response.created"}', '{"type":"response.cancelled"}']),
}


@pytest.mark.parametrize("name", UNTYPED)
async def test_events_without_known_type_are_complete_with_the_body(name: str) -> None:
    task, events = UNTYPED[name]
    assert await relayed(sse(*events, done=False), task) == [f"data: {each}\n\n".encode() for each in events]


@pytest.mark.parametrize("name", ["segments", "texts", "other types"])
async def test_events_without_known_type_are_cut_when_the_connection_breaks(name: str) -> None:
    task, events = UNTYPED[name]
    data = b"".join(f"data: {each}\n\n".encode() for each in events)
    assert await is_cut(sends_and_cuts(head(200, [EVENTS, CHUNKED]) + chunk(data)), task)
    assert await is_cut(sends_and_cuts(head(200, [EVENTS]) + data), task)


async def test_pings_alone_are_no_response() -> None:
    assert await is_cut(sse({"type": "ping"}, done=False), relayed_task("/v1/messages"))
    assert await is_cut(sends(head(200, [EVENTS, CHUNKED]) + LAST_CHUNK), relayed_task("/v1/responses"))


# --- empty answers ----------------------------------------------------------------------------------------------------

COMPLETION = {"id": "c", "object": "chat.completion", "usage": {"total_tokens": 3}}
MESSAGE = {"role": "assistant", "content": None, "refusal": None}


@pytest.mark.parametrize("choice", [{"message": None}, {}])
async def test_choice_with_a_finish_reason_and_no_message_is_an_empty_answer(choice: Any) -> None:
    choices = [{"index": 0, "finish_reason": "content_filter", **choice}]
    async with (
        Upstream(answer(json=COMPLETION | {"choices": choices})) as upstream,
        opened(upstream.url) as (backend, _),
    ):
        got = await result(backend, chat())
    assert got.value() == COMPLETION | {"choices": [choices[0] | {"message": MESSAGE}]}


async def test_completion_with_a_finish_reason_and_no_text_is_an_empty_answer() -> None:
    body = {"choices": [{"index": 0, "text": None, "finish_reason": "length"}]}
    async with Upstream(answer(json=body)) as upstream, opened(upstream.url) as (backend, _):
        got = await result(backend, chat(path="/v1/completions").replace(kind="completion"))
    assert got.value()["choices"][0]["text"] == ""


@pytest.mark.parametrize("choices", [[], None])
async def test_response_of_no_choices_is_an_empty_answer(choices: Any) -> None:
    async with (
        Upstream(answer(json=COMPLETION | {"choices": choices})) as upstream,
        opened(upstream.url) as (backend, _),
    ):
        assert (await result(backend, chat())).value() == COMPLETION | {"choices": []}


@pytest.mark.parametrize(
    "body",
    [
        {"choices": []},
        COMPLETION,
        COMPLETION | {"choices": [{"message": None}]},
        COMPLETION | {"choices": [{"message": {}, "finish_reason": "stop"}, {"message": None}]},
        COMPLETION | {"choices": [], "error": {"message": "boom"}},
        COMPLETION | {"choices": [], "object": "error"},
        {"choices": [{"message": "text", "finish_reason": "stop"}]},
    ],
)
async def test_object_without_sign_of_an_answer_is_a_failure(body: Any) -> None:
    async with Upstream(answer(json=body)) as upstream, opened(upstream.url) as (backend, _):
        with pytest.raises(BackendUnavailable):
            await result(backend, chat())
