"""Tasks: a generator's values as events."""

from __future__ import annotations

from gateway.plugin import Part
from support.api_streams import sent, stream_of


def test_task_stream_wraps_each_generator_value_in_a_part_event() -> None:
    out = sent(stream_of("task"), [Part(1), Part(None), Part({"a": b"\x00"}), Part("")])
    assert out == (
        b'data: {"part":1}\n\ndata: {"part":null}\n\ndata: {"part":{"a":"AA=="}}\n\ndata: {"part":""}\n\n'
        b"data: [DONE]\n\n"
    )
