"""Merging of streamed chunks into one response."""

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


def delta_events(*deltas: Delta) -> list[bytes]:
    """The events of a stream of these deltas."""
    return [encode_json({"choices": [{"index": 0, "delta": delta}]}) for delta in deltas]


def merged(events: Iterable[bytes]) -> dict[str, Any]:
    merger = ChunkMerger(CONTEXT, CHAT)
    for data in events:
        merger.add(data)
    return json.loads(encode_json(CHAT.answer(CONTEXT, merger.answer())))


def message(*deltas: Delta) -> dict[str, Any]:
    return merged(delta_events(*deltas))["choices"][0]["message"]


def call(index: int, **more: Any) -> Delta:
    return {"tool_calls": [{"index": index, **more}]}


def named(name: str, arguments: str = "") -> dict[str, str]:
    return {"name": name, "arguments": arguments}


# ── merging ──────────────────────────────────────────────────────────────────────────────────────


def test_tool_calls_are_merged_by_index_and_the_index_is_removed() -> None:
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


def test_tool_call_with_another_id_under_the_same_index_is_a_new_call() -> None:
    said = message(call(0, id="a", function=named("get", "{}")), call(0, id="b", function=named("put", "{")),
                   call(0, function={"arguments": "}"}))  # fmt: skip
    assert said["tool_calls"] == [
        {"id": "a", "function": named("get", "{}")},
        {"id": "b", "function": named("put", "{}")},
    ]


@pytest.mark.parametrize("first", ["", None, "a"])
@pytest.mark.parametrize("second", ["", None, "a"])
def test_tool_call_with_a_late_or_repeated_id_is_the_same_call(first: str | None, second: str | None) -> None:
    said = message(call(0, id=first, function=named("get", "{")), call(0, id=second, function={"arguments": "}"}))
    assert [one["function"] for one in said["tool_calls"]] == [named("get", "{}")]


def test_tool_call_with_a_new_id_per_chunk_is_one_call() -> None:
    # Some servers send a new id with every chunk; only the first chunk names the function.
    said = message(*(call(0, id=f"id-{i}", function={"arguments": str(i), **({} if i else {"name": "f"})})
                     for i in range(3)))  # fmt: skip
    assert [one["function"] for one in said["tool_calls"]] == [named("f", "012")]


def test_list_entries_without_an_index_are_appended() -> None:
    said = message(
        {"annotations": [{"a": 1}]}, {"annotations": []}, {"annotations": [{"b": [2]}, "index", {"index": 1}]}
    )
    assert said["annotations"] == [{"a": 1}, {"b": [2]}, "index", {"index": 1}]


def test_deeply_nested_value_is_replaced_by_the_last_one() -> None:
    deep: Any = "x"
    for _ in range(100):
        deep = {"in": deep}
    assert message({"more": deep}, {"more": deep})["more"] == deep


def test_ping_events_are_ignored() -> None:
    assert merged([b'{"type":"ping"}', *delta_events({"content": "x"}), b'{"usage":{"total_tokens":1}}']) == merged(
        [*delta_events({"content": "x"}), b'{"choices":[],"usage":{"total_tokens":1}}']
    )


@pytest.mark.parametrize(
    "data", [b"3", b'"x"', b"[]", b'{"choices":3}', b'{"choices":[3]}', b'{"choices":[{"index":"x"}]}',
             b'{"choices":[{"delta":{"content":"\xff"}}]}', b'{"choices":[{"delta":{"content":"x}}]}']
)  # fmt: skip
def test_malformed_chunk_is_refused(data: bytes) -> None:
    with pytest.raises((BackendUnavailable, ValueError)):
        merged([data])


# ── limits ───────────────────────────────────────────────────────────────────────────────────────

FLOODS: dict[str, Callable[[int], Delta]] = {
    "calls": lambda i: call(i, id=f"c{i}", function=named("f", "{}")),
    "calls under one number": lambda i: call(0, id=f"c{i}", function=named("f", "{}")),
    "members": lambda i: {f"m{i}": "x"},
}


@pytest.mark.parametrize("name", FLOODS)
def test_response_with_too_many_pieces_is_refused(name: str) -> None:
    with pytest.raises(BackendUnavailable, match="more than 8192"):
        message(*map(FLOODS[name], range(MAX_PLACES + 1)))


def test_too_many_choices_and_too_many_list_entries_are_refused() -> None:
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
def test_merging_takes_linear_time(name: str) -> None:
    """Sixteen times as many chunks take sixteen times as long, not 256 times."""
    few, many = ([LONG[name](i) for i in range(count)] for count in (1_000, 16_000))
    assert min(cpu_s(many) for _ in range(3)) < 64 * min(cpu_s(few) for _ in range(5))


def cpu_s(deltas: list[Delta]) -> float:
    events = delta_events(*deltas)
    merger, start = ChunkMerger(CONTEXT, CHAT), time.process_time()
    for data in events:
        merger.add(data)
    encode_json(merger.answer())
    return time.process_time() - start
