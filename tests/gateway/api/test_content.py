"""Which parts count as content."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.plugin import Kind, Part
from support.api_streams import USAGE, chunk, draft, has_content, raw


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
