"""Uplinks as cumulative curves of the bytes sent by an instant.

Recorded links come from mahimahi traces (one line per 1500-byte packet, the millisecond it may leave; the file
loops). Synthetic ones are seeded: the logarithm of the rate is an Ornstein-Uhlenbeck process, combined with fades,
outages and changes of network. Every link covers the whole run in steps of 20 ms.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

STEP_S = 0.02
PACKET_BYTES = 1500
MBIT = 1e6 / 8


@dataclass
class Link:
    """One link over one run.

    `carrier`: instants at which the kernel reports the network lost or back.
    """

    name: str
    rates: list[float]  # bytes per second, one per step
    rtts: list[float]  # seconds, one per second
    carrier: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._total = list(accumulate((rate * STEP_S for rate in self.rates), initial=0.0))
        self._end_s = len(self.rates) * STEP_S
        self._after = max(self._total[-1] / self._end_s, 1e4)  # past the end the link runs at its mean

    def sent_by(self, t: float) -> float:
        """Return the bytes the link can carry from 0 to `t`."""
        if t >= self._end_s:
            return self._total[-1] + (t - self._end_s) * self._after
        step = int(t / STEP_S)
        return self._total[step] + (t - step * STEP_S) * self.rates[step]

    def finish(self, start: float, nbytes: float) -> float:
        """Return the instant at which `nbytes` handed over at `start` are sent."""
        goal = self.sent_by(start) + nbytes
        if goal > self._total[-1]:
            return max(start, self._end_s) + (goal - max(self._total[-1], self.sent_by(start))) / self._after
        step = bisect_left(self._total, goal) - 1
        if step < 0:
            return start
        rate = self.rates[step]
        within = (goal - self._total[step]) / rate if rate else 0.0
        return max(start, step * STEP_S + within)

    def rtt_s(self, t: float) -> float:
        """Return the round trip of a small packet at `t`, without queueing."""
        return self.rtts[min(int(t), len(self.rtts) - 1)]


def recorded(path: Path, seed: int, duration_s: float, rtt_s: float) -> Link:
    """Load a mahimahi trace, starting at an offset chosen by the seed."""
    stamps = [int(line) for line in path.read_text().split()]
    period = stamps[-1] / 1e3
    steps = max(int(period / STEP_S), 1)
    counts = [0] * steps
    for stamp in stamps:
        counts[min(int(stamp / 1e3 / STEP_S), steps - 1)] += 1
    rng = random.Random(f"{path.name}/{seed}")
    first = rng.randrange(steps)
    rates = [counts[(first + i) % steps] * PACKET_BYTES / STEP_S for i in range(int(duration_s / STEP_S))]
    return Link(path.stem, rates, _jittered(rng, lambda t: rtt_s, duration_s))


def _jittered(rng: random.Random, base: Callable[[float], float], duration_s: float) -> list[float]:
    return [base(float(t)) * (1.0 + 0.3 * rng.random() ** 3) for t in range(int(duration_s) + 1)]


def _wander(rng: random.Random, mbit: float, sigma: float, tau_s: float, duration_s: float) -> Iterator[float]:
    keep = math.exp(-STEP_S / tau_s)
    kick = sigma * math.sqrt(1.0 - keep * keep)
    state = rng.gauss(0.0, sigma)
    for _ in range(int(duration_s / STEP_S)):
        yield mbit * MBIT * math.exp(state - sigma * sigma / 2)
        state = state * keep + rng.gauss(0.0, kick)


def _silence(rates: list[float], start_s: float, length_s: float, to: float = 0.0) -> None:
    for step in range(int(start_s / STEP_S), min(int((start_s + length_s) / STEP_S), len(rates))):
        rates[step] *= to


def _fades(rng: random.Random, rates: list[float], every_s: float, mean_s: float) -> None:
    t = rng.expovariate(1 / every_s)
    while t < len(rates) * STEP_S:
        length = rng.expovariate(1 / mean_s)
        _silence(rates, t, length, 0.02)
        t += length + rng.expovariate(1 / every_s)


def wifi(seed: int, duration_s: float) -> Link:
    rng = random.Random(f"wifi/{seed}")
    rates = list(_wander(rng, 25.0, 0.3, 2.0, duration_s))
    return Link("wifi", rates, _jittered(rng, lambda t: 0.025, duration_s))


def lte(seed: int, duration_s: float) -> Link:
    rng = random.Random(f"lte/{seed}")
    rates = list(_wander(rng, 5.0, 0.7, 4.0, duration_s))
    _fades(rng, rates, 40.0, 1.0)
    return Link("lte", rates, _jittered(rng, lambda t: 0.06, duration_s))


def umts(seed: int, duration_s: float) -> Link:
    rng = random.Random(f"3g/{seed}")
    rates = list(_wander(rng, 1.0, 0.6, 5.0, duration_s))
    _fades(rng, rates, 30.0, 1.5)
    return Link("3g", rates, _jittered(rng, lambda t: 0.12, duration_s))


def outage(seed: int, duration_s: float) -> Link:
    """LTE with three outages of ten seconds to a minute."""
    rng = random.Random(f"outage/{seed}")
    rates = list(_wander(rng, 5.0, 0.6, 4.0, duration_s))
    for part in range(3):
        _silence(rates, duration_s * (part + 0.2 + 0.4 * rng.random()) / 3, rng.uniform(10.0, 60.0))
    return Link("outage", rates, _jittered(rng, lambda t: 0.06, duration_s))


def handover(seed: int, duration_s: float) -> Link:
    """Wi-Fi, LTE, no network for a tenth of the time, UMTS, Wi-Fi.

    The kernel reports each change.
    """
    rng = random.Random(f"handover/{seed}")
    cuts = [duration_s * part for part in (0.25, 0.45, 0.55, 0.8)]
    parts = [
        _wander(rng, mbit, sigma, 3.0, duration_s) for mbit, sigma in ((30, 0.3), (5, 0.6), (0, 0), (1, 0.5), (30, 0.3))
    ]
    rtts = (0.025, 0.06, 0.06, 0.12, 0.025)

    def network(t: float) -> int:
        return sum(t >= cut for cut in cuts)

    rates = [rates_now[network(i * STEP_S)] for i, rates_now in enumerate(zip(*parts, strict=True))]
    carrier = [
        (cuts[0], "lost"), (cuts[0] + 0.3, "back"), (cuts[1], "lost"), (cuts[2], "back"), (cuts[3], "lost"),
        (cuts[3] + 0.3, "back"),
    ]  # fmt: skip
    return Link("handover", rates, _jittered(rng, lambda t: rtts[network(t)], duration_s), carrier)


SYNTHETIC: dict[str, Callable[[int, float], Link]] = {
    "wifi": wifi,
    "lte": lte,
    "3g": umts,
    "outage": outage,
    "handover": handover,
}


def rtt_of(name: str) -> float:
    """Return a plausible round trip for a recorded network by its name.

    Recordings contain none.
    """
    return 0.12 if "umts" in name.lower() or "3g" in name.lower() else 0.06
