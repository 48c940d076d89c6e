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


def test_the_recording_is_small_and_plain() -> None:
    assert len(samples()) < WAV.stat().st_size < 110_000


def test_a_real_recogniser_hears_exactly_what_was_said() -> None:
    decoder = pytest.importorskip("pocketsphinx", reason="pocketsphinx, extra `speech`").Decoder(loglevel="FATAL")
    decoder.start_utt()
    decoder.process_raw(samples(), full_utt=True)
    decoder.end_utt()
    assert decoder.hyp().hypstr == WORDS


def test_how_it_was_made_is_written_down() -> None:
    assert f'"{WORDS}" {WAV.name}' in (WAV.parent / "README.md").read_text()
