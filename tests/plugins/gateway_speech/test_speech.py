from __future__ import annotations

import io
import math
import struct
import time
import wave
from array import array
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.plugin import BackendUnavailable, Result, Task, TaskInvalid, Upload
from gateway.workers import WorkerBackend
from gateway_speech import Speech, SpeechSettings
from gateway_speech.recognizer import Word, mean_confidence, segments, split_points, transcript
from gateway_speech.wav import RATE_HZ, read_pcm, resample, seconds_of
from support.recording_services import RecordingServices

RECORDING = Path(__file__).parents[3] / "gateway" / "demo" / "data" / "conveyor.wav"
TEXT = "turn on the conveyor belt and stop the machine"


def wav(samples: array[int] | bytes, *, rate_hz: int = RATE_HZ, channels: int = 1, width: int = 2) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate_hz)
        file.writeframes(samples if isinstance(samples, bytes) else samples.tobytes())
    return out.getvalue()


def recorded() -> array[int]:
    return read_pcm(RECORDING.read_bytes())


def a_task(data: bytes | None) -> Task:
    files = {} if data is None else {"file": Upload(data, "a.wav", "audio/wav")}
    return Task(
        kind="transcription", name="pocketsphinx", deadline=time.monotonic() + 50, fields={"prompt": "x"}, files=files
    )


async def transcribed(speech: Any, data: bytes | None) -> Result:
    (result,) = [item async for item in speech.run(a_task(data))]
    assert isinstance(result, Result)
    return result


# ── recognition ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def speech() -> AsyncIterator[WorkerBackend]:
    pytest.importorskip("pocketsphinx")
    async with WorkerBackend(Speech, SpeechSettings(), RecordingServices(), slots=1) as backend:
        yield backend


async def test_recording_is_transcribed_exactly_and_repeatably(speech: WorkerBackend) -> None:
    assert speech.models == {"pocketsphinx": "pocketsphinx"}
    assert speech.kinds == {"transcription"}
    result = await transcribed(speech, RECORDING.read_bytes())
    assert result.json["text"] == TEXT
    assert result.json["duration"] == pytest.approx(2.95, abs=0.05)
    assert result.json["language"] == "en"
    assert [word["word"] for word in result.json["words"]] == TEXT.split()
    assert [segment["text"] for segment in result.json["segments"]] == [TEXT]
    assert result.confidence is not None
    assert 0.5 < result.confidence <= 1
    assert await transcribed(speech, RECORDING.read_bytes()) == result


async def test_stereo_at_48_khz_is_transcribed(speech: WorkerBackend) -> None:
    loud = array("h", (sample for sample in recorded() for _ in range(6)))
    assert (await transcribed(speech, wav(loud, rate_hz=48_000, channels=2))).json["text"] == TEXT


async def test_long_recording_is_transcribed_in_pieces_with_segments_at_pauses(speech: WorkerBackend) -> None:
    once = recorded() + array("h", bytes(RATE_HZ))  # plus half a second of silence
    result = await transcribed(speech, wav(once * 7))
    assert result.json["text"] == " ".join([TEXT] * 7)
    assert [segment["text"] for segment in result.json["segments"]] == [TEXT] * 7
    starts = [segment["start"] for segment in result.json["segments"]]
    period_s = len(once) / RATE_HZ
    assert starts == pytest.approx([0.16 + n * period_s for n in range(7)], abs=0.1)


@pytest.mark.parametrize("seconds", [0, 0.005, 1, 25])
async def test_silence_of_any_length_gives_an_empty_text(speech: WorkerBackend, seconds: float) -> None:
    result = await transcribed(speech, wav(bytes(int(seconds * RATE_HZ) * 2)))
    assert result.json["text"] == ""
    assert result.json["segments"] == []
    assert result.confidence is None


async def test_missing_upload_is_reported_with_its_field(speech: WorkerBackend) -> None:
    with pytest.raises(TaskInvalid, match="the multipart field `file` is missing") as caught:
        await transcribed(speech, None)
    assert caught.value.param == "file"


async def test_grammar_limits_the_transcript(tmp_path: Path) -> None:
    pytest.importorskip("pocketsphinx")
    grammar = tmp_path / "commands.jsgf"
    grammar.write_text(
        "#JSGF V1.0;\ngrammar c;\n"
        "public <c> = turn (on | off) the conveyor belt and (start | stop) the machine;\n"
    )  # fmt: skip
    async with WorkerBackend(Speech, SpeechSettings(grammar=grammar), RecordingServices(), slots=1) as backend:
        assert (await transcribed(backend, RECORDING.read_bytes())).json["text"] == TEXT


OTHER = "open the window | good morning | please close the door behind you | what a nice day it is today"


@pytest.mark.parametrize(("sentences", "is_covered"), [(f"{TEXT} | {OTHER}", True), (OTHER, False)])
async def test_background_model_lowers_confidence_outside_the_grammar(
    tmp_path: Path, sentences: str, is_covered: bool
) -> None:
    pytest.importorskip("pocketsphinx")
    grammar = tmp_path / "sentences.jsgf"
    grammar.write_text(f"#JSGF V1.0;\ngrammar c;\npublic <s> = {sentences};\n")
    settings = SpeechSettings(grammar=grammar, background=True)
    async with WorkerBackend(Speech, settings, RecordingServices(), slots=1) as backend:
        results = [await transcribed(backend, RECORDING.read_bytes()) for _ in range(2)]
    assert results[0] == results[1]
    assert ((results[0].confidence or 0.0) > 0.5) == is_covered, results[0]


async def test_invalid_grammar_prevents_the_start(tmp_path: Path) -> None:
    pytest.importorskip("pocketsphinx")
    grammar = tmp_path / "commands.jsgf"
    grammar.write_text("turn on the belt")
    backend = WorkerBackend(Speech, SpeechSettings(grammar=grammar), RecordingServices(), slots=1)
    with pytest.raises(BackendUnavailable, match=r"commands\.jsgf is not a JSGF grammar"):
        await backend.__aenter__()


async def test_missing_extra_is_reported_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pocketsphinx", None)
    with pytest.raises(BackendUnavailable, match="A checkout installs it with"):
        await Speech(SpeechSettings(), RecordingServices()).__aenter__()


def test_missing_grammar_file_is_rejected() -> None:
    with pytest.raises(ValidationError, match="grammar"):
        SpeechSettings(grammar="/no/such/file")  # type: ignore[arg-type]


def test_model_name_is_configurable() -> None:
    speech = Speech(SpeechSettings(models="whisper-1"), RecordingServices())  # type: ignore[arg-type]
    assert speech.models == {"whisper-1": "whisper-1"}


def test_task_size_is_the_seconds_of_audio() -> None:
    speech = Speech(SpeechSettings(), RecordingServices())
    assert speech.size(a_task(RECORDING.read_bytes())) == pytest.approx(2.95, abs=0.05)
    assert speech.size(a_task(bytes(64_000))) == 2.0
    assert speech.size(a_task(None)) == 0.0


# ── WAV ──────────────────────────────────────────────────────────────────────────────────────────

TONE = array("h", (int(8000 * math.sin(n / 9)) for n in range(8000)))


def header(data: bytes = b"\0" * 320, *, form: int = 1, claimed: int | None = None) -> bytes:
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, form, 1, RATE_HZ, RATE_HZ * 2, 2, 16)
    body = b"WAVE" + fmt + struct.pack("<4sI", b"data", len(data) if claimed is None else claimed) + data
    return b"RIFF" + struct.pack("<I", len(body) if claimed is None else claimed) + body


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "it ends within its header"),
        (b"RIFF", "it ends within its header"),
        (b"ID3\x04" + bytes(100), "file does not start with RIFF id"),
        (RECORDING.read_bytes()[:20_000], "it is cut off: its header promises 944.* bytes of sound, 19956 are there"),
        (wav(bytes(300), width=3), "its samples have 24 bits; send 8 or 16"),
        (wav(bytes(300), channels=3), "it has 3 channels; send 1 or 2"),
        (wav(bytes(300), rate_hz=96_000), "its rate is 96000 Hz; send 8000 to 48000"),
        (header(form=3), "unknown format: 3"),
    ],
)
def test_invalid_wav_is_reported_with_the_reason(data: bytes, why: str) -> None:
    with pytest.raises(TaskInvalid, match=why) as caught:
        read_pcm(data)
    assert caught.value.param == "file"


def test_streamed_wav_has_the_length_of_its_data() -> None:
    data = header(TONE.tobytes(), claimed=0xFFFFFFFF)
    assert read_pcm(data) == TONE
    assert seconds_of(data) == 0.5


@given(st.data())
def test_arbitrary_bytes_raise_only_task_invalid(data: st.DataObject) -> None:
    broken = bytearray(wav(TONE[:200], channels=2))
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, 60))] = data.draw(st.integers(0, 255))
    cut = bytes(broken[: data.draw(st.integers(0, len(broken)))])
    assert seconds_of(cut) >= 0
    try:
        read_pcm(cut)
    except TaskInvalid:
        return


def test_16_khz_mono_recording_is_unchanged() -> None:
    assert read_pcm(wav(TONE)) == TONE


def test_stereo_channels_are_averaged() -> None:
    both = array("h", (value for sample in TONE for value in (sample, 0)))
    assert read_pcm(wav(both, channels=2)) == array("h", (sample >> 1 for sample in TONE))


def test_eight_bit_samples_are_unsigned() -> None:
    assert list(read_pcm(wav(bytes([0, 128, 255]), width=1))) == [-32768, 0, 127 << 8]


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000])
def test_resampled_tone_keeps_its_length_and_pitch(rate_hz: int) -> None:
    tone = array("h", (int(8000 * math.sin(2 * math.pi * 440 * n / rate_hz)) for n in range(rate_hz)))
    transcribed = resample(tone, rate_hz)
    assert len(transcribed) == pytest.approx(RATE_HZ, abs=2)
    rises = sum(1 for a, b in pairwise(transcribed) if a < 0 <= b)
    assert rises == pytest.approx(440, abs=1)
    assert max(transcribed) == pytest.approx(8000, rel=0.05)


# ── cutting and joining ──────────────────────────────────────────────────────────────────────────


def test_pieces_are_cut_in_silence() -> None:
    speech, silence = array("h", [5000] * (13 * RATE_HZ)), array("h", bytes(RATE_HZ * 2))
    (a, b), (c, d) = split_points(speech + silence + speech)
    assert (a, b) == (0, c)
    assert 13 <= b / RATE_HZ <= 14
    assert d == 27 * RATE_HZ


@given(st.integers(0, 100 * RATE_HZ))
def test_pieces_cover_everything_once_and_have_a_maximum_length(length: int) -> None:
    cuts = list(split_points(Flat(length)))
    assert cuts[0][0] == 0
    assert cuts[-1][1] == length
    assert all(before[1] == after[0] for before, after in pairwise(cuts))
    assert all(end - start <= 20 * RATE_HZ for start, end in cuts)


class Flat(Sequence[int]):
    """`length` equal samples that use no memory."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, at: Any) -> Any:
        return (1,)


def test_words_are_grouped_into_segments_between_pauses() -> None:
    words = [Word("stop", 0.1, 0.4, 0.9), Word("now", 0.5, 0.9, 0.7), Word("go", 1.5, 1.8, 0.8)]
    assert [[word.text for word in said] for said in segments(words)] == [["stop", "now"], ["go"]]
    assert transcript(words, 2.0)["segments"][0] == {"id": 0, "start": 0.1, "end": 0.9, "text": "stop now"}
    assert mean_confidence(words) == pytest.approx(0.8)
    assert mean_confidence([]) is None
