"""How long a piece of work takes at a backend, learned from what it took before.

Theory of operation. For a class k = (kind, model) at backend b, and a size x (bytes, audio seconds, tokens):

    S(x) = (w0 + w1 x) exp(g)

(w0, w1) belong to the class: recursive least squares on the relative error, forgetting 0.99, each residual
clipped to twice the prediction, so that one straggler cannot bend the line. g belongs to the backend and is
shared by its classes: the logarithm of how much slower than usual it is just now (throttling, a busy
cloud). A scalar Kalman filter follows it: between samples g returns to 0 and its variance P grows. A sample
more than three standard deviations off counts as three (one straggler is no news); a second one in a row to the
same side is a change point and opens the gain. The variance v of the log residuals of a class gives
quantiles, S exp(z sqrt(v)).

The first sample of a class replaces the prior: half of it is taken for constant, half for proportional,
each with a standard deviation of its own size, and a few sizes settle the rest. Nothing is extrapolated beyond
twice the largest size seen: a first sample of a small size says little of big ones, and too little is the
better guess, for it gets corrected. And nothing is predicted that is more than FAR times outside what was really
seen: a line through many samples of one size, and a bad first one, can be anything at another size.

Everything is O(1) in plain floats, and nothing a sample can hold (NaN, infinity, zero, negative) is learned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

FORGETTING = 0.99  # of the least squares: about the last 100 samples count
EXTRAPOLATION = 2.0  # of the largest size seen
MIN_NOISE = 0.01  # as a variance of the logarithm: nothing is known to better than 10 %
FAR = 4.0  # times the longest seen, or this part of the shortest
OUTLIER = 3.0  # standard deviations
MAX_SLOWDOWN_LOG = math.log(4.0)  # what drift is for; beyond it, the class has changed
CLIP = 2.0  # a residual beyond this many predictions counts as this many
MIN_S, MAX_S = 1e-5, 86_400.0
Z95 = 1.645  # the normal distribution's 95th percentile
FIRST_LOG_VARIANCE = 0.25
VARIANCE_GAIN = 0.05
HOLD_GAIN, MAX_HOLD = 0.2, 1e4
SMALLEST, LARGEST = 1e-6, 1e12  # sizes beyond are reckoned as these, so that no square leaves what a float holds


class Estimate(NamedTuple):
    """What a piece of work is expected to take; `samples` 0 says that this is a prior and no knowledge.

    optimism: a factor of at most 1 that a decision may put on it, by how much its truth is in doubt.
    hold: how many times as long as that its slot is taken; more than 1 for streams, which answer long before they end.
    """

    mean_s: float
    p95_s: float
    samples: int
    optimism: float = 1.0
    hold: float = 1.0


def is_duration(seconds: float) -> bool:
    """Whether `seconds` can be how long something took."""
    return MIN_S <= seconds <= MAX_S  # false for NaN too


class Drift:
    """How much slower than usual a backend is just now: g = log(slowdown), by a scalar Kalman filter."""

    __slots__ = ("_at", "_factor", "_factor_at", "_outlier", "_p", "_process_per_s", "g")

    REVERSION_S = 120.0
    OPENED = 0.1  # added to P at a change point
    MOST = 3.0  # exp(3) is twenty times slower: beyond that the class is wrong, not the backend

    def __init__(self, process_per_s: float) -> None:
        self._process_per_s = process_per_s
        self.g = 0.0
        self._p = 0.02
        self._outlier = 0.0  # the sign of the last sample, where it was an outlier
        self._at: float | None = None
        self._factor, self._factor_at = 1.0, -math.inf

    def log_slowdown(self, now: float) -> float:
        """g as it stands at `now`."""
        if self._at is None or now <= self._at:
            return self.g
        return self.g * math.exp((self._at - now) / self.REVERSION_S)

    def slowdown(self, now: float) -> float:
        """exp(g): how many times longer than usual it takes. Kept for a tenth of a second, for it is asked often."""
        if not 0.0 <= now - self._factor_at < 0.1:
            self._factor, self._factor_at = math.exp(self.log_slowdown(now)), now
        return self._factor

    def learn(self, log_ratio: float, variance: float, now: float) -> None:
        """One sample: log(taken / expected without drift), and the variance such samples have."""
        idle_s = max(now - self._at, 0.0) if self._at is not None else 0.0
        g = self.log_slowdown(now)
        p = min(self._p + self._process_per_s * idle_s, 1.0)
        off = max(-self.MOST, min(log_ratio, self.MOST)) - g
        most = OUTLIER * math.sqrt(p + variance)
        outlier = math.copysign(1.0, off) if abs(off) > most else 0.0
        if outlier and outlier == self._outlier:
            p += self.OPENED
        elif outlier:
            off = outlier * most
        self._outlier = outlier
        gain = p / (p + variance)
        self.g = g + gain * off
        self._p = p * (1.0 - gain)
        self._at = now if self._at is None else max(now, self._at)
        self._factor_at = -math.inf


class ServiceTime:
    """One class at one backend: a line through its samples, and their spread."""

    __slots__ = (
        "_outlier",
        "at",
        "beyond",
        "hold",
        "holds",
        "least",
        "most",
        "p00",
        "p01",
        "p11",
        "passes",
        "samples",
        "to_p95",
        "unit",
        "variance",
        "w0",
        "w1",
    )

    def __init__(self) -> None:
        self.samples = 0
        self.passes = 0  # decisions that went elsewhere since the last sample
        self.at = 0.0
        self.unit = 1.0  # sizes are divided by the first one seen, so that both weights are of one magnitude
        self.beyond = 0.0  # sizes above this one are reckoned as this one
        self.least, self.most = MIN_S, MAX_S  # seconds that may be predicted
        self.holds = 0
        self.hold = 1.0  # how long the slot is taken, as a multiple of the time to the answer
        self.w0 = self.w1 = 0.0
        self.p00 = self.p01 = self.p11 = 0.0
        self._outlier = 0  # the side the last sample was off, where it was far off
        self.variance = FIRST_LOG_VARIANCE
        self.to_p95 = math.exp(Z95 * math.sqrt(FIRST_LOG_VARIANCE))  # 95th percentile / mean, kept for speed

    def held(self, ratio: float) -> None:
        """Its slot was free again after `ratio` times what the answer took."""
        if 1.0 <= ratio <= MAX_HOLD:
            self.holds += 1
            self.hold += (ratio - self.hold) * max(HOLD_GAIN, 1.0 / self.holds)

    def usual_s(self, x: float) -> float:
        """Seconds for size `x` at a backend that is neither faster nor slower than usual."""
        return min(max(self.w0 + self.w1 * (min(x, self.beyond) / self.unit), self.least), self.most)

    def learn(self, x: float, seconds: float, now: float) -> None:
        """One sample, the backend's drift already taken off."""
        x = min(x, LARGEST)
        if not self.samples:
            self._begin(x, seconds)
            self.least, self.most = seconds / FAR, seconds * FAR
        else:
            self._correct(x / self.unit, seconds)
            self.least, self.most = min(self.least, seconds / FAR), max(self.most, seconds * FAR)
        self.beyond = max(self.beyond, EXTRAPOLATION * x)
        self.samples += 1
        self.passes = 0
        self.at = now

    def _begin(self, x: float, seconds: float) -> None:
        has_size = x >= SMALLEST
        self.unit = x if has_size else 1.0
        half = seconds / 2
        self.w0, self.w1 = (half, half) if has_size else (seconds, 0.0)
        self.p00 = self.p11 = half * half

    def _correct(self, x: float, seconds: float) -> None:
        expected = max(self.w0 + self.w1 * x, MIN_S)
        # Between expected² and seconds²: an estimate far too high must not discount the sample that tells.
        scale = expected * seconds
        self._doubt_line(math.log(seconds / expected), x, scale)
        a0, a1 = self.p00 + self.p01 * x, self.p01 + self.p11 * x  # P phi
        doubt = max(a0 + a1 * x, 0.0)  # the variance of the prediction by what is not known of the line; rounding aside
        noise = min(max(self.variance, MIN_NOISE), 1.0) * scale
        self._spread(math.log(seconds / expected), noise / (noise + doubt))
        error = min(seconds - expected, CLIP * expected)
        k0, k1 = a0 / (FORGETTING * noise + doubt), a1 / (FORGETTING * noise + doubt)
        self.w0 += k0 * error
        self.w1 += k1 * error
        # The variance a direction has when it is never excited must not grow for ever: one prediction at most.
        most = max(expected, seconds) ** 2
        self.p00 = min((self.p00 - k0 * a0) / FORGETTING, most)
        self.p11 = min((self.p11 - k1 * a1) / FORGETTING, most)
        bound = math.sqrt(max(self.p00 * self.p11, 0.0))
        self.p01 = max(-bound, min((self.p01 - k0 * a1) / FORGETTING, bound))
        self._constrain(expected)

    def _doubt_line(self, off: float, x: float, scale: float) -> None:
        """Two samples in a row that no spread and no slowdown explains: the line is wrong, begin it anew."""
        outlier = 0
        if abs(off) > max(OUTLIER * math.sqrt(self.variance), MAX_SLOWDOWN_LOG):
            outlier = 1 if off > 0.0 else -1
        if outlier and outlier == self._outlier:
            self.p00, self.p01, self.p11 = scale, 0.0, scale / max(x * x, 1.0)
        self._outlier = outlier

    def _constrain(self, expected: float) -> None:
        """Neither weight is negative. One that would be is set to 0, and the other to what it is, given that."""
        if self.w1 < 0.0:
            self.w0 -= self.w1 * self.p01 / self.p11 if self.p11 > 0.0 else 0.0
            self.w1 = 0.0
        if self.w0 < 0.0:
            self.w1 = max(self.w1 - self.w0 * self.p01 / self.p00 if self.p00 > 0.0 else self.w1, 0.0)
            self.w0 = 0.0
        if self.w0 + self.w1 <= 0.0:
            self.w0 = expected / CLIP

    def _spread(self, off: float, share: float) -> None:
        """Learn the variance; `share` of this residual is the sample's own, the rest the line's."""
        most = OUTLIER * OUTLIER * max(self.variance, MIN_NOISE)  # stragglers are no spread
        self.variance += max(VARIANCE_GAIN, 1.0 / (self.samples + 4)) * (min(off * off * share, most) - self.variance)
        self.to_p95 = math.exp(Z95 * math.sqrt(self.variance))

    def log_variance(self, x: float) -> float:
        """Of the logarithm of a sample of size `x` over what is predicted: its own, and the line's."""
        x = min(x, self.beyond) / self.unit
        expected = max(self.w0 + self.w1 * x, MIN_S)
        doubt = max(self.p00 + 2 * self.p01 * x + self.p11 * x * x, 0.0)
        return self.variance + doubt / (expected * expected)

    def save(self) -> dict[str, Any]:
        """What is worth keeping over a restart; instants are not."""
        names = (
            "samples",
            "unit",
            "beyond",
            "w0",
            "w1",
            "p00",
            "p01",
            "p11",
            "variance",
            "hold",
            "holds",
            "least",
            "most",
        )
        return {name: getattr(self, name) for name in names}

    @classmethod
    def restored(cls, saved: Mapping[str, Any], now: float) -> ServiceTime:
        """What `save` gave. Raises ValueError, KeyError or TypeError where it is damaged."""
        self = cls()
        self.samples = int(saved["samples"])
        self.holds = int(saved.get("holds", 0))
        self.hold = min(max(_finite(saved.get("hold", 1.0)), 1.0), MAX_HOLD)
        self.least = max(_finite(saved.get("least", MIN_S)), 0.0)
        self.most = max(_finite(saved.get("most", MAX_S)), self.least)
        self.at = now
        for name in ("unit", "beyond", "w0", "w1", "p00", "p01", "p11", "variance"):
            setattr(self, name, _finite(saved[name]))
        if self.samples < 1 or self.unit <= 0 or self.w0 < 0 or self.w1 < 0 or self.w0 + self.w1 <= 0:
            raise ValueError("no service time")
        self.variance = min(max(self.variance, 0.0), 9.0)
        self.to_p95 = math.exp(Z95 * math.sqrt(self.variance))
        return self


def _finite(value: Any) -> float:
    number = float(value)
    if not abs(number) < 1e12:  # NaN, too
        raise ValueError("not a number this could have come to")
    return number
