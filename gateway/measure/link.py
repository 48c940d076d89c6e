"""What is known of the network between here and one remote backend.

Theory of operation. Four states:

    unknown   nothing was heard yet; requests may go, and will tell
    up        it answers, about as fast as it ever does
    degraded  it answers, but late or slowly, or one answer is missing: go there if it still pays
    down      two answers in a row are missing, or the carrier is gone: do not go there

A miss is a failure of the network (refused, reset, no route, time-out), whether a probe's or a request's;
an answer of the backend, even a 500, is a sign of life of the network. Misses less than a quarter of a second
apart are one event seen several times. What the table does not hold cannot happen, and raises.

Round trips are smoothed as RFC 6298 does it; `rtt_min` is the least of the last one to two minutes, the path
without its queues. Throughput is learned in logarithms from transfers large enough to fill the path. While
nothing is transferred it drifts back to its long-run mean: bad news is forgotten without test traffic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from gateway.plugin import LinkSample

State = Literal["unknown", "up", "degraded", "down"]
Event = Literal["answered", "answered_late", "missed", "missed_again", "carrier_lost", "carrier_back"]

TRANSITIONS: dict[State, dict[Event, State]] = {
    "unknown": {
        "answered": "up",
        "answered_late": "degraded",
        "missed": "degraded",
        "missed_again": "down",
        "carrier_lost": "down",
        "carrier_back": "unknown",
    },
    "up": {
        "answered": "up",
        "answered_late": "degraded",
        "missed": "degraded",
        "missed_again": "down",
        "carrier_lost": "down",
        "carrier_back": "up",
    },
    "degraded": {
        "answered": "up",
        "answered_late": "degraded",
        "missed": "degraded",
        "missed_again": "down",
        "carrier_lost": "down",
        "carrier_back": "degraded",
    },
    "down": {
        "answered": "up",
        "answered_late": "degraded",
        "missed": "down",
        "missed_again": "down",
        "carrier_lost": "down",
        "carrier_back": "unknown",  # another network, perhaps: only trying tells
    },
}

TEACHING_BYTES = 65_536  # smaller transfers sit in socket buffers and tell nothing of the path
FIRST_UPLINK_BYTES_PER_S = 500_000.0  # 4 Mbit/s, a middling LTE uplink, until there is a sample
SAME_EVENT_S = 0.25
RTT_WINDOW_S = 60.0
MAX_RTT_S = 60.0
IDLE_DIVISOR = 4.0  # probes are spaced by a quarter of the time nobody wanted this link
SLOWEST_PROBE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A measured quantity: None until the first sample; how old the last one is, and how many there were."""

    value: float | None = None
    age_s: float | None = None
    samples: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkView:
    """A link at one instant. `state` is None while nothing was heard."""

    rtt: Measured
    rtt_min: Measured
    tcp_rtt: Measured
    uplink_bytes_per_s: Measured
    downlink_bytes_per_s: Measured
    state: Literal["up", "degraded", "down"] | None


class Rate:
    """Bytes per second in one direction: a log-EWMA that drifts back to its long-run mean while idle."""

    __slots__ = ("_at", "_is_unsettled", "_log", "_long", "samples")

    GAIN, LONG_GAIN = 0.5, 0.05
    IDLE_S = 20.0

    def __init__(self) -> None:
        self._log = self._long = 0.0
        self._at = 0.0
        self._is_unsettled = True
        self.samples = 0

    def learn(self, nbytes: float, seconds: float, now: float) -> None:
        """One transfer of `nbytes` that took `seconds`; small or impossible ones are ignored."""
        if not (nbytes >= TEACHING_BYTES and 1e-5 <= seconds <= 3600.0):
            return
        seen = math.log(nbytes / seconds)
        if not self.samples:
            self._log = self._long = seen
        else:
            self._log += (seen - self._log) * (1.0 if self._is_unsettled else self.GAIN)
            self._long += (seen - self._long) * max(self.LONG_GAIN, 1.0 / (self.samples + 1))
        self.samples += 1
        self._at = now
        self._is_unsettled = False

    def unsettle(self) -> None:
        """It may be another network now: the next sample counts for all."""
        self._is_unsettled = True

    def bytes_per_s(self, now: float) -> float | None:
        """The rate expected now; None without a sample."""
        if not self.samples:
            return None
        kept = math.exp(min(self._at - now, 0.0) / self.IDLE_S)
        return math.exp(self._long + (self._log - self._long) * kept)

    def is_slow(self, now: float) -> bool:
        """Whether it is below a quarter of its long-run mean."""
        rate = self.bytes_per_s(now)
        return rate is not None and rate < math.exp(self._long) / 4

    def measured(self, now: float) -> Measured:
        """As a Measured."""
        return Measured(value=self.bytes_per_s(now), age_s=_age(self._at, self.samples, now), samples=self.samples)

    def save(self) -> dict[str, float]:
        """The long-run mean; the momentary one does not survive a restart."""
        return {"long": self._long, "samples": self.samples}

    def restore(self, saved: Any, now: float) -> None:
        """What `save` gave; damaged: nothing. Raises nothing."""
        try:
            long, samples = float(saved["long"]), int(saved["samples"])
        except (KeyError, TypeError, ValueError, OverflowError):
            return
        if math.isfinite(long) and 0.0 < long < 30.0 and samples > 0:
            self._log = self._long = long
            self.samples, self._at = samples, now


class RoundTrip:
    """Round-trip time: smoothed, its variation, and the least of the last one to two minutes.

    recent_s follows a changed path within two or three samples; predictions rest on it. 0 without a sample.
    """

    __slots__ = ("_at", "_least", "_least_before", "_window_began", "recent_s", "samples", "smoothed_s", "variation_s")

    def __init__(self) -> None:
        self.smoothed_s = self.variation_s = self.recent_s = 0.0
        self.samples = 0
        self._at = self._window_began = 0.0
        self._least = self._least_before = math.inf

    def learn(self, seconds: float, now: float) -> None:
        """One round trip; impossible ones are ignored."""
        if not 0.0 < seconds <= MAX_RTT_S:
            return
        if not self.samples:
            self.smoothed_s, self.variation_s, self.recent_s = seconds, seconds / 2, seconds
            self._window_began = now
        else:  # RFC 6298 §2: beta 1/4, alpha 1/8
            self.variation_s += (abs(seconds - self.smoothed_s) - self.variation_s) / 4
            self.smoothed_s += (seconds - self.smoothed_s) / 8
            self.recent_s += (seconds - self.recent_s) / 2
        if now - self._window_began > RTT_WINDOW_S:
            self._least_before, self._least, self._window_began = self._least, math.inf, now
        self._least = min(self._least, seconds)
        self.samples += 1
        self._at = now

    @property
    def min_s(self) -> float:
        """The least of the window and the one before; infinite without a sample."""
        return min(self._least, self._least_before)

    def is_late(self) -> bool:
        """Whether it is far above what the path can do."""
        return self.samples > 3 and self.smoothed_s > 4 * self.min_s + 0.1

    def measured(self, value: float, now: float) -> Measured:
        """`value` (the smoothed or the least) as a Measured."""
        return Measured(
            value=value if self.samples else None, age_s=_age(self._at, self.samples, now), samples=self.samples
        )


class Change(NamedTuple):
    """A link changed its state."""

    before: State
    after: State
    why: str


class Link:
    """One remote backend's link. Times are the clock's seconds, given by the caller."""

    def __init__(self, now: float, on_change: Callable[[Change], None] = lambda change: None) -> None:
        self.state: State = "unknown"
        self.why = "nothing heard yet"
        self.rtt, self.tcp_rtt = RoundTrip(), RoundTrip()
        self.up, self.down = Rate(), Rate()
        self.misses = 0
        self._on_change = on_change
        self._missed_at = -math.inf
        self._heard_at = self._asked_at = -math.inf
        self._wanted_at = now

    def observe(self, sample: LinkSample, now: float) -> None:
        """Learn from one exchange; what is impossible in it is ignored."""
        if sample.failed is not None:
            self.miss(sample.failed, now)
            return
        if sample.rtt_s is not None:
            self.rtt.learn(sample.rtt_s, now)
        if sample.tcp_rtt_s is not None:
            self.tcp_rtt.learn(sample.tcp_rtt_s, now)
        if sample.upload_s is not None:
            self.up.learn(sample.upload_bytes, sample.upload_s, now)
        if sample.download_s is not None:
            self.down.learn(sample.download_bytes, sample.download_s, now)
        self.heard(now)

    def heard(self, now: float) -> None:
        """A sign of life."""
        self.misses = 0
        self._heard_at = now
        late = self.rtt.is_late() or self.up.is_slow(now)
        self._obey("answered_late" if late else "answered", "answers late or slowly" if late else "answers")

    def miss(self, why: str, now: float) -> None:
        """An answer is missing, by the network's fault."""
        self._heard_at = -math.inf  # ask again at once
        if self.misses and now - self._missed_at < SAME_EVENT_S:
            return
        self.misses += 1
        self._missed_at = now
        self._obey("missed" if self.misses == 1 else "missed_again", why)

    def carrier_lost(self) -> None:
        """The kernel says the way there is gone."""
        self._obey("carrier_lost", "no carrier")

    def carrier_back(self) -> None:
        """The kernel says there is a way again; a probe is due at once."""
        self.misses = 0
        self._heard_at = self._asked_at = -math.inf
        self.up.unsettle()
        self.down.unsettle()
        self._obey("carrier_back", "the carrier is back")

    def _obey(self, event: Event, why: str) -> None:
        before, self.state = self.state, TRANSITIONS[self.state][event]
        if self.state != before:
            self.why = why
            self._on_change(Change(before, self.state, why))

    def wanted(self, now: float) -> None:
        """Somebody has work that could go there: keep the picture fresh."""
        self._wanted_at = now

    def asked(self, now: float) -> None:
        """A probe is on its way."""
        self._asked_at = now

    def probe_due_s(self, now: float, every_s: float) -> float:
        """Seconds until the next probe is due; 0 or less: now. Traffic counts as probes."""
        idle_s = max(now - self._wanted_at, 0.0)
        spacing_s = min(max(every_s, idle_s / IDLE_DIVISOR), max(SLOWEST_PROBE_S, every_s))
        if self.misses == 1:
            spacing_s = min(spacing_s, SAME_EVENT_S)  # one answer is missing: find out quickly
        return max(self._heard_at, self._asked_at) + spacing_s - now

    def probe_timeout_s(self) -> float:
        """How long to wait for a probe: RFC 6298's time-out, between half a second and two."""
        if not self.rtt.samples:
            return 2.0
        return min(max(self.rtt.smoothed_s + 4 * self.rtt.variation_s, 0.5), 2.0)

    def view(self, now: float) -> LinkView:
        """Everything at `now`."""
        return LinkView(
            rtt=self.rtt.measured(self.rtt.smoothed_s, now),
            rtt_min=self.rtt.measured(self.rtt.min_s, now),
            tcp_rtt=self.tcp_rtt.measured(self.tcp_rtt.smoothed_s, now),
            uplink_bytes_per_s=self.up.measured(now),
            downlink_bytes_per_s=self.down.measured(now),
            state=None if self.state == "unknown" else self.state,
        )


def _age(at: float, samples: int, now: float) -> float | None:
    return max(now - at, 0.0) if samples else None
