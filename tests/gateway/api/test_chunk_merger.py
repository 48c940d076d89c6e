"""An answer that comes in pieces to a client that wants one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from gateway.api.chat import CHAT
from gateway.api.chunk_merger import MAX_PLACES, ChunkMerger
from gateway.api.response_json import ResponseContext, encode_json
from gateway.plugin import BackendUnavailable

CONTEXT = ResponseContext(request_id="r", model="m", served_as="m")

Delta = dict[str, Any]


def told(*deltas: Delta) -> list[bytes]:
    """The events of a stream of these."""
    return [encode_json({"choices": [{"index": 0, "delta": delta}]}) for delta in deltas]


def merged(events: Iterable[bytes]) -> dict[str, Any]:
    merger = ChunkMerger(CONTEXT, CHAT)
    for data in events:
        merger.add(data)
    return json.loads(encode_json(CHAT.answer(CONTEXT, merger.answer())))


def message(*deltas: Delta) -> dict[str, Any]:
    return merged(told(*deltas))["choices"][0]["message"]


def call(index: int, **more: Any) -> Delta:
    return {"tool_calls": [{"index": index, **more}]}


def named(name: str, arguments: str = "") -> dict[str, str]:
    return {"name": name, "arguments": arguments}


# ── what grows ───────────────────────────────────────────────────────────────────────────────────


def test_calls_grow_by_their_number_and_lose_it() -> None:
    said = message(
        call(0, id="a", type="function", function=named("get")),
        call(0, function={"arguments": '{"x"'}),
        call(1, id="b", type="function", function=named("put", "{}")),
        call(0, id="a", type="function", function={"arguments": ':"é\\n"}'}),
    )
    assert said["tool_calls"] == [
        {"id": "a", "type": "function", "function": named("get", '{"x":"é\\n"}')},
        {"id": "b", "type": "function", "function": named("put", "{}")},
    ]


def test_another_call_under_the_same_number_is_another_call() -> None:
    said = message(call(0, id="a", function=named("get", "{}")), call(0, id="b", function=named("put", "{")),
                   call(0, function={"arguments": "}"}))  # fmt: skip
    assert said["tool_calls"] == [
        {"id": "a", "function": named("get", "{}")},
        {"id": "b", "function": named("put", "{}")},
    ]


@pytest.mark.parametrize("first", ["", None, "a"])
@pytest.mark.parametrize("second", ["", None, "a"])
def test_a_call_that_has_its_id_late_or_again_is_the_same(first: str | None, second: str | None) -> None:
    said = message(call(0, id=first, function=named("get", "{")), call(0, id=second, function={"arguments": "}"}))
    assert [one["function"] for one in said["tool_calls"]] == [named("get", "{}")]


def test_a_call_whose_arguments_come_under_ids_of_their_own_is_one_call() -> None:
    """Some servers draw a new id for every chunk; only the first one names the function."""
    said = message(*(call(0, id=f"id-{i}", function={"arguments": str(i), **({} if i else {"name": "f"})})
                     for i in range(3)))  # fmt: skip
    assert [one["function"] for one in said["tool_calls"]] == [named("f", "012")]


def test_entries_without_a_number_follow_each_other() -> None:
    said = message(
        {"annotations": [{"a": 1}]}, {"annotations": []}, {"annotations": [{"b": [2]}, "index", {"index": 1}]}
    )
    assert said["annotations"] == [{"a": 1}, {"b": [2]}, "index", {"index": 1}]


def test_what_is_very_deep_stands_as_it_was_said_last() -> None:
    deep: Any = "x"
    for _ in range(100):
        deep = {"in": deep}
    assert message({"more": deep}, {"more": deep})["more"] == deep


def test_a_ping_among_the_chunks_leaves_no_trace() -> None:
    assert merged([b'{"type":"ping"}', *told({"content": "x"}), b'{"usage":{"total_tokens":1}}']) == merged(
        [*told({"content": "x"}), b'{"choices":[],"usage":{"total_tokens":1}}']
    )


@pytest.mark.parametrize(
    "data", [b"3", b'"x"', b"[]", b'{"choices":3}', b'{"choices":[3]}', b'{"choices":[{"index":"x"}]}',
             b'{"choices":[{"delta":{"content":"\xff"}}]}', b'{"choices":[{"delta":{"content":"x}}]}']
)  # fmt: skip
def test_what_is_no_chunk_is_refused(data: bytes) -> None:
    with pytest.raises((BackendUnavailable, ValueError)):
        merged([data])


# ── how much ─────────────────────────────────────────────────────────────────────────────────────

FLOODS: dict[str, Callable[[int], Delta]] = {
    "calls": lambda i: call(i, id=f"c{i}", function=named("f", "{}")),
    "calls under one number": lambda i: call(0, id=f"c{i}", function=named("f", "{}")),
    "members": lambda i: {f"m{i}": "x"},
}


@pytest.mark.parametrize("name", FLOODS)
def test_an_answer_of_more_pieces_than_any_that_is_meant_is_refused(name: str) -> None:
    with pytest.raises(BackendUnavailable, match="more than 8192"):
        message(*map(FLOODS[name], range(MAX_PLACES + 1)))


def test_so_many_choices_and_so_many_entries_at_once_are_refused_too() -> None:
    with pytest.raises(BackendUnavailable, match="more than 8192"):
        merged(encode_json({"choices": [{"index": i, "delta": {}}]}) for i in range(MAX_PLACES + 1))
    with pytest.raises(BackendUnavailable, match="more than 8192"):
        message({"tool_calls": [{"index": i} for i in range(MAX_PLACES + 1)]})


LONG: dict[str, Callable[[int], Delta]] = {
    "text": lambda i: {"content": "x"},
    "arguments": lambda i: call(0, function={"arguments": "x"}),
    "annotations": lambda i: {"annotations": [{"a": i}]},
    "calls without a number": lambda i: {"tool_calls": [{"id": f"c{i}"}]},
    "reasoning": lambda i: {"reasoning_details": [{"type": "reasoning.text", "text": "word "}]},
}


@pytest.mark.parametrize("name", LONG)
def test_a_piece_costs_the_same_whatever_came_before_it(name: str) -> None:
    """Sixteen times as many take sixteen times as long, not 256 times."""
    few, many = ([LONG[name](i) for i in range(count)] for count in (1_000, 16_000))
    assert min(cpu_s(many) for _ in range(3)) < 64 * min(cpu_s(few) for _ in range(5))


def cpu_s(deltas: list[Delta]) -> float:
    events = told(*deltas)
    merger, start = ChunkMerger(CONTEXT, CHAT), time.process_time()
    for data in events:
        merger.add(data)
    encode_json(merger.answer())
    return time.process_time() - start
