"""Text completions, and the cases they share with chat completions."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.plugin import BackendUnavailable, Kind, Part
from support.api_streams import USAGE, answer_of, collected, draft, raw, sent, stream_of, values

TYPED_KINDS: tuple[Kind, ...] = ("chat", "completion")


def test_completions_stream_texts() -> None:
    events = values(sent(stream_of("completion"), [Part("a"), Part("b")]))
    assert [event["choices"][0]["text"] for event in events[:-1]] == ["a", "b", ""]
    assert events[0]["object"] == "text_completion"


def test_completion_parts_are_collected_into_one_completion() -> None:
    parts = [Part("a"), raw({"choices": [{"index": 0, "text": "b", "finish_reason": "length"}]})]
    completion = answer_of(draft("completion"), parts)
    assert completion["choices"] == [{"logprobs": None, "index": 0, "text": "ab", "finish_reason": "length"}]


@pytest.mark.parametrize("choices", [["x"], [None], "x", {}, 3, [{"delta": "x"}], [{"index": "0"}]])
def test_chunk_with_malformed_choices_raises_backend_unavailable(choices: Any) -> None:
    for kind in ("chat", "completion"):
        with pytest.raises(BackendUnavailable):
            stream_of(kind).part(Part({"choices": choices}))
        with pytest.raises(BackendUnavailable):
            collected(draft(kind), [Part({"choices": choices})])


def test_error_or_invalid_part_while_collecting_raises_backend_unavailable() -> None:
    for kind in TYPED_KINDS:
        for bad in (raw({"error": {"message": "no"}}), raw(b"{nonsense"), Part(3)):
            with pytest.raises(BackendUnavailable):
                collected(draft(kind), [Part("x"), bad])


@pytest.mark.parametrize("kind", ["chat", "completion"])
@pytest.mark.parametrize("parts", [[], [Part({"usage": USAGE})], [raw({"choices": [], "usage": USAGE})]])
def test_stream_without_content_raises_when_collected(kind: Kind, parts: list[Part]) -> None:
    with pytest.raises(BackendUnavailable, match="before it had begun"):
        collected(draft(kind), parts)
