"""Predicts how long a piece of work takes at a backend, learned from earlier samples.

Theory of operation. For a class k = (kind, model) at backend b, and a size x (bytes, audio seconds, tokens):

    S(x) = (w0 + w1 x) exp(g)

(w0, w1) belong to the class: recursive least squares on the relative error, forgetting 0.99. Each residual is
clipped to twice the prediction, so that one straggler cannot bend the line. g belongs to the backend and is
shared by its classes: the logarithm of how much slower than usual the backend is at present (throttling, a busy
cloud). A scalar Kalman filter follows it: between samples g returns to 0 and its variance P grows. A sample
more than three standard deviations off counts as three, because one straggler carries little information. A second
such sample in a row on the same side is a change point and opens the gain. The variance v of the log residuals of a
class gives quantiles, S exp(z sqrt(v)).

The first sample of a class replaces the prior: half of it counts as constant and half as proportional, each with a
standard deviation of its own size. Samples of a few different sizes determine the rest. Sizes are extrapolated
to at most twice the largest size seen: a first sample of a small size predicts large sizes badly, and a prediction that
is too low gets corrected, because it attracts work. A prediction is at most RANGE_FACTOR times outside the range of
the samples: a line through many samples of one size and a bad first sample is arbitrary at another size.

Everything is O(1) in plain floats. Impossible samples (NaN, infinity, zero, negative) are not learned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

FORGETTING = 0.99  # of the least squares: about the last 100 samples count
EXTRAPOLATION = 2.0  # times the largest size seen
MIN_NOISE = 0.01  # a variance of the logarithm: no prediction is better than 10 %
RANGE_FACTOR = 4.0  # a prediction is at most the longest sample times this, at least the shortest divided by it
OUTLIER = 3.0  # standard deviations
MAX_SLOWDOWN_LOG = math.log(4.0)  # drift explains a slowdown up to this; beyond it, the class has changed
CLIP = 2.0  # a residual beyond this many predictions counts as this many
MIN_S, MAX_S = 1e-5, 86_400.0
Z95 = 1.645  # the normal distribution's 95th percentile
FIRST_LOG_VARIANCE = 0.25
VARIANCE_GAIN = 0.05
HOLD_GAIN, MAX_HOLD = 0.2, 1e4
MIN_SIZE, MAX_SIZE = 1e-6, 1e12  # sizes beyond are clipped to these, so that no square overflows a float


class Estimate(NamedTuple):
    """The expected duration of a piece of work. If `samples` is 0, it is a prior.

    optimism: a factor of at most 1 by which a decision may multiply it; the less certain the estimate, the smaller.
    hold: how long the slot is occupied, as a multiple of the duration; more than 1 for streams: their first content
    comes long before their end.
    """

    mean_s: float
    p95_s: float
    samples: int
    optimism: float = 1.0
    hold: float = 1.0


def is_duration(seconds: float) -> bool:
    """True if `seconds` is a possible duration of a piece of work."""
    return MIN_S <= seconds <= MAX_S  # false for NaN too


class Drift:
    """How much slower than usual a backend is at present: g = log(slowdown), by a scalar Kalman filter."""

    __slots__ = ("_at", "_factor", "_factor_at", "_outlier", "_p", "_process_per_s", "g")

    REVERSION_S = 120.0
    CHANGE_POINT_VARIANCE = 0.1  # added to P at a change point
    MAX_LOG_RATIO = 3.0  # exp(3) is twenty times slower: beyond that the class is wrong, not the backend

    def __init__(self, process_per_s: float) -> None:
        self._process_per_s = process_per_s
        self.g = 0.0
        self._p = 0.02
        self._outlier = 0.0  # the sign of the last sample if it was an outlier, else 0
        self._at: float | None = None
        self._factor, self._factor_at = 1.0, -math.inf

    def log_slowdown(self, now: float) -> float:
        """g at `now`: it returns to 0 between samples."""
        if self._at is None or now <= self._at:
            return self.g
        return self.g * math.exp((self._at - now) / self.REVERSION_S)

    def slowdown(self, now: float) -> float:
        """exp(g): how many times longer than usual work takes. Cached for 0.1 s, because each decision reads it."""
        if not 0.0 <= now - self._factor_at < 0.1:
            self._factor, self._factor_at = math.exp(self.log_slowdown(now)), now
        return self._factor

    def learn(self, log_ratio: float, variance: float, now: float) -> None:
        """Learn from log(actual / expected without drift) and the variance of such samples."""
        idle_s = max(now - self._at, 0.0) if self._at is not None else 0.0
        g = self.log_slowdown(now)
        p = min(self._p + self._process_per_s * idle_s, 1.0)
        residual = max(-self.MAX_LOG_RATIO, min(log_ratio, self.MAX_LOG_RATIO)) - g
        limit = OUTLIER * math.sqrt(p + variance)
        outlier = math.copysign(1.0, residual) if abs(residual) > limit else 0.0
        if outlier and outlier == self._outlier:
            p += self.CHANGE_POINT_VARIANCE
        elif outlier:
            residual = outlier * limit
        self._outlier = outlier
        gain = p / (p + variance)
        self.g = g + gain * residual
        self._p = p * (1.0 - gain)
        self._at = now if self._at is None else max(now, self._at)
        self._factor_at = -math.inf


class ServiceTime:
    """One class at one backend: a line through its samples and the variance around it.

    The attributes with the names in `save` are the keys of the state file.
    """

    __slots__ = (
        "_outlier",
        "beyond",
        "hold",
        "holds",
        "learned_at",
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
        self.passes = 0  # decisions for another backend since the last sample
        self.learned_at = 0.0
        self.unit = 1.0  # sizes are divided by the first size seen, so that both weights have the same magnitude
        self.beyond = 0.0  # larger sizes are clipped to this size
        self.least, self.most = MIN_S, MAX_S  # the range of predictions, seconds
        self.holds = 0
        self.hold = 1.0  # how long the slot is occupied, as a multiple of the service time
        self.w0 = self.w1 = 0.0
        self.p00 = self.p01 = self.p11 = 0.0
        self._outlier = 0  # the sign of the last residual if it was an outlier, else 0
        self.variance = FIRST_LOG_VARIANCE
        self.to_p95 = math.exp(Z95 * math.sqrt(FIRST_LOG_VARIANCE))  # 95th percentile / mean, cached

    def learn_hold(self, ratio: float) -> None:
        """A slot was free again after `ratio` times the service time."""
        if 1.0 <= ratio <= MAX_HOLD:
            self.holds += 1
            self.hold += (ratio - self.hold) * max(HOLD_GAIN, 1.0 / self.holds)

    def usual_s(self, x: float) -> float:
        """Seconds for size `x` without the backend's drift."""
        return min(max(self.w0 + self.w1 * (min(x, self.beyond) / self.unit), self.least), self.most)

    def learn(self, x: float, seconds: float, now: float) -> None:
        """Learn from one sample, divided by the backend's slowdown."""
        x = min(x, MAX_SIZE)
        if not self.samples:
            self._start_line(x, seconds)
            self.least, self.most = seconds / RANGE_FACTOR, seconds * RANGE_FACTOR
        else:
            self._update_line(x / self.unit, seconds)
            self.least = min(self.least, seconds / RANGE_FACTOR)
            self.most = max(self.most, seconds * RANGE_FACTOR)
        self.beyond = max(self.beyond, EXTRAPOLATION * x)
        self.samples += 1
        self.passes = 0
        self.learned_at = now

    def _start_line(self, x: float, seconds: float) -> None:
        has_size = x >= MIN_SIZE
        self.unit = x if has_size else 1.0
        half = seconds / 2
        self.w0, self.w1 = (half, half) if has_size else (seconds, 0.0)
        self.p00 = self.p11 = half * half

    def _update_line(self, x: float, seconds: float) -> None:
        expected = max(self.w0 + self.w1 * x, MIN_S)
        # Between expected² and seconds²: an estimate far too high must not discount the sample that corrects it.
        scale = expected * seconds
        self._detect_wrong_line(math.log(seconds / expected), x, scale)
        a0, a1 = self.p00 + self.p01 * x, self.p01 + self.p11 * x  # P phi
        doubt = max(a0 + a1 * x, 0.0)  # variance of the prediction from the uncertain line; not < 0
        noise = min(max(self.variance, MIN_NOISE), 1.0) * scale
        self._learn_variance(math.log(seconds / expected), noise / (noise + doubt))
        error = min(seconds - expected, CLIP * expected)
        k0, k1 = a0 / (FORGETTING * noise + doubt), a1 / (FORGETTING * noise + doubt)
        self.w0 += k0 * error
        self.w1 += k1 * error
        # The variance in a direction without excitation must not grow without bound: at most one prediction squared.
        limit = max(expected, seconds) ** 2
        self.p00 = min((self.p00 - k0 * a0) / FORGETTING, limit)
        self.p11 = min((self.p11 - k1 * a1) / FORGETTING, limit)
        bound = math.sqrt(max(self.p00 * self.p11, 0.0))
        self.p01 = max(-bound, min((self.p01 - k0 * a1) / FORGETTING, bound))
        self._constrain(expected)

    def _detect_wrong_line(self, residual: float, x: float, scale: float) -> None:
        """Reset the line's covariance after two samples in a row that neither variance nor slowdown explains."""
        outlier = 0
        if abs(residual) > max(OUTLIER * math.sqrt(self.variance), MAX_SLOWDOWN_LOG):
            outlier = 1 if residual > 0.0 else -1
        if outlier and outlier == self._outlier:
            self.p00, self.p01, self.p11 = scale, 0.0, scale / max(x * x, 1.0)
        self._outlier = outlier

    def _constrain(self, expected: float) -> None:
        """Keep both weights at 0 or more: set a negative weight to 0 and the other to its conditional estimate."""
        if self.w1 < 0.0:
            self.w0 -= self.w1 * self.p01 / self.p11 if self.p11 > 0.0 else 0.0
            self.w1 = 0.0
        if self.w0 < 0.0:
            self.w1 = max(self.w1 - self.w0 * self.p01 / self.p00 if self.p00 > 0.0 else self.w1, 0.0)
            self.w0 = 0.0
        if self.w0 + self.w1 <= 0.0:
            self.w0 = expected / CLIP

    def _learn_variance(self, residual: float, share: float) -> None:
        """Learn the variance. `share` is the sample's own part of the squared residual; the rest is the line's."""
        limit = OUTLIER * OUTLIER * max(self.variance, MIN_NOISE)  # a straggler must not inflate the variance
        gain = max(VARIANCE_GAIN, 1.0 / (self.samples + 4))
        self.variance += gain * (min(residual * residual * share, limit) - self.variance)
        self.to_p95 = math.exp(Z95 * math.sqrt(self.variance))

    def log_variance(self, x: float) -> float:
        """Variance of log(actual / predicted) of a sample of size `x`: the sample's own plus the line's."""
        x = min(x, self.beyond) / self.unit
        expected = max(self.w0 + self.w1 * x, MIN_S)
        doubt = max(self.p00 + 2 * self.p01 * x + self.p11 * x * x, 0.0)
        return self.variance + doubt / (expected * expected)

    def save(self) -> dict[str, Any]:
        """The learned values, as JSON. Instants are left out: the clock starts anew after a restart."""
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
    def from_saved(cls, saved: Mapping[str, Any], now: float) -> ServiceTime:
        """Restore the result of `save`. Raises ValueError, KeyError or TypeError if it is damaged."""
        self = cls()
        self.samples = int(saved["samples"])
        self.holds = int(saved.get("holds", 0))
        self.hold = min(max(_finite(saved.get("hold", 1.0)), 1.0), MAX_HOLD)
        self.least = max(_finite(saved.get("least", MIN_S)), 0.0)
        self.most = max(_finite(saved.get("most", MAX_S)), self.least)
        self.learned_at = now
        for name in ("unit", "beyond", "w0", "w1", "p00", "p01", "p11", "variance"):
            setattr(self, name, _finite(saved[name]))
        if self.samples < 1 or self.unit <= 0 or self.w0 < 0 or self.w1 < 0 or self.w0 + self.w1 <= 0:
            raise ValueError("not a possible service time")
        self.variance = min(max(self.variance, 0.0), 9.0)
        self.to_p95 = math.exp(Z95 * math.sqrt(self.variance))
        return self


def _finite(value: Any) -> float:
    number = float(value)
    if not abs(number) < 1e12:  # NaN, too
        raise ValueError("not a value that learning can produce")
    return number
