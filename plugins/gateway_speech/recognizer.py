"""Recognize words with pocketsphinx, and make a transcript from words.

A long recording is decoded in pieces of 10 to 20 s, each cut in the quietest 0.3 s: the decoder gets slower and needs
more memory with the length of an utterance. Longer pauses separate segments.

The confidence is the mean posterior of the words; the posterior of the whole utterance falls with its length.

The posteriors of a grammar compare only the sentences of the grammar, and are near 1 for any sound. With a background
model (any sequence of phones), they are multiplied by the odds that the grammar explains the sound as well.
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
# four voices (bench/hybrid_world/utterances.py) 0.0014 and more for sentences of the grammar, 0.0011 and less
# for other sentences, with one exception.
_COVERED, _COVERED_SPREAD = 0.00125, 0.0001
_WORD = re.compile(r"[^<\[(+]")  # not <sil>, [NOISE], ++NOISE++
_VARIANT = re.compile(r"\(\d+\)$")  # `the(2)`: another pronunciation


@dataclass(frozen=True, slots=True)
class Word:
    """A word, its start and end (seconds), and its probability."""

    text: str
    start: float
    end: float
    probability: float


class Recognizer:
    """A loaded decoder. Raises BackendUnavailable if pocketsphinx is missing or the grammar is not valid JSGF."""

    def __init__(self, grammar: Path | None, *, background: bool = False) -> None:
        try:
            from pocketsphinx import Config, Decoder, Vad, get_model_path
        except ImportError as exc:
            raise BackendUnavailable(
                "pocketsphinx is not installed. A checkout installs it with ./run; a wheel with "
                "`pip install 'edge_gateway-VERSION-py3-none-any.whl[speech]'`; the .deb does not contain it"
            ) from exc
        self._decoder: Any = Decoder(Config(loglevel="ERROR"))
        self._vad: Any = Vad(Vad.LOOSE, RATE_HZ)
        self._has_background = background and grammar is not None
        if self._has_background:
            self._decoder.add_allphone_file("background", get_model_path("en-us/en-us-phone.lm.bin"))
        if grammar is not None:
            self._load_grammar(grammar)

    def _load_grammar(self, grammar: Path) -> None:
        try:
            self._decoder.add_jsgf_string("grammar", grammar.read_text())
        except (OSError, ValueError) as exc:
            raise BackendUnavailable(f"GRAMMAR: {grammar} is not a JSGF grammar: {exc}") from exc
        self._decoder.activate_search("grammar")

    def words(self, samples: array[int]) -> Iterator[Word]:
        """Yield the words in 16 kHz mono samples, in order."""
        for start, end in split_points(samples):
            yield from self._decode(samples[start:end], start / RATE_HZ)

    def _decode(self, samples: array[int], offset_s: float) -> Iterator[Word]:
        sound = samples.tobytes()
        if not self._has_speech(sound):
            return
        self._decode_all(sound)
        entries = [each for each in self._decoder.seg() or () if _WORD.match(each.word)]
        recognized = [(each.word, each.start_frame, each.end_frame, float(each.prob)) for each in entries]
        odds = self._grammar_odds(sound) if self._has_background and recognized else 1.0
        for word, first, last, probability in recognized:
            start_s, end_s = first / 100, (last + 1) / 100
            text = _VARIANT.sub("", word)
            yield Word(text, offset_s + start_s, offset_s + end_s, min(probability, 1.0) * odds)

    def _decode_all(self, sound: bytes) -> None:
        decoder = self._decoder
        decoder.reinit_feat()  # earlier sound must not change the result
        decoder.start_utt()
        decoder.process_raw(sound, full_utt=True)
        decoder.end_utt()

    def _grammar_odds(self, sound: bytes) -> float:
        """Return the odds that the grammar covers the sound just decoded, 0 to 1."""
        by_grammar = self._likelihood()
        self._decoder.activate_search("background")
        try:
            self._decode_all(sound)
            by_phones = self._likelihood()
        finally:
            self._decoder.activate_search("grammar")
        ratio = (by_grammar - by_phones) / max(len(sound) / 2 / _FRAME, 1)
        return 1 / (1 + math.exp(max(-50.0, min((_COVERED - ratio) / _COVERED_SPREAD, 50.0))))

    def _likelihood(self) -> float:
        """Return the log-likelihood of the last search."""
        found = self._decoder.hyp()
        return math.log(found.score) if found and found.score > 0 else -1.0

    def _has_speech(self, sound: bytes) -> bool:
        """Whether the sound contains speech; the decoder finds words in silence too."""
        frame: int = self._vad.frame_bytes
        return any(self._vad.is_speech(sound[at : at + frame]) for at in range(0, len(sound) - frame + 1, frame))


def split_points(samples: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of consecutive pieces, in samples."""
    start = 0
    while len(samples) - start > MAX_PIECE_S * RATE_HZ:
        end = _quietest(samples, start + MIN_PIECE_S * RATE_HZ, start + MAX_PIECE_S * RATE_HZ)
        yield start, end
        start = end
    yield start, len(samples)


def _quietest(samples: Sequence[int], start: int, end: int) -> int:
    """Return the middle of the quietest 0.3 s between two samples."""
    loudness = [sum(map(abs, samples[at : at + _FRAME])) for at in range(start, end - _FRAME + 1, _FRAME)]
    windows = [sum(loudness[i : i + _QUIET_FRAMES]) for i in range(len(loudness) - _QUIET_FRAMES + 1)]
    return start + (windows.index(min(windows)) + _QUIET_FRAMES // 2) * _FRAME


def transcript(words: Sequence[Word], seconds: float) -> dict[str, Any]:
    """Return the transcript as `verbose_json`; the gateway renders the format that the client requested."""
    return {
        "text": " ".join(word.text for word in words),
        "language": "en",
        "duration": round(seconds, 3),
        "segments": [
            {
                "id": n,
                "start": _s(entries[0].start),
                "end": _s(entries[-1].end),
                "text": " ".join(w.text for w in entries),
            }
            for n, entries in enumerate(segments(words))
        ],
        "words": [{"word": word.text, "start": _s(word.start), "end": _s(word.end)} for word in words],
    }


def segments(words: Sequence[Word]) -> list[list[Word]]:
    """Divide the words at pauses."""
    out: list[list[Word]] = []
    for word in words:
        if out and word.start - out[-1][-1].end < PAUSE_S:
            out[-1].append(word)
        else:
            out.append([word])
    return out


def mean_confidence(words: Sequence[Word]) -> float | None:
    """Return the mean probability of the words, 0 to 1; None without words."""
    return sum(word.probability for word in words) / len(words) if words else None


def _s(seconds: float) -> float:
    return round(seconds, 2)
