"""A transcript in the five formats a client may ask for.

A backend says `{"text", "segments", "words", "duration", "language"}`, all but the text optional, times
in seconds; a text alone will do. Subtitles without segments are one cue over the whole recording.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gateway.api.schemas import TranscriptFormat
from gateway.api.sse import JSON, Stamp, encode_json

PLAIN = "text/plain; charset=utf-8"
# ISO 639-2 for "undetermined": the schema wants a language where the backend knows none.
UNDETERMINED = "und"


def transcript_answer(stamp: Stamp, value: Any, response_format: TranscriptFormat) -> tuple[str, bytes]:
    """The transcript as (content type, body). Raises BackendUnavailable when there is no text in it."""
    transcript = as_transcript(stamp, value)
    match response_format:
        case "json":
            shown = {k: transcript[k] for k in ("text", "usage", "logprobs") if k in transcript}
            return JSON, encode_json(shown)
        case "verbose_json":
            return JSON, encode_json(_verbose(transcript))
        case "text":
            return PLAIN, f"{transcript['text']}\n".encode()
        case "srt":
            return PLAIN, _subtitles(transcript, "", _srt_cue).encode()
        case "vtt":
            return PLAIN, _subtitles(transcript, "WEBVTT\n\n", _vtt_cue).encode()


def as_transcript(stamp: Stamp, value: Any) -> Mapping[str, Any]:
    """The backend's value as a transcript. Raises BackendUnavailable."""
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, Mapping) and isinstance(value.get("text"), str):
        return value
    raise stamp.failure("gave no transcript: it must be a text, or an object with a `text`")


def _verbose(transcript: Mapping[str, Any]) -> dict[str, Any]:
    known = {k: v for k, v in transcript.items() if v is not None}
    segments = [{"id": i, **segment} for i, segment in enumerate(transcript.get("segments") or ())]
    fallback = {"task": "transcribe", "language": UNDETERMINED, "duration": _duration_s(transcript)}
    return fallback | known | ({"segments": segments} if segments else {})


def _duration_s(transcript: Mapping[str, Any]) -> float:
    """How long the recording is: as the backend says, else where its last segment or word ends."""
    timed = [*(transcript.get("segments") or ()), *(transcript.get("words") or ())]
    return float(transcript.get("duration") or max((one.get("end", 0.0) for one in timed), default=0.0))


def _subtitles(transcript: Mapping[str, Any], header: str, cue: Callable[[int, float, float, str], str]) -> str:
    whole = {"start": 0.0, "end": _duration_s(transcript), "text": transcript["text"]}
    segments = transcript.get("segments") or [whole]
    cues = (
        cue(number, float(one["start"]), float(one["end"]), _one_line(one["text"]))
        for number, one in enumerate(segments, start=1)
    )
    return header + "".join(cues)


def _one_line(text: str) -> str:
    """An empty line would end the cue, an arrow would begin another."""
    return " ".join(text.split()).replace("-->", "->")


def _srt_cue(number: int, start_s: float, end_s: float, text: str) -> str:
    return f"{number}\n{_clock(start_s, ',')} --> {_clock(end_s, ',')}\n{text}\n\n"


def _vtt_cue(number: int, start_s: float, end_s: float, text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    return f"{_clock(start_s, '.')} --> {_clock(end_s, '.')}\n{escaped}\n\n"


def _clock(seconds: float, point: str) -> str:
    """Hours, minutes, seconds and milliseconds; SRT writes a comma where WebVTT writes a point."""
    whole_s, ms = divmod(round(max(0.0, seconds) * 1000), 1000)
    return f"{whole_s // 3600:02}:{whole_s // 60 % 60:02}:{whole_s % 60:02}{point}{ms:03}"
