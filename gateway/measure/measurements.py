"""All measurements in one object: links, service times and device load, readable at any instant.

Samples come from dispatch and from backends; the lanes, the log and /status read the predictions. A bad sample is
ignored, never raised. The only I/O is reading the device load. Wall time is not used, so the same object serves the
gateway and a simulation on a virtual clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from gateway.measure.device_load import UNKNOWN, Readings
from gateway.measure.link_state import DEFAULT_UPLINK_BYTES_PER_S, Link, LinkChange, LinkView, Measured
from gateway.measure.service_time import MAX_S, MIN_S, Drift, Estimate, ServiceTime, is_duration
from gateway.plugin import LinkSample

__all__ = ["Estimate", "LinkChange", "LinkView", "Measured", "Measurements", "Sampler"]

PRIOR_EDGE_S, PRIOR_CLOUD_S = 0.2, 0.3
DRIFT_EDGE_PER_S, DRIFT_CLOUD_PER_S = 0.004, 0.001
MAX_CLASSES = 4096
GUESS_P95 = 3.0
TRIAL_SAMPLES, TRIAL_FACTOR = 3, 0.8
PASSES_PER_TRIAL, TRIAL_EVERY_S, SURE_PASSES = 300, 60.0, 15


class Sampler(Protocol):
    """A source of device load readings."""

    def sample(self) -> Readings: ...


class _BackendMeasurements:
    """The measurements of one backend."""

    __slots__ = ("classes", "drift", "link", "prior_s")

    def __init__(self, remote: bool, link: Link) -> None:
        self.prior_s = PRIOR_CLOUD_S if remote else PRIOR_EDGE_S
        self.drift = Drift(DRIFT_CLOUD_PER_S if remote else DRIFT_EDGE_PER_S)
        self.link = link
        self.classes: dict[tuple[str, str], ServiceTime] = {}


class Measurements:
    """Everything measured.

    clock: returns monotonic seconds. sampler: reads the device load; None: the load stays unknown.
    probe_s: interval of probes. on_link_change(backend, change): called for each change of a link's state.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        sampler: Sampler | None = None,
        probe_s: float = 1.0,
        on_link_change: Callable[[str, LinkChange], None] = lambda backend, change: None,
    ) -> None:
        self._clock = clock
        self._sampler = sampler
        self._load: Readings = dict(UNKNOWN)
        self._backends: dict[str, _BackendMeasurements] = {}
        self._saved: dict[str, dict[str, Any]] = {}  # restored data of backends that are not added yet
        self.probe_s = probe_s
        self._on_link_change = on_link_change

    # ── backends ─────────────────────────────────────────────────────────────────────────────────

    def add(self, backend: str, *, remote: bool) -> None:
        """Measure `backend` from now on. Data already measured or restored under that name is kept."""
        if backend in self._backends:
            return
        link = Link(self._clock(), lambda change: self._on_link_change(backend, change))
        added = self._backends[backend] = _BackendMeasurements(remote, link)
        self._restore_one(added, self._saved.pop(backend, {}), self._clock())

    def remove(self, backend: str) -> None:
        self._backends.pop(backend, None)
        self._saved.pop(backend, None)

    def _get(self, backend: str) -> _BackendMeasurements:
        """The measurements of `backend`; for an unknown backend an empty object that is not kept."""
        return self._backends.get(backend) or _BackendMeasurements(False, Link(self._clock(), lambda change: None))

    # ── the network ──────────────────────────────────────────────────────────────────────────────

    def observe(self, backend: str, sample: LinkSample) -> None:
        """Learn from a network sample that `backend` took. Impossible values are ignored."""
        self._get(backend).link.observe(sample, self._clock())

    def link(self, backend: str) -> LinkView:
        """The link to `backend` now."""
        return self._get(backend).link.view(self._clock())

    def is_down(self, backend: str) -> bool:
        """True if the link to `backend` is known to be down."""
        measured = self._backends.get(backend)
        return measured is not None and measured.link.state == "down"

    def why_down(self, backend: str) -> str | None:
        """Why `backend` is not reachable now: the cause that holds its link down; None if the link is not down."""
        return f"its link is down: {self._backends[backend].link.why}" if self.is_down(backend) else None

    def uplink_bytes_per_s(self, backend: str) -> float:
        """The upload rate to expect to `backend`; a default while it is unknown."""
        measured = self._get(backend)
        return measured.link.up.bytes_per_s(self._clock()) or DEFAULT_UPLINK_BYTES_PER_S

    def rtt_s(self, backend: str) -> float:
        """The smoothed round trip to `backend`; 0 while unknown."""
        return self._get(backend).link.rtt.smoothed_s

    def path_s(self, backend: str) -> float:
        """The present round trip to `backend`, as contained in its predictions; 0 while unknown."""
        return self._get(backend).link.rtt.recent_s

    def on_carrier_lost(self, backend: str) -> None:
        """The kernel has no route to `backend` any more."""
        self._get(backend).link.on_carrier_lost()

    def on_carrier_back(self, backend: str) -> None:
        """The kernel has a route to `backend` again."""
        self._get(backend).link.on_carrier_back()

    def on_demand(self, backend: str) -> None:
        """A request could go to `backend`: probes of its link keep their interval."""
        self._get(backend).link.on_demand(self._clock())

    def probe_due_s(self, backend: str, *, after_answers: bool = True) -> float:
        """Seconds until the next probe of `backend` is due; 0 or less: now. after_answers: see `Link`."""
        return self._get(backend).link.probe_due_s(self._clock(), self.probe_s, after_answers=after_answers)

    def on_probe_sent(self, backend: str) -> float:
        """A probe was sent; returns the instant. Report its answer or its failure by `observe`."""
        now = self._clock()
        self._get(backend).link.on_probe_sent(now)
        return now

    def on_probe_timeout(self, backend: str, sent_at: float, timeout_s: float) -> bool:
        """The probe sent at `sent_at` has no answer after `timeout_s`; returns whether that is a miss.

        A later answer still counts.
        """
        return self._get(backend).link.on_probe_timeout(sent_at, timeout_s, self._clock())

    def probe_timeout_s(self, backend: str) -> float:
        """Seconds after which the answer to a probe counts as missing."""
        return self._get(backend).link.probe_timeout_s(self._clock())

    def is_answering(self, backend: str) -> bool:
        """Whether no answer of `backend` is missing. If False, probes do not wait for each other."""
        return self._get(backend).link.is_answering

    # ── service times ────────────────────────────────────────────────────────────────────────────

    def learn(self, backend: str, kind: str, model: str, x: float, seconds: float) -> None:
        """Learn one service time of a piece of work of size `x`.

        At the edge that is the run time; at a remote backend, the time from the last byte sent to the result (streams:
        to the first content).
        """
        if not is_duration(seconds):
            return
        x = x if 0.0 <= x < math.inf else 0.0
        now, measured = self._clock(), self._get(backend)
        service_time = self._class(measured, kind, model)
        seconds = max(seconds - measured.link.rtt.recent_s, seconds / 10)  # less the round trip, which varies
        if service_time.samples:
            usual_s = max(service_time.usual_s(x), MIN_S)
            measured.drift.learn(math.log(seconds / usual_s), service_time.log_variance(x), now)
        service_time.learn(x, seconds / measured.drift.slowdown(now), now)
        measured.link.on_demand(now)

    def on_slot_freed(self, backend: str, kind: str, model: str, ratio: float) -> None:
        """The slot was free after `ratio` times the service time: more than 1 for a stream, which continues."""
        self._class(self._get(backend), kind, model).learn_hold(ratio)

    def on_timeout(self, backend: str, kind: str, model: str, x: float, seconds: float) -> None:
        """The work had not finished after `seconds`, a lower bound. Other failures do not measure speed."""
        if is_duration(seconds) and seconds > self.predict(backend, kind, model, x).mean_s:
            self.learn(backend, kind, model, x, min(2 * seconds, MAX_S))

    def on_passed_over(self, backend: str, kind: str, model: str) -> None:
        """A decision chose another backend, though `backend` could have served the request."""
        self._class(self._get(backend), kind, model).passes += 1

    def _class(self, measured: _BackendMeasurements, kind: str, model: str) -> ServiceTime:
        service_time = measured.classes.get((kind, model))
        if service_time is None:
            if len(measured.classes) >= MAX_CLASSES:
                del measured.classes[min(measured.classes, key=lambda k: measured.classes[k].learned_at)]
            service_time = measured.classes[kind, model] = ServiceTime()
        return service_time

    def predict(self, backend: str, kind: str, model: str, x: float) -> Estimate:
        """The seconds a piece of work of size `x` takes at `backend` once it runs there (remote: once it is sent)."""
        measured = self._get(backend)
        service_time = measured.classes.get((kind, model))
        if service_time is None or not service_time.samples:
            passes = service_time.passes if service_time is not None else 0
            optimism = TRIAL_FACTOR / (1.0 + passes / PASSES_PER_TRIAL)
            return untried(measured.prior_s, measured.link.rtt.recent_s, optimism)
        now = self._clock()
        # usual_s(x) * slowdown(now), inlined: this is half the cost of a decision.
        x = 0.0 if not x >= 0.0 else x if x < service_time.beyond else service_time.beyond
        mean_s = service_time.w0 + service_time.w1 * (x / service_time.unit)
        if mean_s < service_time.least:
            mean_s = service_time.least
        elif mean_s > service_time.most:
            mean_s = service_time.most
        if measured.drift.g:
            mean_s *= measured.drift.slowdown(now)
        is_sure = service_time.passes < SURE_PASSES and service_time.samples >= TRIAL_SAMPLES
        optimism = 1.0 if is_sure else _optimism(service_time, now)
        path_s = measured.link.rtt.recent_s
        return Estimate(
            mean_s + path_s, mean_s * service_time.to_p95 + path_s, service_time.samples, optimism, service_time.hold
        )

    # ── the device ───────────────────────────────────────────────────────────────────────────────

    def sample_load(self) -> None:
        """Read the device load. A timer calls this twice a second."""
        if self._sampler is not None:
            self._load = self._sampler.sample()

    def load(self) -> Readings:
        """The last reading: cpu, psi, mem (0 to 1) and temp_c; None if unknown."""
        return self._load

    # ── save and restore ─────────────────────────────────────────────────────────────────────────

    def save(self, hashes: Mapping[str, str]) -> dict[str, Any]:
        """The learned data, as JSON. `hashes` maps each backend to a hash of its settings."""
        return self._saved | {
            name: {
                "settings": hashes.get(name, ""),
                "uplink": measured.link.up.save(),
                "classes": [
                    [*key, service_time.save()]
                    for key, service_time in measured.classes.items()
                    if service_time.samples
                ],
            }
            for name, measured in self._backends.items()
        }

    def restore(self, saved: Any, hashes: Mapping[str, str]) -> None:
        """Take over the result of `save` for backends with unchanged settings. Call `add` for them afterwards.

        Damaged data is skipped, never raised.
        """
        for name, data in saved.items() if isinstance(saved, dict) else ():
            if name in hashes and isinstance(data, dict) and data.get("settings") == hashes[name]:
                self._saved[name] = data

    @staticmethod
    def _restore_one(backend: _BackendMeasurements, data: dict[str, Any], now: float) -> None:
        backend.link.up.restore(data.get("uplink"), now)
        classes = data.get("classes")
        for entry in classes if isinstance(classes, list) else ():
            try:
                kind, model, service_time = entry
                backend.classes[str(kind), str(model)] = ServiceTime.from_saved(service_time, now)
            except (KeyError, TypeError, ValueError, OverflowError):
                continue

    def status(self) -> dict[str, Any]:
        """All measurements, as JSON, for /status."""
        now = self._clock()
        return {"load": dict(self._load), "backends": {n: self._status_of(b, now) for n, b in self._backends.items()}}

    @staticmethod
    def _status_of(measured: _BackendMeasurements, now: float) -> dict[str, Any]:
        view = measured.link.view(now)
        return {
            "link_state": view.state,
            "link_why": measured.link.why,
            "rtt_s": view.rtt.value,
            "rtt_min_s": view.rtt_min.value,
            "tcp_rtt_s": view.tcp_rtt.value,
            "uplink_bytes_per_s": view.uplink_bytes_per_s.value,
            "downlink_bytes_per_s": view.downlink_bytes_per_s.value,
            "slowdown": measured.drift.slowdown(now),
            "classes": [
                {
                    "kind": kind,
                    "model": model,
                    "samples": service_time.samples,
                    "constant_s": service_time.w0,
                    "per_unit_s": service_time.w1 / service_time.unit,
                    "spread": math.exp(math.sqrt(service_time.variance)),
                }
                for (kind, model), service_time in measured.classes.items()
                if service_time.samples
            ],
        }


def untried(mean_s: float, path_s: float, optimism: float) -> Estimate:
    """The estimate for work without samples: a guess for the time at the backend, plus the round trip, which is known.

    Optimism shortens the part that is unknown only: no decision is based on a time below the round trip.
    """
    total_s = max(mean_s + path_s, MIN_S)
    return Estimate(total_s, GUESS_P95 * mean_s + path_s, 0, max(optimism, min(path_s / total_s, 1.0)))


def _optimism(service_time: ServiceTime, now: float) -> float:
    """The factor, at most 1, by which a decision may shorten the predicted time of a class.

    It is 0.8 with fewer than three samples. It falls further with each decision that passes the backend over, so that a
    backend that lost is tried again once a trial costs no more than a third of a percent of the time spent since: if
    it is r times slower, after 300 (r - 1) decisions, and no sooner than as many minutes.
    """
    doubt = min(service_time.passes / PASSES_PER_TRIAL, max(now - service_time.learned_at, 0.0) / TRIAL_EVERY_S)
    return (TRIAL_FACTOR if service_time.samples < TRIAL_SAMPLES else 1.0) / (1.0 + doubt)
