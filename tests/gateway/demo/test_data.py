from __future__ import annotations

import wave
from pathlib import Path

import pytest

import gateway.demo

WAV = Path(gateway.demo.__file__).parent / "data" / "conveyor.wav"
WORDS = "turn on the conveyor belt and stop the machine"


def samples() -> bytes:
    with wave.open(str(WAV)) as recording:
        assert (recording.getframerate(), recording.getnchannels(), recording.getsampwidth()) == (16000, 1, 2)
        return recording.readframes(recording.getnframes())


def test_recording_is_a_small_16_khz_mono_file() -> None:
    assert len(samples()) < WAV.stat().st_size < 110_000


def test_speech_recogniser_transcribes_the_recording_exactly() -> None:
    decoder = pytest.importorskip("pocketsphinx", reason="pocketsphinx, extra `speech`").Decoder(loglevel="FATAL")
    decoder.start_utt()
    decoder.process_raw(samples(), full_utt=True)
    decoder.end_utt()
    assert decoder.hyp().hypstr == WORDS


def test_readme_documents_how_the_recording_was_made() -> None:
    assert f'"{WORDS}" {WAV.name}' in (WAV.parent / "README.md").read_text()
