"""Relayed paths and tasks: their streams, and parts collected into one response."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.api.operations import OPERATIONS
from gateway.plugin import Part
from support.api_streams import answer_of, draft, raw, sent, stream_of


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


def test_task_values_are_collected_as_a_list_and_relayed_streams_are_not_collected() -> None:
    assert not OPERATIONS["other"].collects(replace(draft("other"), stream=False), raw({"b": 1}))
    assert answer_of(draft("other"), [Part(1), Part(2)]) == {"result": [1, 2]}
    assert answer_of(draft("task"), [Part(1), Part(2)]) == {"result": [1, 2]}
