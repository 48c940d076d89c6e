"""Labelled speech: commands inside the edge's grammar, and sentences outside it.

    python bench/hybrid_world/utterances.py      recreates speech/*.wav with flite 2.2

The repository has fourteen recordings, `VOICE-words_of_it.wav`, of 8 bit and 16 kHz to keep them small. If flite is
installed, the benchmark creates all sentences by all voices: two voices to choose the threshold, two to validate it.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "speech"
GRAMMAR = FOLDER / "commands.gram"
CHOOSING, HELD_OUT = ("kal16", "rms"), ("slt", "awb")
COMMANDS = (
    "turn on the conveyor belt", "stop the machine", "turn off the light", "start the pump",
    "turn on the fan", "stop the conveyor belt", "start the machine", "turn off the pump",
)  # fmt: skip
SENTENCES = (
    "people like to listen to music", "the weather will be fine tomorrow", "she was looking for a new job",
    "what time is the meeting", "there is water on the floor", "we should call the doctor now",
    "he went home after the game", "the children are at school today",
)  # fmt: skip
KEPT = [("rms", text) for text in COMMANDS[:3]] + [("slt", text) for text in COMMANDS[3:6]] + \
       [("kal16", text) for text in COMMANDS[6:]] + [("slt", SENTENCES[3]), ("rms", SENTENCES[4]),
       ("kal16", SENTENCES[5]), ("awb", SENTENCES[6]), ("kal16", SENTENCES[0]), ("slt", SENTENCES[1])]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Utterance:
    """A recording and its text."""

    voice: str
    text: str
    data: bytes

    @property
    def is_held_out(self) -> bool:
        return self.voice in HELD_OUT


def kept() -> list[Utterance]:
    """Return the recordings in the repository."""
    out = []
    for path in sorted(FOLDER.glob("*.wav")):
        voice, _, words = path.stem.partition("-")
        out.append(Utterance(voice, words.replace("_", " "), path.read_bytes()))
    return out


def spoken() -> list[Utterance]:
    """Return every sentence by every voice if flite is installed.

    Otherwise return the recordings in the repository.
    """
    if shutil.which("flite") is None:
        return kept()
    return [Utterance(voice, text, _say(voice, text)) for voice, text in _all()]


def _all() -> Iterator[tuple[str, str]]:
    for voice in (*CHOOSING, *HELD_OUT):
        for text in (*COMMANDS, *SENTENCES):
            yield voice, text


def _say(voice: str, text: str) -> bytes:
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        subprocess.run(["flite", "-voice", voice, "-t", text, "-o", file.name], check=True)
        return Path(file.name).read_bytes()


def _in_8_bits(data: bytes) -> bytes:
    """Convert the sound to 8 bit, half the size."""
    with wave.open(io.BytesIO(data)) as file:
        rate_hz, frames = file.getframerate(), file.readframes(file.getnframes())
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(rate_hz)
        file.writeframes(bytes((high + 128) & 255 for high in frames[1::2]))
    return out.getvalue()


def errors(said: str, heard: str) -> int:
    """Return the word errors (Levenshtein distance)."""
    left, right = said.split(), heard.split()
    row = list(range(len(right) + 1))
    for i, word in enumerate(left, 1):
        new = [i]
        for j, other in enumerate(right, 1):
            new.append(min(row[j] + 1, new[-1] + 1, row[j - 1] + (word != other)))
        row = new
    return row[-1]


if __name__ == "__main__":
    for voice, text in KEPT:
        (FOLDER / f"{voice}-{text.replace(' ', '_')}.wav").write_bytes(_in_8_bits(_say(voice, text)))
    print(sum(path.stat().st_size for path in FOLDER.glob("*.wav")), "bytes")
