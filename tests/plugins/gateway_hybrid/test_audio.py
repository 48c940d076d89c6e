"""Long recordings: where they are cut, and how the pieces are joined."""

from __future__ import annotations

import asyncio
import io
import math
import random
import wave
from array import array
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from gateway.api import multipart
from gateway.plugin import BackendFailed, Result, Task, Upload, encode_form
from gateway_hybrid import Hybrid, HybridSettings
from gateway_hybrid.audio import Wav, cut_points
from support.hybrid_services import HERE, THERE, HybridServices, Side
from support.virtual_time import virtual_time

RATE = 8000
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def wav(samples: array[int], *, width: int = 2, channels: int = 1, rate: int = RATE) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        frames = samples.tobytes() if width == 2 else bytes((n >> 8) + 128 for n in samples)
        file.writeframes(frames)
    return out.getvalue()


def words(count: int, word_s: float = 2.6, pause_s: float = 0.4, channels: int = 1) -> array[int]:
    """Noise with pauses; the loudness encodes the number of the word."""
    rng, sound = random.Random(1), array("h")
    for n in range(count):
        loud = 4000 + 1000 * n
        for _ in range(int(word_s * RATE)):
            sound.extend([rng.randint(-loud, loud)] * channels)
        sound.extend([0] * int(pause_s * RATE) * channels)
    return sound


def decode_words(data: bytes) -> list[tuple[str, float, float]]:
    """Return the words in a recording with start and end in seconds.

    A word is decoded from its loudness.
    """
    sound, found = Wav(data), []
    loudness = sound.loudness(0, sound.seconds)
    began: int | None = None
    for at, level in enumerate([*loudness, 0.0]):
        if level > 500 and began is None:
            began = at
        elif level <= 500 and began is not None:
            peak = sorted(loudness[began:at])[(at - began) // 2]
            found.append((WORDS[min(max(round((2 * peak - 4000) / 1000), 0), 11)], began / 100, at / 100))
            began = None
    return found


async def transcribes(task: Task) -> Result:
    said = decode_words(task.files["file"].data)
    await asyncio.sleep(0.5 * len(said))
    timed = [{"word": word, "start": start, "end": end} for word, start, end in said]
    segments = [{"id": 0, "start": said[0][1], "end": said[-1][2], "text": " ".join(word for word, _, _ in said)}]
    whole = {"text": segments[0]["text"], "language": "en", "segments": segments, "words": timed}
    return Result(json=whole, confidence=0.8)


async def upstream(task: Task) -> Result:
    """An upstream: it receives the form, and its answer is a body."""
    parsed = multipart.collect(multipart.parse(task.content_type, task.body))
    assert parsed.files["file"].data == task.files["file"].data
    assert parsed.fields["response_format"] == "verbose_json"
    return Result(body=msgspec.json.encode((await transcribes(task)).json))


def transcribe(edge: Side, cloud: Side, data: bytes, **fields: Any) -> tuple[HybridServices, Result]:
    services = HybridServices(edge, cloud)
    given = {"edge": HERE, "cloud": THERE, "models": ["ears"], "piece_s": 6}
    hybrid = Hybrid(HybridSettings.model_validate(given), services)
    fields = {"model": "both/ears", "response_format": "srt", "stream": "false", **fields}
    files = {"file": Upload(data, "speech.wav", "audio/wav")}
    task = Task(kind="transcription", name="ears", deadline=1e6, fields=fields, files=files)
    with virtual_time() as runner:
        return services, runner.run(hybrid.run(task))


def test_cuts_are_placed_in_pauses() -> None:
    sound = Wav(wav(words(12)))
    found = cut_points(sound, 6.0)
    assert (found[0], found[-1]) == (0.0, sound.seconds)
    assert all(2.6 <= at % 3.0 <= 3.0 for at in found[1:-1]), found
    assert all(3.0 <= end - start <= 9.0 for start, end in pairwise(found))


def test_cut_is_delayed_to_the_next_pause() -> None:
    sound = words(1, word_s=11.0)
    sound.extend(words(4))
    found = cut_points(Wav(wav(sound)), 6.0)
    assert 11.0 <= found[1] <= 11.4


def test_steady_noise_is_cut_at_bounded_length() -> None:
    rng = random.Random(2)
    noise = array("h", (rng.randint(-900, 900) for _ in range(40 * RATE)))
    found = cut_points(Wav(wav(noise)), 6.0)
    assert all(0 < end - start <= 15.0 for start, end in pairwise(found))


@pytest.mark.parametrize(("width", "channels"), [(2, 1), (1, 1), (2, 2)])
def test_pieces_join_to_the_whole_recording(width: int, channels: int) -> None:
    sound = Wav(wav(words(5, channels=channels), width=width, channels=channels))
    found = cut_points(sound, 4.0)
    pieces = [Wav(sound.between(start, end)) for start, end in pairwise(found)]
    assert b"".join(piece.frames for piece in pieces) == sound.frames
    assert {(piece.width, piece.channels, piece.rate_hz) for piece in pieces} == {(width, channels, RATE)}


@pytest.mark.parametrize("data", [b"", b"ID3 an mp3", wav(array("h", [0] * 8))[:30]])
def test_non_wav_upload_is_not_divided(data: bytes) -> None:
    async def any_text(task: Task) -> Result:
        return Result(json={"text": "heard"})

    services, result = transcribe(any_text, any_text, data)
    assert result.json == {"text": "heard"}
    assert [task.files["file"].data for task in services.dispatched] == [data]


def test_long_recording_is_transcribed_by_both_sides_with_correct_times() -> None:
    data = wav(words(12))
    services, result = transcribe(transcribes, upstream, data)
    assert result.json["text"].split() == WORDS
    assert services.dispatched_to(HERE)
    assert services.dispatched_to(THERE)
    expected = decode_words(data)
    assert [one["word"] for one in result.json["words"]] == WORDS
    for one, (_, start, end) in zip(result.json["words"], expected, strict=True):
        assert (one["start"], one["end"]) == (pytest.approx(start, abs=0.03), pytest.approx(end, abs=0.03))
    assert [one["id"] for one in result.json["segments"]] == list(range(len(result.json["segments"])))
    assert result.json["duration"] == pytest.approx(36.0)
    assert result.json["language"] == "en"


def test_confidence_is_the_mean_of_the_pieces() -> None:
    _, result = transcribe(transcribes, transcribes, wav(words(6)))
    assert result.confidence == pytest.approx(0.8)


def test_answer_without_a_transcript_is_rejected() -> None:
    async def nothing(task: Task) -> Result:
        return Result(json={"words": []})

    _, result = transcribe(transcribes, nothing, wav(words(8)))
    assert result.json["text"].split() == WORDS[:8]
    with pytest.raises(BackendFailed, match="did not return a transcript"):
        transcribe(nothing, nothing, wav(words(8)))


def test_encoded_form_parses_to_the_same_fields_and_files() -> None:
    fields = {"model": "m", "timestamp_granularities[]": ["word", "segment"]}
    body, content_type = encode_form(fields, {"file": Upload(b"\x00\r\n--x", 'a"b.wav', "audio/wav")})
    read = multipart.collect(multipart.parse(content_type, body))
    assert read.fields == fields
    assert read.files["file"].data == b"\x00\r\n--x"


def test_loudness_of_a_sine_is_its_mean_absolute_value() -> None:
    sine = array("h", (int(9000 * math.sin(n / 7)) for n in range(RATE)))
    assert Wav(wav(sine)).loudness(0.0, 1.0) == pytest.approx([5730] * 100, rel=0.2)
