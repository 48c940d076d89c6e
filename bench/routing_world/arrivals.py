"""Seeded arrivals: bursty vision, LLM requests of an assistant, speech clips.

LLM sizes and gaps come from a recorded trace if one is available (Azure, TIMESTAMP,ContextTokens,GeneratedTokens),
thinned to 15 %; otherwise from lognormals fitted to it, in clusters with the same coefficient of variation. Arrivals
are open-loop: clients do not wait for answers. `load` scales every rate.
"""

from __future__ import annotations

import csv
import math
import random
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

DEADLINE_S = {"vision": 1.0, "chat": 5.0, "speech": 5.0}
LLM_SHARE = 0.15


@dataclass(frozen=True, slots=True)
class Request:
    """One request, with the true figures that only the world and the oracles know."""

    id: int
    at: float
    kind: str
    size: float  # the feature a gateway can see: bytes, prompt tokens, audio seconds
    body_bytes: int
    tokens: int  # completion tokens, 1 for other kinds
    edge_s: float  # at the unthrottled edge
    cloud_s: float  # stragglers included

    @property
    def deadline_s(self) -> float:
        return DEADLINE_S[self.kind]


def arrivals(seed: int, duration_s: float, load: float, trace: Path | None) -> list[Request]:
    """Return all arrivals of one run, in order."""
    rng = random.Random(f"arrivals/{seed}/{load}")
    raw = [("vision", t, 0, 0) for t in _bursts(rng, duration_s, load)]
    raw += [("chat", t, prompt, tokens) for t, prompt, tokens in _llm(rng, duration_s, load, trace)]
    raw += [("speech", t, 0, 0) for t in _poisson(rng, 0.35 * load, duration_s)]
    raw.sort(key=lambda entry: entry[1])
    return [_request(rng, i, *entry) for i, entry in enumerate(raw)]


def _poisson(rng: random.Random, rate: float, duration_s: float) -> list[float]:
    times, t = [], rng.expovariate(rate)
    while t < duration_s:
        times.append(t)
        t += rng.expovariate(rate)
    return times


def _bursts(rng: random.Random, duration_s: float, load: float) -> list[float]:
    """A camera behind a motion detector.

    It sends 4 frames/s during motion (10 s), 0.3/s otherwise (20 s).
    """
    times: list[float] = []
    t, busy = 0.0, False
    while t < duration_s:
        length = rng.expovariate(1 / (10.0 if busy else 20.0))
        stretch = _poisson(rng, (4.0 if busy else 0.3) * load, length)
        times += [t + x for x in stretch if t + x < duration_s]
        t, busy = t + length, not busy
    return times


def _llm(rng: random.Random, duration_s: float, load: float, trace: Path | None) -> list[tuple[float, int, int]]:
    return _recorded_llm(rng, duration_s, load, trace) if trace else _made_up_llm(rng, duration_s, load)


def _recorded_llm(rng: random.Random, duration_s: float, load: float, trace: Path) -> list[tuple[float, int, int]]:
    with trace.open() as file:
        rows = [
            (_instant(r["TIMESTAMP"]), int(r["ContextTokens"]), int(r["GeneratedTokens"])) for r in csv.DictReader(file)
        ]
    begin, length = rows[0][0], rows[-1][0] - rows[0][0]
    first = rng.uniform(0.0, length)
    found = []
    for at, prompt, tokens in rows:
        t = (at - begin - first) % length
        if t < duration_s and rng.random() < LLM_SHARE * load:
            found.append((t, prompt, tokens))
    return found


def _instant(text: str) -> float:
    return datetime.fromisoformat(text[:26]).timestamp()


def _made_up_llm(rng: random.Random, duration_s: float, load: float) -> list[tuple[float, int, int]]:
    found = []
    for t in _poisson(rng, 0.13 * load, duration_s):
        for _ in range(1 + int(rng.expovariate(1 / 1.6))):  # clusters of about three
            prompt = min(max(int(rng.lognormvariate(math.log(1450), 1.0)), 16), 7500)
            tokens = min(max(int(rng.lognormvariate(math.log(14), 1.0)), 1), 900)
            found.append((t + rng.expovariate(1.0), prompt, tokens))
    return [entry for entry in found if entry[0] < duration_s]


def _request(rng: random.Random, number: int, kind: str, at: float, prompt: int, tokens: int) -> Request:
    noise = rng.lognormvariate(0.0, 0.05)
    if kind == "vision":
        size = body = rng.lognormvariate(math.log(160e3), 0.35)
        edge, cloud = 0.1 + 0.2 * size / 160e3, 0.04 + 0.02 * size / 160e3
    elif kind == "chat":
        size, body = float(prompt), prompt * 4.0 + 300
        edge, cloud = 0.1 + prompt / 2000 + tokens / 20, 0.1 + prompt / 9000 + tokens / 50
    else:
        size = rng.uniform(4.0, 22.0)
        body = size * 4e3  # Opus at 32 kbit/s
        edge, cloud = 0.1 + 0.12 * size, 0.15 + 0.03 * size
    cloud *= rng.lognormvariate(0.0, 0.2)
    if rng.random() < 0.01:
        cloud += 1.5 + rng.expovariate(1.0)
    return Request(number, at, kind, size, int(body), max(tokens, 1), edge * noise, cloud)
