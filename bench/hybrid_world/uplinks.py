"""Uplinks as functions of time: bytes handed over, and when they are sent.

Recorded ones are mahimahi traces (each line is the millisecond at which 1500 bytes may be sent; the file repeats);
synthetic ones are seeded. Both are kept as bytes per 100 ms.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

STEP_S = 0.1
PACKET_BYTES = 1500
MBIT = 1e6 / 8


class Uplink:
    """A repeating rate per 100 ms. `rtt_s`: round trip without queueing."""

    def __init__(self, name: str, rates: Sequence[float], rtt_s: float) -> None:
        self.name, self.rates, self.rtt_s = name, rates, rtt_s
        self._sent = list(accumulate((rate * STEP_S for rate in rates), initial=0.0))
        self.period_s = len(rates) * STEP_S

    def sent_by(self, at_s: float) -> float:
        """Return the bytes the link can carry since 0."""
        rounds, rest_s = divmod(at_s, self.period_s)
        step = min(int(rest_s / STEP_S), len(self.rates) - 1)
        return rounds * self._sent[-1] + self._sent[step] + (rest_s - step * STEP_S) * self.rates[step]

    def finish_s(self, start_s: float, nbytes: float) -> float:
        """Return the instant at which bytes are sent on an idle link from `start_s`."""
        rounds, goal = divmod(self.sent_by(start_s) + nbytes, self._sent[-1])
        step = max(bisect_left(self._sent, goal) - 1, 0)
        rate = self.rates[step]
        within_s = (goal - self._sent[step]) / rate if rate else 0.0
        return max(start_s, rounds * self.period_s + step * STEP_S + within_s)

    def mean(self, start_s: float, end_s: float) -> float:
        """Return the bytes per second between two instants."""
        return (self.sent_by(end_s) - self.sent_by(start_s)) / (end_s - start_s)


def recorded(path: Path, rtt_s: float = 0.06) -> Uplink:
    """Load a mahimahi trace."""
    instants = [int(line) for line in path.read_text().split()]
    rates = [0.0] * (instants[-1] // 100 + 1)
    for ms in instants:
        rates[ms // 100] += PACKET_BYTES / STEP_S
    return Uplink(path.stem + path.suffix, rates, rtt_s)


def steady(mbit: float = 8.0) -> Uplink:
    """A constant rate."""
    return Uplink("steady", [mbit * MBIT] * 600, 0.03)


def fading(seed: int) -> Uplink:
    """A logarithmic Ornstein-Uhlenbeck rate, with fades below a tenth.

    It models a drive in a city.
    """
    rng, log_rate, rates = random.Random(seed), 0.0, []
    for _ in range(6000):
        log_rate += -0.02 * log_rate + 0.25 * rng.gauss(0, 1)
        rates.append(6 * MBIT * math.exp(min(log_rate, 1.5)))
    return Uplink("fading", rates, 0.05)


def broken(seed: int) -> Uplink:
    """A link that is up for about ten seconds, then down for one to four, repeatedly."""
    rng, rates = random.Random(seed), []
    while len(rates) < 6000:
        rates += [8 * MBIT] * round(rng.expovariate(1 / 8) * 10 + 5)
        rates += [0.0] * rng.randint(10, 40)
    return Uplink("outages", rates, 0.05)


def synthetic() -> list[Uplink]:
    """Return one uplink of each kind."""
    return [steady(), fading(7), broken(11)]


def trace_of(uplink: Uplink, start_s: float, seconds: float) -> str:
    """Return a section as a mahimahi trace for link emulation.

    It ends with a send opportunity, as the format requires.
    """
    lines, carried = [], 0.0
    for ms in range(1, int(seconds * 1000) + 1):
        carried += uplink.sent_by(start_s + ms / 1000) - uplink.sent_by(start_s + (ms - 1) / 1000)
        while carried >= PACKET_BYTES:
            lines.append(ms)
            carried -= PACKET_BYTES
    return "\n".join(map(str, [*lines, int(seconds * 1000)])) + "\n"
