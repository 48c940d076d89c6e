"""Transcripts in five formats, from complete or partial backend results."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.api.response_json import ResponseContext
from gateway.api.transcriptions import render_transcript
from gateway.plugin import BackendUnavailable, Part, Result
from support.api_streams import answer_of, draft, raw, sent, stream_of, values

CONTEXT = ResponseContext(request_id="r", model="m")
TRANSCRIPT = {
    "text": "go forward ten meters",
    "language": "en",
    "duration": 3725.5,
    "segments": [
        {"start": 0.0, "end": 1.2345, "text": " go forward "},
        {"start": 1.2345, "end": 3725.5, "text": "ten -->\n\n<i>meters</i> & more"},
    ],
    "words": [{"word": "go", "start": 0.0, "end": 0.4}],
}


def shown(value: Any, response_format: Any) -> str:
    return render_transcript(CONTEXT, value, response_format)[1].decode()


def test_json_format_contains_only_the_text() -> None:
    assert json.loads(shown(TRANSCRIPT, "json")) == {"text": "go forward ten meters"}


def test_text_format_is_plain_text() -> None:
    assert render_transcript(CONTEXT, TRANSCRIPT, "text") == (
        "text/plain; charset=utf-8",
        b"go forward ten meters\n",
    )


def test_verbose_json_contains_all_known_fields() -> None:
    verbose = json.loads(shown(TRANSCRIPT, "verbose_json"))
    assert verbose["task"] == "transcribe"
    assert (verbose["language"], verbose["duration"]) == ("en", 3725.5)
    assert [segment["id"] for segment in verbose["segments"]] == [0, 1]
    assert verbose["words"] == TRANSCRIPT["words"]


def test_verbose_json_of_a_bare_text_has_the_required_fields() -> None:
    assert json.loads(shown("hello", "verbose_json")) == {
        "task": "transcribe",
        "language": "und",
        "duration": 0.0,
        "text": "hello",
    }


def test_srt_has_numbered_cues_without_empty_lines() -> None:
    assert shown(TRANSCRIPT, "srt") == (
        "1\n00:00:00,000 --> 00:00:01,234\ngo forward\n\n"
        "2\n00:00:01,234 --> 01:02:05,500\nten -> <i>meters</i> & more\n\n"
    )


def test_vtt_has_a_header_decimal_points_and_escapes() -> None:
    assert shown(TRANSCRIPT, "vtt") == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.234\ngo forward\n\n"
        "00:00:01.234 --> 01:02:05.500\nten -> &lt;i>meters&lt;/i> &amp; more\n\n"
    )


def test_subtitles_without_segments_are_one_cue_to_the_last_word() -> None:
    words = [{"word": "hi", "start": 0.0, "end": 0.75}]
    assert shown({"text": "hi", "words": words}, "srt") == "1\n00:00:00,000 --> 00:00:00,750\nhi\n\n"


@pytest.mark.parametrize("value", [None, 3, [], {}, {"text": None}])
def test_result_without_text_raises_backend_unavailable(value: Any) -> None:
    with pytest.raises(BackendUnavailable):
        render_transcript(CONTEXT, value, "json")


# ── streams ──────────────────────────────────────────────────────────────────────────────────────


def test_transcript_stream_sends_deltas_then_the_whole_text() -> None:
    events = values(sent(stream_of("transcription"), [Part("go "), Part({"text": "forward"})]))
    assert events == [
        {"type": "transcript.text.delta", "delta": "go "},
        {"type": "transcript.text.delta", "delta": "forward"},
        {"type": "transcript.text.done", "text": "go forward"},
        "[DONE]",
    ]


def test_transcript_done_event_of_a_backend_is_not_repeated() -> None:
    done = {"type": "transcript.text.done", "text": "go"}
    assert values(sent(stream_of("transcription"), [Part(done)])) == [done, "[DONE]"]
    assert values(sent(stream_of("transcription"), [raw(done)])) == [done, "[DONE]"]


@pytest.mark.parametrize(
    "result", [Result(json="hi"), Result(json={"text": "hi"}), Result(body=b"hi\n", content_type="text/plain")]
)
def test_whole_transcript_streams_as_delta_and_done(result: Result) -> None:
    stream = stream_of("transcription")
    events = values(stream.whole(result) + stream.end())
    assert [event["type"] for event in events[:-1]] == ["transcript.text.delta", "transcript.text.done"]
    assert events[1]["text"] == "hi"


@pytest.mark.parametrize(
    "parts",
    [
        [Part("go "), Part("on")],
        [raw({"type": "transcript.text.delta", "delta": "go "}), raw({"type": "transcript.text.delta", "delta": "on"})],
        [Part("x"), raw({"type": "transcript.text.done", "text": "go on"}), raw(b"[DONE]")],
    ],
)
def test_transcript_parts_are_collected_into_one_transcript(parts: list[Part]) -> None:
    assert answer_of(draft("transcription"), parts) == {"text": "go on"}
