"""Transcripts in five formats, from complete or partial backend results."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.api.sse import Stamp
from gateway.api.transcripts import transcript_answer
from gateway.plugin import BackendUnavailable

STAMP = Stamp(request_id="r", model="m")
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
    return transcript_answer(STAMP, value, response_format)[1].decode()


def test_json_format_contains_only_the_text() -> None:
    assert json.loads(shown(TRANSCRIPT, "json")) == {"text": "go forward ten meters"}


def test_text_format_is_plain_text() -> None:
    assert transcript_answer(STAMP, TRANSCRIPT, "text") == (
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
        transcript_answer(STAMP, value, "json")
