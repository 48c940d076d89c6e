"""Tasks: a generator's values as events."""

from __future__ import annotations

from gateway.plugin import Part
from support.api_streams import sent, stream_of


def test_a_generators_values_are_parts() -> None:
    out = sent(stream_of("task"), [Part(1), Part(None), Part({"a": b"\x00"}), Part("")])
    assert out == (
        b'data: {"part":1}\n\ndata: {"part":null}\n\ndata: {"part":{"a":"AA=="}}\n\ndata: {"part":""}\n\n'
        b"data: [DONE]\n\n"
    )
