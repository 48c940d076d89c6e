"""Divides a long recording: cut at quiet places, transcribed in pieces, with times shifted to the whole recording.

The recording is RIFF WAV, 8 or 16 bit. Loudness is the sum of magnitudes over 10 ms. A piece ends in the middle of the
quietest 0.3 s around its nominal length. Without a pause there, the search extends to 2.5 times the nominal length.
"""

from __future__ import annotations

import asyncio
import io
import wave
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.plugin import BackendFailed, Result, Task, Upload, encode_form

FRAME_S, QUIET_S = 0.01, 0.3
SILENCE_RATIO = 0.2  # of the mean loudness: a quieter place is a pause
SAMPLE_STEP = 4  # every fourth sample is enough for the loudness
TIMED_FORMATS = frozenset({"srt", "vtt", "verbose_json"})  # response formats with times


class Wav:
    """A WAV recording that can be cut. Raises ValueError if it is not WAV or its sample format is not supported."""

    def __init__(self, data: bytes) -> None:
        try:
            with wave.open(io.BytesIO(data), "rb") as file:
                self.channels, self.width, self.rate_hz = file.getparams()[:3]
                self.frames = file.readframes(len(data))  # a program that streams writes a length it does not know yet
        except (wave.Error, EOFError, RuntimeError) as exc:
            raise ValueError(f"not WAV: {exc}") from exc
        if self.width not in (1, 2) or not self.rate_hz:
            raise ValueError(f"samples of {self.width} bytes at {self.rate_hz} Hz")
        self.block = self.channels * self.width

    @property
    def seconds(self) -> float:
        return len(self.frames) / self.block / self.rate_hz

    def between(self, start_s: float, end_s: float) -> bytes:
        """Return the part between two instants as WAV."""
        out = io.BytesIO()
        with wave.open(out, "wb") as file:
            file.setnchannels(self.channels)
            file.setsampwidth(self.width)
            file.setframerate(self.rate_hz)
            file.writeframes(self.frames[self._at(start_s) : self._at(end_s)])
        return out.getvalue()

    def _at(self, seconds: float) -> int:
        return round(seconds * self.rate_hz) * self.block

    def loudness(self, start_s: float, end_s: float) -> list[float]:
        """Return the mean magnitude of each 10 ms between two instants."""
        step = max(round(FRAME_S * self.rate_hz), 1) * self.block
        sound = self.frames[self._at(start_s) : self._at(end_s)]
        return [self._magnitude(sound[at : at + step]) for at in range(0, len(sound) - step + 1, step)]

    def _magnitude(self, sound: bytes) -> float:
        if self.width == 1:
            samples: Sequence[int] = [byte - 128 for byte in sound[:: SAMPLE_STEP * self.channels]]
        else:
            samples = array("h", sound)[:: SAMPLE_STEP * self.channels]
        return sum(map(abs, samples)) / max(len(samples), 1)


def cut_points(wav: Wav, piece_s: float) -> list[float]:
    """Return the boundaries of the pieces in seconds, from 0 to the end."""
    found = [0.0]
    usual = wav.loudness(0.0, min(wav.seconds, piece_s))
    silence = SILENCE_RATIO * sum(usual) / max(len(usual), 1)
    while wav.seconds - found[-1] > 1.5 * piece_s:
        found.append(_next_cut(wav, found[-1], piece_s, silence))
    return [*found, wav.seconds]


def _next_cut(wav: Wav, after_s: float, piece_s: float, silence: float) -> float:
    at_s, loudness = _quietest(wav, after_s + 0.5 * piece_s, after_s + 1.5 * piece_s)
    if loudness > silence:
        later_s, later = _quietest(wav, after_s + 1.5 * piece_s, min(after_s + 2.5 * piece_s, wav.seconds))
        at_s = later_s if later <= silence else at_s
    return at_s


def _quietest(wav: Wav, start_s: float, end_s: float) -> tuple[float, float]:
    """Return the middle of the quietest 0.3 s between two instants, and its loudness."""
    loudness = wav.loudness(start_s, end_s)
    width = min(round(QUIET_S / FRAME_S), len(loudness))
    if not width:
        return start_s, float("inf")
    total = sum(loudness[:width])
    best, best_at = total, 0
    for at in range(1, len(loudness) - width + 1):
        total += loudness[at + width - 1] - loudness[at - 1]
        if total < best:
            best, best_at = total, at
    return start_s + (best_at + width / 2) * FRAME_S, best / width


class AudioWork:
    """A transcription divided into pieces of sound. Raises ValueError if the recording cannot be cut."""

    def __init__(self, task: Task, upload: Upload, piece_s: float) -> None:
        self._task, self._upload, self._piece_s = task, upload, piece_s
        self._wav = Wav(upload.data)
        self.count = max(1, round(self._wav.seconds / piece_s))
        self._cuts = [min(n * piece_s, self._wav.seconds) for n in range(self.count)] + [self._wav.seconds]
        fields = task.fields or {}
        requested = fields.get("response_format", "json")
        changes = {"model": task.name, "response_format": "verbose_json" if requested in TIMED_FORMATS else "json"}
        self._fields = {name: value for name, value in fields.items() if name != "stream"} | changes

    async def prepare(self) -> None:
        """Find the cuts, in a thread: the search would block the event loop."""
        self._cuts = await asyncio.to_thread(cut_points, self._wav, self._piece_s)
        self.count = len(self._cuts) - 1

    def part(self, start: int, stop: int) -> Task:
        """Return the request to transcribe these consecutive pieces."""
        sound = self._wav.between(self._cuts[start], self._cuts[stop])
        files = {**self._task.files, "file": Upload(sound, self._upload.filename or "part.wav", "audio/wav")}
        body, content_type = encode_form(self._fields, files)
        whole = self._task.replace(fields=self._fields, files=files, body=body, content_type=content_type)
        return whole.subtask(items=stop - start)

    def check(self, answer: Result, items: int) -> dict[str, Any]:
        """Return the transcript. Raises BackendFailed if the answer has none."""
        value = answer.value()
        value = {"text": value} if isinstance(value, str) else value
        if not isinstance(value, dict) or not isinstance(value.get("text"), str):
            backend = answer.backend or "a backend"
            raise BackendFailed(f"{backend} did not return a transcript", code="upstream_bad_response")
        return {**value, "items": items, "confidence": answer.confidence}

    def join(self, answers: Sequence[dict[str, Any]]) -> Result:
        """Return one transcript, with times from the beginning of the recording."""
        starts_s = self._starts_of(answers)
        texts = [answer["text"].strip() for answer in answers]
        whole: dict[str, Any] = {"text": " ".join(text for text in texts if text)}
        if language := next((answer["language"] for answer in answers if answer.get("language")), None):
            whole["language"] = language
        whole["duration"] = round(self._wav.seconds, 3)
        for name in ("segments", "words"):
            moved = [_shifted(entry, start_s) for answer, start_s in zip(answers, starts_s, strict=True)
                     for entry in answer.get(name) or ()]  # fmt: skip
            if moved:
                whole[name] = [{**entry, "id": n} for n, entry in enumerate(moved)] if name == "segments" else moved
        return Result(json=whole, confidence=_mean_confidence(answers))

    def _starts_of(self, answers: Sequence[dict[str, Any]]) -> list[float]:
        at, starts_s = 0, []
        for answer in answers:
            starts_s.append(self._cuts[at])
            at += answer["items"]
        return starts_s


def _shifted(entry: Mapping[str, Any], by_s: float) -> dict[str, Any]:
    """Return a segment or word with its times shifted by `by_s`."""
    return {
        **entry,
        **{end: round(entry[end] + by_s, 3) for end in ("start", "end") if isinstance(entry.get(end), int | float)},
    }


def _mean_confidence(answers: Sequence[dict[str, Any]]) -> float | None:
    known = [(answer["confidence"], answer["items"]) for answer in answers if answer["confidence"] is not None]
    return sum(sure * items for sure, items in known) / sum(items for _, items in known) if known else None
