"""A long recording as work that can be divided: cut where it is quietest, transcribed in pieces, times put right.

The recording is RIFF WAV, 8 or 16 bit. It is cut in plain bytes: loudness is the sum of magnitudes over 10 ms, and
every piece ends in the middle of the quietest 0.3 s there is around its due length; where nobody pauses there, up to
two and a half times the length later.
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
SILENCE = 0.2  # of the mean loudness: quieter than that is a pause
EVERY = 4  # samples; loudness does not need them all
SUBTITLES = frozenset({"srt", "vtt", "verbose_json"})  # formats that need times


class Wav:
    """The sound of a WAV and what it takes to write another like it. Raises ValueError for what it cannot cut."""

    def __init__(self, data: bytes) -> None:
        try:
            with wave.open(io.BytesIO(data), "rb") as file:
                self.channels, self.width, self.rate_hz = file.getparams()[:3]
                self.frames = file.readframes(len(data))  # a length in the header may be a streamer's guess
        except (wave.Error, EOFError, RuntimeError) as exc:
            raise ValueError(f"no WAV: {exc}") from exc
        if self.width not in (1, 2) or not self.rate_hz:
            raise ValueError(f"samples of {self.width} bytes at {self.rate_hz} Hz")
        self.block = self.channels * self.width

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.frames) / self.block / self.rate_hz

    def between(self, start_s: float, end_s: float) -> bytes:
        """That part of it, as a WAV."""
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
        """The mean magnitude of each 10 ms between two instants."""
        step = max(round(FRAME_S * self.rate_hz), 1) * self.block
        sound = self.frames[self._at(start_s) : self._at(end_s)]
        return [self._magnitude(sound[at : at + step]) for at in range(0, len(sound) - step + 1, step)]

    def _magnitude(self, sound: bytes) -> float:
        if self.width == 1:
            samples: Sequence[int] = [byte - 128 for byte in sound[:: EVERY * self.channels]]
        else:
            samples = array("h", sound)[:: EVERY * self.channels]
        return sum(map(abs, samples)) / max(len(samples), 1)


def cuts(wav: Wav, piece_s: float) -> list[float]:
    """The instants between which the pieces are, from 0 to the end."""
    found = [0.0]
    usual = wav.loudness(0.0, min(wav.seconds, piece_s))
    silence = SILENCE * sum(usual) / max(len(usual), 1)
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
    """The middle of the quietest 0.3 s between two instants, and how loud it is there."""
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
    """A transcription of which each piece is an item. Raises ValueError where the recording cannot be cut."""

    def __init__(self, task: Task, upload: Upload, piece_s: float) -> None:
        self._task, self._upload, self._piece_s = task, upload, piece_s
        self._wav = Wav(upload.data)
        self.count = max(1, round(self._wav.seconds / piece_s))
        self._cuts = [min(n * piece_s, self._wav.seconds) for n in range(self.count)] + [self._wav.seconds]
        fields = task.fields or {}
        asked = fields.get("response_format", "json")
        changes = {"model": task.name, "response_format": "verbose_json" if asked in SUBTITLES else "json"}
        self._fields = {name: value for name, value in fields.items() if name != "stream"} | changes

    async def prepare(self) -> None:
        """Find the cuts; in a thread, for the gateway's loop has others to serve meanwhile."""
        self._cuts = await asyncio.to_thread(cuts, self._wav, self._piece_s)
        self.count = len(self._cuts) - 1

    def part(self, start: int, stop: int) -> Task:
        """A request to transcribe these pieces, which are one stretch of sound."""
        sound = self._wav.between(self._cuts[start], self._cuts[stop])
        files = {**self._task.files, "file": Upload(sound, self._upload.filename or "part.wav", "audio/wav")}
        body, content_type = encode_form(self._fields, files)
        whole = self._task.replace(fields=self._fields, files=files, body=body, content_type=content_type)
        return whole.subtask(items=stop - start)

    def check(self, answer: Result, items: int) -> dict[str, Any]:
        """The transcript. Raises BackendFailed where there is none."""
        value = answer.value()
        value = {"text": value} if isinstance(value, str) else value
        if not isinstance(value, dict) or not isinstance(value.get("text"), str):
            who = answer.backend or "a backend"
            raise BackendFailed(f"{who} was to answer with a transcript, and did not", code="upstream_bad_response")
        return {**value, "items": items, "confidence": answer.confidence}

    def join(self, answers: Sequence[dict[str, Any]]) -> Result:
        """One transcript, its times counted from the beginning of the recording."""
        starts_s = self._starts_of(answers)
        texts = [answer["text"].strip() for answer in answers]
        whole: dict[str, Any] = {"text": " ".join(text for text in texts if text)}
        if language := next((answer["language"] for answer in answers if answer.get("language")), None):
            whole["language"] = language
        whole["duration"] = round(self._wav.seconds, 3)
        for name in ("segments", "words"):
            moved = [_moved(one, start_s) for answer, start_s in zip(answers, starts_s, strict=True)
                     for one in answer.get(name) or ()]  # fmt: skip
            if moved:
                whole[name] = [{**one, "id": n} for n, one in enumerate(moved)] if name == "segments" else moved
        return Result(json=whole, confidence=_mean_confidence(answers))

    def _starts_of(self, answers: Sequence[dict[str, Any]]) -> list[float]:
        at, starts_s = 0, []
        for answer in answers:
            starts_s.append(self._cuts[at])
            at += answer["items"]
        return starts_s


def _moved(one: Mapping[str, Any], by_s: float) -> dict[str, Any]:
    """A segment or word, its times counted from `by_s` earlier."""
    return {
        **one,
        **{end: round(one[end] + by_s, 3) for end in ("start", "end") if isinstance(one.get(end), int | float)},
    }


def _mean_confidence(answers: Sequence[dict[str, Any]]) -> float | None:
    known = [(answer["confidence"], answer["items"]) for answer in answers if answer["confidence"] is not None]
    return sum(sure * items for sure, items in known) / sum(items for _, items in known) if known else None
