"""Transcriptions: `POST /v1/audio/transcriptions`, in five formats.

A backend returns `{"text", "segments", "words", "duration", "language"}`, all but the text optional, times in seconds.
A text alone is accepted. Subtitles without segments are one cue over the whole recording.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from gateway.api import multipart
from gateway.api.operation import Operation, ParsedRequest, PartCollector
from gateway.api.parse import checked_name
from gateway.api.response_json import JSON, ResponseContext, encode_json
from gateway.api.routes import Match
from gateway.api.schemas import EVENT_STREAM, STRING, TRANSCRIPT_FORMATS, TranscriptFormat, schema_ref
from gateway.api.sse_framing import encode_event
from gateway.api.stream_encoder import StreamEncoder
from gateway.plugin import Result, TaskInvalid

PLAIN = "text/plain; charset=utf-8"
# ISO 639-2 for "undetermined": OpenAI's schema requires a language even if the backend does not know it.
UNDETERMINED = "und"


class TranscriptionOperation(Operation):
    """Turn speech into text."""

    kind = "transcription"
    request_content: ClassVar[Mapping[str, Any]] = {"multipart/form-data": schema_ref("TranscriptionRequest")}
    response_content: ClassVar[Mapping[str, Any]] = {
        "application/json": schema_ref("Transcript"),
        "text/event-stream": EVENT_STREAM,
        "text/plain": STRING,
        "*/*": {"description": "text or subtitles, as an upstream labels them"},
    }

    def parse(self, match: Match, content_type: str, body: bytes) -> ParsedRequest:
        if not multipart.is_multipart(content_type, body):
            raise TaskInvalid("a transcription is a multipart/form-data body with the parts `file` and `model`")
        layout = multipart.form_layout(content_type, body)
        multipart.check_model_part(layout)
        form = multipart.collect(multipart.parts_of(layout, body))
        name = form.fields.get("model")
        if not isinstance(name, str) or not name:
            raise TaskInvalid("the form has no field `model`; name a model of /v1/models, or `auto`", param="model")
        if "file" not in form.files:
            problem = "the form has no file `file`; upload the recording (curl: -F file=@speech.wav)"
            raise TaskInvalid(problem, param="file")
        return ParsedRequest(
            operation=self,
            name=checked_name(name),
            path=match.path,
            body=body,
            content_type=layout.content_type,
            stream=_form_flag(form.fields, "stream"),
            fields=form.fields,
            files=form.files,
            response_format=_format_in(form.fields.get("response_format", "json")),
        )

    async def render(self, request: ParsedRequest, context: ResponseContext, result: Result) -> tuple[str, bytes]:
        """Pass a body that is in the requested format.

        Some backends answer every request with JSON.
        """
        wants_text = request.response_format in ("text", "srt", "vtt")
        if result.body is not None and not (wants_text and "json" in result.content_type):
            return result.content_type, result.body
        return render_transcript(context, result.value(), request.response_format)

    def collector(self, request: ParsedRequest, context: ResponseContext) -> PartCollector:
        return TranscriptCollector(context)

    def encoder(self, request: ParsedRequest, context: ResponseContext) -> StreamEncoder:
        return TranscriptEncoder(context)


def _form_flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name, "false")
    if value not in ("true", "false", "True", "False", "1", "0"):
        raise TaskInvalid(f"the form field `{name}` must be `true` or `false`", param=name)
    return value in ("true", "True", "1")


def _format_in(value: Any) -> TranscriptFormat:
    for known in TRANSCRIPT_FORMATS:
        if value == known:
            return known
    listed = ", ".join(TRANSCRIPT_FORMATS)
    raise TaskInvalid(f"the form field `response_format` must be one of {listed}", param="response_format")


# ── streams ──────────────────────────────────────────────────────────────────────────────────────


class TranscriptEncoder(StreamEncoder):
    """Encodes texts as `transcript.text.delta`, and at the end all of it.

    The last event is `transcript.text.done` with the whole text.
    """

    sends_done = True

    def __init__(self, context: ResponseContext) -> None:
        super().__init__(context)
        self.texts: list[str] = []
        self.is_done = False

    def value(self, value: Any) -> bytes:
        if isinstance(value, Mapping) and "type" in value:
            self.is_done = self.is_done or value["type"] == "transcript.text.done"
            return encode_event(encode_json(value))
        text = as_transcript(self.context, value)["text"]
        self.texts.append(text)
        return encode_event(encode_json({"type": "transcript.text.delta", "delta": text})) if text else b""

    def whole(self, result: Result) -> bytes:
        is_json = result.body is None or "json" in result.content_type
        return self.value(result.value() if is_json else (result.body or b"").decode(errors="replace").strip())

    def closing(self) -> bytes:
        if self.is_done or self.has_relayed:
            return b""
        return encode_event(encode_json({"type": "transcript.text.done", "text": "".join(self.texts)}))


class TranscriptCollector(PartCollector):
    """Takes the text of `transcript.text.done`, or without it joins the pieces."""

    text: str | None = None

    def add_event(self, data: bytes) -> None:
        if data.startswith(b"{"):
            super().add_event(data)
        else:
            self.add_value(data.decode(errors="replace"))  # speaches: a segment's text

    def add_value(self, value: Any) -> None:
        if isinstance(value, dict) and value.get("type") == "transcript.text.done":
            self.text = str(as_transcript(self.context, value)["text"])
            return
        is_delta = isinstance(value, dict) and isinstance(value.get("delta"), str)
        self.values.append(str(value["delta"] if is_delta else as_transcript(self.context, value)["text"]))

    def result(self) -> Result:
        return Result(json={"text": "".join(self.values) if self.text is None else self.text})


# ── formats ──────────────────────────────────────────────────────────────────────────────────────


def render_transcript(context: ResponseContext, value: Any, response_format: TranscriptFormat) -> tuple[str, bytes]:
    """Return content type and body of a transcript.

    Raises BackendUnavailable if it has no text.
    """
    transcript = as_transcript(context, value)
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


def as_transcript(context: ResponseContext, value: Any) -> Mapping[str, Any]:
    """Return a backend's value as a transcript. Raises BackendUnavailable."""
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, Mapping) and isinstance(value.get("text"), str):
        return value
    raise context.failure("gave no transcript: it must be a text, or an object with a `text`")


def _verbose(transcript: Mapping[str, Any]) -> dict[str, Any]:
    known = {k: v for k, v in transcript.items() if v is not None}
    segments = [{"id": i, **segment} for i, segment in enumerate(transcript.get("segments") or ())]
    fallback = {"task": "transcribe", "language": UNDETERMINED, "duration": _duration_s(transcript)}
    return fallback | known | ({"segments": segments} if segments else {})


def _duration_s(transcript: Mapping[str, Any]) -> float:
    """Return the backend's figure, else the end of the last segment or word."""
    timed = [*(transcript.get("segments") or ()), *(transcript.get("words") or ())]
    return float(transcript.get("duration") or max((entry.get("end", 0.0) for entry in timed), default=0.0))


def _subtitles(transcript: Mapping[str, Any], header: str, cue: Callable[[int, float, float, str], str]) -> str:
    whole = {"start": 0.0, "end": _duration_s(transcript), "text": transcript["text"]}
    segments = transcript.get("segments") or [whole]
    cues = (
        cue(number, float(segment["start"]), float(segment["end"]), _one_line(segment["text"]))
        for number, segment in enumerate(segments, start=1)
    )
    return header + "".join(cues)


def _one_line(text: str) -> str:
    """Join lines, replace arrows: an empty line ends a cue, an arrow begins one."""
    return " ".join(text.split()).replace("-->", "->")


def _srt_cue(number: int, start_s: float, end_s: float, text: str) -> str:
    return f"{number}\n{_clock(start_s, ',')} --> {_clock(end_s, ',')}\n{text}\n\n"


def _vtt_cue(number: int, start_s: float, end_s: float, text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    return f"{_clock(start_s, '.')} --> {_clock(end_s, '.')}\n{escaped}\n\n"


def _clock(seconds: float, point: str) -> str:
    """Return hours, minutes, seconds and milliseconds.

    point: "," in SRT, "." in WebVTT.
    """
    whole_s, ms = divmod(round(max(0.0, seconds) * 1000), 1000)
    return f"{whole_s // 3600:02}:{whole_s // 60 % 60:02}:{whole_s % 60:02}{point}{ms:03}"
