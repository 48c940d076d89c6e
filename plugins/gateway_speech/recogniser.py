"""Speech to words with pocketsphinx, and words to a transcript.

A long recording is decoded in pieces of 10 to 20 s, each cut where 0.3 s are quietest; the decoder's search gets
slower and its memory larger with the length of an utterance. Segments are what lies between longer pauses.

How sure it is: the mean posterior of the words. The one of the whole utterance falls with its length.

A grammar's posteriors only compare its own sentences, and are near 1 for anything at all. With a background model,
which is any sequence of phones, they are multiplied by the odds that the grammar explains the sound as well as that.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.plugin import BackendUnavailable
from gateway_speech.wav import RATE_HZ

MIN_PIECE_S, MAX_PIECE_S = 10, 20
PAUSE_S = 0.5  # ends a segment
_FRAME = RATE_HZ // 100  # the decoder's own: 10 ms
_QUIET_FRAMES = 30
# Log-likelihood per frame of the grammar over that of free phones, as pocketsphinx 5.1 scales it: over 64 utterances by
# four voices (bench/hybrid_world/utterances.py) 0.0014 and more where the grammar had the sentence, 0.0011 and less
# where it had not, with one exception.
_COVERED, _COVERED_SPREAD = 0.00125, 0.0001
_SPOKEN = re.compile(r"[^<\[(+]")  # not <sil>, [NOISE], ++NOISE++
_VARIANT = re.compile(r"\(\d+\)$")  # `the(2)`: another pronunciation


@dataclass(frozen=True, slots=True)
class Word:
    """A word, when it was said (seconds), and the probability that it was."""

    text: str
    start: float
    end: float
    probability: float


class Recogniser:
    """A loaded decoder. Raises BackendUnavailable where pocketsphinx is missing or the grammar is none."""

    def __init__(self, grammar: Path | None, *, background: bool = False) -> None:
        try:
            from pocketsphinx import Config, Decoder, Vad, get_model_path
        except ImportError as exc:
            raise BackendUnavailable("pocketsphinx is not installed; pip install edge-gateway[speech]") from exc
        self._decoder: Any = Decoder(Config(loglevel="ERROR"))
        self._vad: Any = Vad(Vad.LOOSE, RATE_HZ)
        self._has_background = background and grammar is not None
        if self._has_background:
            self._decoder.add_allphone_file("background", get_model_path("en-us/en-us-phone.lm.bin"))
        if grammar is not None:
            self._obey(grammar)

    def _obey(self, grammar: Path) -> None:
        try:
            self._decoder.add_jsgf_string("grammar", grammar.read_text())
        except (OSError, ValueError) as exc:
            raise BackendUnavailable(f"GRAMMAR: {grammar} is not a grammar in JSGF: {exc}") from exc
        self._decoder.activate_search("grammar")

    def words(self, samples: array[int]) -> Iterator[Word]:
        """The words in 16 kHz mono samples, in the order they were said."""
        for start, end in pieces(samples):
            yield from self._decode(samples[start:end], start / RATE_HZ)

    def _decode(self, samples: array[int], offset_s: float) -> Iterator[Word]:
        sound = samples.tobytes()
        if not self._has_speech(sound):
            return
        self._listen(sound)
        said = [each for each in self._decoder.seg() or () if _SPOKEN.match(each.word)]
        heard = [(each.word, each.start_frame, each.end_frame, float(each.prob)) for each in said]
        covered = self._covered(sound) if self._has_background and heard else 1.0
        for word, first, last, probability in heard:
            start_s, end_s = first / 100, (last + 1) / 100
            text = _VARIANT.sub("", word)
            yield Word(text, offset_s + start_s, offset_s + end_s, min(probability, 1.0) * covered)

    def _listen(self, sound: bytes) -> None:
        decoder = self._decoder
        decoder.reinit_feat()  # what it heard before must not change what it hears now
        decoder.start_utt()
        decoder.process_raw(sound, full_utt=True)
        decoder.end_utt()

    def _covered(self, sound: bytes) -> float:
        """The odds that the grammar has what was said in what was just decoded."""
        by_grammar = self._likelihood()
        self._decoder.activate_search("background")
        try:
            self._listen(sound)
            by_phones = self._likelihood()
        finally:
            self._decoder.activate_search("grammar")
        ratio = (by_grammar - by_phones) / max(len(sound) / 2 / _FRAME, 1)
        return 1 / (1 + math.exp(max(-50.0, min((_COVERED - ratio) / _COVERED_SPREAD, 50.0))))

    def _likelihood(self) -> float:
        """The logarithm of how well the last search explains what it heard."""
        found = self._decoder.hyp()
        return math.log(found.score) if found and found.score > 0 else -1.0

    def _has_speech(self, sound: bytes) -> bool:
        """Whether there is anything to hear; the decoder hears words even in perfect silence."""
        frame: int = self._vad.frame_bytes
        return any(self._vad.is_speech(sound[at : at + frame]) for at in range(0, len(sound) - frame + 1, frame))


def pieces(samples: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where to cut: (start, end) of pieces that together are all of it."""
    start = 0
    while len(samples) - start > MAX_PIECE_S * RATE_HZ:
        end = _quietest(samples, start + MIN_PIECE_S * RATE_HZ, start + MAX_PIECE_S * RATE_HZ)
        yield start, end
        start = end
    yield start, len(samples)


def _quietest(samples: Sequence[int], start: int, end: int) -> int:
    """The middle of the quietest 0.3 s between two samples."""
    loudness = [sum(map(abs, samples[at : at + _FRAME])) for at in range(start, end - _FRAME + 1, _FRAME)]
    windows = [sum(loudness[i : i + _QUIET_FRAMES]) for i in range(len(loudness) - _QUIET_FRAMES + 1)]
    return start + (windows.index(min(windows)) + _QUIET_FRAMES // 2) * _FRAME


def transcript(words: Sequence[Word], seconds: float) -> dict[str, Any]:
    """What was said, as the door renders it in the format the client asked for."""
    return {
        "text": " ".join(word.text for word in words),
        "language": "en",
        "duration": round(seconds, 3),
        "segments": [
            {"id": n, "start": _s(said[0].start), "end": _s(said[-1].end), "text": " ".join(w.text for w in said)}
            for n, said in enumerate(segments(words))
        ],
        "words": [{"word": word.text, "start": _s(word.start), "end": _s(word.end)} for word in words],
    }


def segments(words: Sequence[Word]) -> list[list[Word]]:
    """The words, divided at pauses."""
    out: list[list[Word]] = []
    for word in words:
        if out and word.start - out[-1][-1].end < PAUSE_S:
            out[-1].append(word)
        else:
            out.append([word])
    return out


def confidence(words: Sequence[Word]) -> float | None:
    """How sure it is of the words, 0 to 1; None where it heard none."""
    return sum(word.probability for word in words) / len(words) if words else None


def _s(seconds: float) -> float:
    return round(seconds, 2)
