"""The state of the network between this host and one remote backend: up or down, round trip, throughput.

Theory of operation. Four states:

    unknown   no answer yet; requests may go, and their outcome sets the state
    up        the backend answers, about as fast as it ever does
    degraded  it answers, but late or slowly, or one answer is missing: requests go there if it still pays
    down      two answers in a row are missing, or the carrier is lost: no request goes there

A miss is a failure of the network (refused, reset, no route, timeout), whether of a probe or of a request. Any
answer of the backend, even a 500, proves that the network works. Misses less than a quarter of a second apart are
one event seen several times. A pair that the table does not hold raises KeyError.

Probes. A probe without an answer in time is a miss, but it is not given up: a late answer is an answer, and the only
way to learn that the path has become slow. From the second miss on, the timeout doubles (RFC 6298 §5.5). After a miss
the next probe does not wait for the previous one: it is sent after 0.25 s, then 1 s, and then at intervals that grow to
3 s, so that the state follows the path within 3 s and the time of one exchange. Ten minutes after the last demand the
interval is a minute; the next request is then the probe.

Round trips are smoothed by RFC 6298. `rtt_min` is the smallest of the last one to two minutes: the path without its
queues. Throughput is learned as a logarithm, from transfers large enough to fill the path. Without transfers
the estimate drifts back to its long-run mean, so that a bad phase is forgotten without test traffic.
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
        "carrier_back": "unknown",  # it may be another network; only an attempt shows whether it works
    },
}

MIN_TRANSFER_BYTES = 65_536  # a smaller transfer fits into socket buffers and does not measure the path
DEFAULT_UPLINK_BYTES_PER_S = 500_000.0  # 4 Mbit/s, a middling LTE uplink, until there is a sample
SAME_EVENT_S = 0.25
RTT_WINDOW_S = 60.0
MAX_RTT_S = 60.0
IDLE_DIVISOR = 4.0  # the interval of probes is a quarter of the time since the last demand for this link
MAX_PROBE_INTERVAL_S = 60.0
MISSING_STEP_S, MAX_MISSING_INTERVAL_S = 0.5, 3.0  # the interval of probes per miss, and its maximum, under demand
DEMAND_LASTS_S = 600.0  # a link that is down is probed at that interval for this long after the last demand
FIRST_PROBE_TIMEOUT_S, MIN_PROBE_TIMEOUT_S = 2.0, 0.5
MAX_PROBE_S = 20.0  # a probe without an answer ends after this: several exchanges at a round trip of 3 s
WARM_RTTS, COLD_RTTS = 3.0, 3.0  # the timeout is at least 3 round trips; cold: also connect (1) and TLS 1.2 (2)
COLD_AFTER_S = 50.0  # a connection without an exchange for this long may be closed, so the next one is cold


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A measured quantity, the age of its last sample and the number of samples. None: no sample yet."""

    value: float | None = None
    age_s: float | None = None
    samples: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkView:
    """A link at one instant. `state`: None while unknown."""

    rtt: Measured
    rtt_min: Measured
    tcp_rtt: Measured
    uplink_bytes_per_s: Measured
    downlink_bytes_per_s: Measured
    state: Literal["up", "degraded", "down"] | None


class Rate:
    """Bytes per second in one direction: a log-EWMA that drifts back to its long-run mean while idle."""

    __slots__ = ("_is_stale", "_learned_at", "_log", "_long", "samples")

    GAIN, LONG_GAIN = 0.5, 0.05
    IDLE_S = 20.0

    def __init__(self) -> None:
        self._log = self._long = 0.0
        self._learned_at = 0.0
        self._is_stale = True
        self.samples = 0

    def learn(self, nbytes: float, seconds: float, now: float) -> None:
        """Learn from a transfer of `nbytes` in `seconds`. Small and impossible transfers are ignored."""
        if not (nbytes >= MIN_TRANSFER_BYTES and 1e-5 <= seconds <= 3600.0):
            return
        sample = math.log(nbytes / seconds)
        if not self.samples:
            self._log = self._long = sample
        else:
            self._log += (sample - self._log) * (1.0 if self._is_stale else self.GAIN)
            self._long += (sample - self._long) * max(self.LONG_GAIN, 1.0 / (self.samples + 1))
        self.samples += 1
        self._learned_at = now
        self._is_stale = False

    def mark_stale(self) -> None:
        """The network may be another one now: the next sample replaces the momentary rate."""
        self._is_stale = True

    def bytes_per_s(self, now: float) -> float | None:
        """The rate to expect now; None without a sample."""
        if not self.samples:
            return None
        weight = math.exp(min(self._learned_at - now, 0.0) / self.IDLE_S)
        return math.exp(self._long + (self._log - self._long) * weight)

    def is_slow(self, now: float) -> bool:
        """True if the rate is below a quarter of its long-run mean."""
        rate = self.bytes_per_s(now)
        return rate is not None and rate < math.exp(self._long) / 4

    def measured(self, now: float) -> Measured:
        age_s = _age(self._learned_at, self.samples, now)
        return Measured(value=self.bytes_per_s(now), age_s=age_s, samples=self.samples)

    def save(self) -> dict[str, float]:
        """The long-run mean, as JSON; the momentary rate does not survive a restart."""
        return {"long": self._long, "samples": self.samples}

    def restore(self, saved: Any, now: float) -> None:
        """Take over the result of `save`. Damaged data is ignored, never raised."""
        try:
            long, samples = float(saved["long"]), int(saved["samples"])
        except (KeyError, TypeError, ValueError, OverflowError):
            return
        if math.isfinite(long) and 0.0 < long < 30.0 and samples > 0:
            self._log = self._long = long
            self.samples, self._learned_at = samples, now


class RoundTrip:
    """Round-trip time: smoothed, its variation, and the minimum of the last one to two minutes.

    recent_s follows a changed path within two or three samples; predictions use it. last_s: the last sample. 0
    without a sample.
    """

    __slots__ = (
        "_learned_at",
        "_previous_min_s",
        "_window_began",
        "_window_min_s",
        "last_s",
        "recent_s",
        "samples",
        "smoothed_s",
        "variation_s",
    )

    def __init__(self) -> None:
        self.smoothed_s = self.variation_s = self.recent_s = self.last_s = 0.0
        self.samples = 0
        self._learned_at = self._window_began = 0.0
        self._window_min_s = self._previous_min_s = math.inf

    def learn(self, seconds: float, now: float) -> None:
        """Learn from one round trip. Impossible values are ignored."""
        if not 0.0 < seconds <= MAX_RTT_S:
            return
        if not self.samples:
            self.smoothed_s, self.variation_s, self.recent_s = seconds, seconds / 2, seconds
            self._window_began = now
        else:  # RFC 6298 §2: beta 1/4, alpha 1/8
            self.variation_s += (abs(seconds - self.smoothed_s) - self.variation_s) / 4
            self.smoothed_s += (seconds - self.smoothed_s) / 8
            self.recent_s += (seconds - self.recent_s) / 2
        self.last_s = seconds
        if now - self._window_began > RTT_WINDOW_S:
            self._previous_min_s, self._window_min_s, self._window_began = self._window_min_s, math.inf, now
        self._window_min_s = min(self._window_min_s, seconds)
        self.samples += 1
        self._learned_at = now

    @property
    def min_s(self) -> float:
        """The minimum of this window and the previous one; infinite without a sample."""
        return min(self._window_min_s, self._previous_min_s)

    def is_late(self) -> bool:
        """True if the smoothed round trip is far above the minimum of the path."""
        return self.samples > 3 and self.smoothed_s > 4 * self.min_s + 0.1

    def measured(self, value: float, now: float) -> Measured:
        """`value` (smoothed_s or min_s) with the age and number of the samples."""
        age_s = _age(self._learned_at, self.samples, now)
        return Measured(value=value if self.samples else None, age_s=age_s, samples=self.samples)


class LinkChange(NamedTuple):
    """One change of a link's state, and the reason."""

    before: State
    after: State
    why: str


class Link:
    """The link to one remote backend. Every `now` is in seconds of one monotonic clock.

    why: the cause of the state; while it is down, the cause of the last miss. on_change: called for each change of
    state.
    """

    def __init__(self, now: float, on_change: Callable[[LinkChange], None] = lambda change: None) -> None:
        self.state: State = "unknown"
        self.why = "no answer yet"
        self.rtt, self.tcp_rtt = RoundTrip(), RoundTrip()
        self.up, self.down = Rate(), Rate()
        self.misses = 0
        self._on_change = on_change
        self._missed_at = -math.inf
        self._answered_at = self._probed_at = -math.inf
        self._last_answer_at = -math.inf  # never reset, unlike `_answered_at`
        self._demanded_at = now

    def observe(self, sample: LinkSample, now: float) -> None:
        """Learn from one exchange. Impossible values in it are ignored."""
        if sample.failed is not None:
            self.on_miss(sample.failed, now)
            return
        if sample.rtt_s is not None:
            self.rtt.learn(sample.rtt_s, now)
        if sample.tcp_rtt_s is not None:
            self.tcp_rtt.learn(sample.tcp_rtt_s, now)
        if sample.upload_s is not None:
            self.up.learn(sample.upload_bytes, sample.upload_s, now)
        if sample.download_s is not None:
            self.down.learn(sample.download_bytes, sample.download_s, now)
        self.on_answer(now)

    def on_answer(self, now: float) -> None:
        """The backend answered: the network works."""
        self.misses = 0
        self._answered_at = self._last_answer_at = now
        is_late = self.rtt.is_late() or self.up.is_slow(now)
        self._transition("answered_late" if is_late else "answered", "answers late or slowly" if is_late else "answers")

    def on_miss(self, why: str, now: float) -> None:
        """An answer is missing because of the network."""
        self._answered_at = -math.inf  # the next probe is due at once
        if self.misses and now - self._missed_at < SAME_EVENT_S:
            return
        self.misses += 1
        self._missed_at = now
        self._transition("missed" if self.misses == 1 else "missed_again", why)
        self.why = why

    def on_probe_timeout(self, sent_at: float, timeout_s: float, now: float) -> bool:
        """A probe has no answer yet. Returns whether that is a miss: no answer has arrived since the probe was sent."""
        if self._last_answer_at >= sent_at:
            return False
        self.on_miss(f"probe timed out after {timeout_s:.3g} s", now)
        return True

    def on_carrier_lost(self) -> None:
        """The kernel has no route to the backend any more."""
        self._transition("carrier_lost", "no carrier")
        self.why = "no carrier"

    def on_carrier_back(self) -> None:
        """The kernel has a route to the backend again; a probe is due at once."""
        self.misses = 0
        self._answered_at = self._probed_at = -math.inf
        self.up.mark_stale()
        self.down.mark_stale()
        self._transition("carrier_back", "the carrier is back")

    def _transition(self, event: Event, why: str) -> None:
        before, self.state = self.state, TRANSITIONS[self.state][event]
        if self.state != before:
            self.why = why
            self._on_change(LinkChange(before, self.state, why))

    def on_demand(self, now: float) -> None:
        """A request could use this link: probes keep their interval."""
        self._demanded_at = now

    def on_probe_sent(self, now: float) -> None:
        self._probed_at = now

    @property
    def is_answering(self) -> bool:
        """Whether no answer is missing. If False, probes do not wait for each other."""
        return self.misses == 0 and self.state != "down"

    def probe_due_s(self, now: float, every_s: float, *, after_answers: bool = True) -> float:
        """Seconds until the next probe is due; 0 or less: now.

        after_answers: an answered request counts as a probe.
        """
        last = max(self._answered_at, self._probed_at) if after_answers else self._probed_at
        return last + self._probe_interval_s(now, every_s) - now

    def _probe_interval_s(self, now: float, every_s: float) -> float:
        idle_s = max(now - self._demanded_at, 0.0)
        idle_interval_s = min(max(every_s, idle_s / IDLE_DIVISOR), max(MAX_PROBE_INTERVAL_S, every_s))
        if self.misses == 1 and self._probed_at <= self._missed_at:
            return min(idle_interval_s, SAME_EVENT_S)  # one answer is missing: a second probe decides quickly
        if self.is_answering or idle_s > DEMAND_LASTS_S:
            return idle_interval_s
        step_s = MISSING_STEP_S * self.misses if self.misses else MAX_MISSING_INTERVAL_S  # 0: no carrier
        return max(every_s, min(step_s, MAX_MISSING_INTERVAL_S))

    def probe_timeout_s(self, now: float) -> float:
        """Seconds to wait for the answer to a probe: the timeout of RFC 6298, doubled for each miss after the first.

        The probe after the first miss decides whether the link is down, so its timeout bounds the detection of an
        outage. A late answer counts nevertheless.
        """
        rtt = self.rtt
        if not rtt.samples:
            base_s = FIRST_PROBE_TIMEOUT_S
        else:
            base_s = max(rtt.smoothed_s + 4 * rtt.variation_s, MIN_PROBE_TIMEOUT_S)
        backed_off_s = base_s * 2.0 ** min(max(self.misses - 1, 0), 6)
        is_cold = not self.is_answering or now - self._last_answer_at > COLD_AFTER_S
        least_s = (WARM_RTTS + (COLD_RTTS if is_cold else 0.0)) * rtt.last_s
        return min(max(backed_off_s, least_s), MAX_PROBE_S)

    def view(self, now: float) -> LinkView:
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
