"""The board: everything measured, in one place, readable at any instant.

Samples come in from dispatch and from backends; predictions go out to lanes, the log and /status. The board
never raises on a bad sample and never does I/O but the load sampler's. It holds no wall time, so the same
board runs live and on a simulation's virtual clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from gateway.measure.link import FIRST_UPLINK_BYTES_PER_S, Change, Link, LinkView, Measured
from gateway.measure.load import UNKNOWN, Readings
from gateway.measure.service_time import MAX_S, MIN_S, Drift, Estimate, ServiceTime, is_duration
from gateway.plugin import LinkSample

__all__ = ["Change", "Estimate", "LinkView", "Measured", "Measurements", "Sampler"]

PRIOR_EDGE_S, PRIOR_CLOUD_S = 0.2, 0.3
DRIFT_EDGE_PER_S, DRIFT_CLOUD_PER_S = 0.004, 0.001
MAX_CLASSES = 4096
TRIAL_SAMPLES, TRIAL_FACTOR = 3, 0.8
PASSES_PER_TRIAL, TRIAL_EVERY_S, SURE_PASSES = 300, 60.0, 15


class Sampler(Protocol):
    """Whatever reads the device's load."""

    def sample(self) -> Readings:
        """What it reads now."""
        ...


class _Backend:
    """What the board holds of one backend."""

    __slots__ = ("classes", "drift", "link", "prior_s")

    def __init__(self, remote: bool, link: Link) -> None:
        self.prior_s = PRIOR_CLOUD_S if remote else PRIOR_EDGE_S
        self.drift = Drift(DRIFT_CLOUD_PER_S if remote else DRIFT_EDGE_PER_S)
        self.link = link
        self.classes: dict[tuple[str, str], ServiceTime] = {}


class Measurements:
    """Everything measured. `clock` gives monotonic seconds; `on_link(backend, change)` hears of link states."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        sampler: Sampler | None = None,
        probe_s: float = 1.0,
        on_link: Callable[[str, Change], None] = lambda backend, change: None,
    ) -> None:
        self._clock = clock
        self._sampler = sampler
        self._load: Readings = dict(UNKNOWN)
        self._backends: dict[str, _Backend] = {}
        self._saved: dict[str, dict[str, Any]] = {}  # of backends that were not added yet
        self.probe_s = probe_s
        self.on_link = on_link

    # ── who is measured ──────────────────────────────────────────────────────────────────────────

    def add(self, backend: str, *, remote: bool) -> None:
        """Measure `backend` from now on; what is known of one by that name, or was saved, stays."""
        if backend in self._backends:
            return
        link = Link(self._clock(), lambda change: self.on_link(backend, change))
        found = self._backends[backend] = _Backend(remote, link)
        self._restore_one(found, self._saved.pop(backend, {}), self._clock())

    def remove(self, backend: str) -> None:
        """Forget `backend`."""
        self._backends.pop(backend, None)
        self._saved.pop(backend, None)

    def _of(self, backend: str) -> _Backend:
        """What is held of it; of one that is not measured, nothing, and what is learned of it is lost."""
        return self._backends.get(backend) or _Backend(False, Link(self._clock(), lambda change: None))

    # ── the network ──────────────────────────────────────────────────────────────────────────────

    def observe(self, backend: str, sample: LinkSample) -> None:
        """Learn from what a backend saw of its network. Impossible values are ignored."""
        self._of(backend).link.observe(sample, self._clock())

    def link(self, backend: str) -> LinkView:
        """The link to `backend` now."""
        return self._of(backend).link.view(self._clock())

    def is_down(self, backend: str) -> bool:
        """Whether nothing sent there now would arrive."""
        found = self._backends.get(backend)
        return found is not None and found.link.state == "down"

    def uplink_bytes_per_s(self, backend: str) -> float:
        """The rate to reckon with for uploads to `backend`, known or not."""
        found = self._of(backend)
        return found.link.up.bytes_per_s(self._clock()) or FIRST_UPLINK_BYTES_PER_S

    def rtt_s(self, backend: str) -> float:
        """The smoothed round trip to `backend`; 0 while unknown."""
        return self._of(backend).link.rtt.smoothed_s

    def carrier_lost(self, backend: str) -> None:
        """The kernel says that the way to `backend` is gone."""
        self._of(backend).link.carrier_lost()

    def carrier_back(self, backend: str) -> None:
        """The kernel says that there is a way to `backend` again."""
        self._of(backend).link.carrier_back()

    def note_traffic(self, backend: str) -> None:
        """Somebody has work that could go to `backend`: probes keep their pace."""
        self._of(backend).link.wanted(self._clock())

    def probe_due_s(self, backend: str) -> float:
        """Seconds until `backend` is to be probed; 0 or less: now."""
        return self._of(backend).link.probe_due_s(self._clock(), self.probe_s)

    def probe_sent(self, backend: str) -> None:
        """A probe is on its way; its answer, or its failure, comes by `observe`."""
        self._of(backend).link.asked(self._clock())

    def probe_timeout_s(self, backend: str) -> float:
        """How long a probe's answer may take before it counts as missing."""
        return self._of(backend).link.probe_timeout_s()

    # ── service times ────────────────────────────────────────────────────────────────────────────

    def learn(self, backend: str, kind: str, model: str, x: float, seconds: float) -> None:
        """One service time: the edge's run time; a remote's last byte sent to result (streams: first content)."""
        if not is_duration(seconds):
            return
        x = x if 0.0 <= x < math.inf else 0.0
        now, found = self._clock(), self._of(backend)
        known = self._class(found, kind, model)
        seconds = max(seconds - found.link.rtt.recent_s, seconds / 10)  # the path's share changes with the path
        if known.samples:
            usual_s = max(known.usual_s(x), MIN_S)
            found.drift.learn(math.log(seconds / usual_s), known.log_variance(x), now)
        known.learn(x, seconds / found.drift.slowdown(now), now)
        found.link.wanted(now)

    def held(self, backend: str, kind: str, model: str, ratio: float) -> None:
        """A slot was free again after `ratio` times what its answer took: streams go on."""
        self._class(self._of(backend), kind, model).held(ratio)

    def timed_out(self, backend: str, kind: str, model: str, x: float, seconds: float) -> None:
        """It had not finished after `seconds`: it takes at least that long. Other failures teach no speed."""
        if is_duration(seconds) and seconds > self.predict(backend, kind, model, x).mean_s:
            self.learn(backend, kind, model, x, min(2 * seconds, MAX_S))

    def passed_over(self, backend: str, kind: str, model: str) -> None:
        """A decision went elsewhere, though `backend` could have served it."""
        self._class(self._of(backend), kind, model).passes += 1

    def _class(self, found: _Backend, kind: str, model: str) -> ServiceTime:
        known = found.classes.get((kind, model))
        if known is None:
            if len(found.classes) >= MAX_CLASSES:
                del found.classes[min(found.classes, key=lambda k: found.classes[k].at)]
            known = found.classes[kind, model] = ServiceTime()
        return known

    def predict(self, backend: str, kind: str, model: str, x: float) -> Estimate:
        """Seconds a piece of work of size `x` takes at `backend` once it runs there (remote: is sent)."""
        found = self._of(backend)
        known = found.classes.get((kind, model))
        if known is None or not known.samples:
            passes = known.passes if known is not None else 0
            return Estimate(found.prior_s, found.prior_s * 3, 0, TRIAL_FACTOR / (1.0 + passes / PASSES_PER_TRIAL))
        now = self._clock()
        # Written out, for this is half of what a decision costs: usual_s(x) * slowdown(now).
        x = 0.0 if not x >= 0.0 else x if x < known.beyond else known.beyond
        mean_s = known.w0 + known.w1 * (x / known.unit)
        if mean_s < known.least:
            mean_s = known.least
        elif mean_s > known.most:
            mean_s = known.most
        if found.drift.g:
            mean_s *= found.drift.slowdown(now)
        is_sure = known.passes < SURE_PASSES and known.samples >= TRIAL_SAMPLES
        optimism = 1.0 if is_sure else _optimism(known, now)
        path_s = found.link.rtt.recent_s
        return Estimate(mean_s + path_s, mean_s * known.to_p95 + path_s, known.samples, optimism, known.hold)

    # ── the device ───────────────────────────────────────────────────────────────────────────────

    def sample_load(self) -> None:
        """Take one reading; a timer's business, twice a second."""
        if self._sampler is not None:
            self._load = self._sampler.sample()

    def load(self) -> Readings:
        """The last reading: cpu, psi, mem (0 to 1), temp_c; None where unknown."""
        return self._load

    # ── over a restart ───────────────────────────────────────────────────────────────────────────

    def save(self, hashes: Mapping[str, str]) -> dict[str, Any]:
        """What was learned, as JSON; `hashes` maps each backend to a hash of its settings."""
        return self._saved | {
            name: {
                "settings": hashes.get(name, ""),
                "uplink": found.link.up.save(),
                "classes": [[*key, known.save()] for key, known in found.classes.items() if known.samples],
            }
            for name, found in self._backends.items()
        }

    def restore(self, saved: Any, hashes: Mapping[str, str]) -> None:
        """Take back what `save` gave, for backends whose settings are the same; `add` them after that.

        Damage is skipped, never raised.
        """
        for name, kept in saved.items() if isinstance(saved, dict) else ():
            if name in hashes and isinstance(kept, dict) and kept.get("settings") == hashes[name]:
                self._saved[name] = kept

    @staticmethod
    def _restore_one(found: _Backend, kept: dict[str, Any], now: float) -> None:
        found.link.up.restore(kept.get("uplink"), now)
        classes = kept.get("classes")
        for entry in classes if isinstance(classes, list) else ():
            try:
                kind, model, known = entry
                found.classes[str(kind), str(model)] = ServiceTime.restored(known, now)
            except (KeyError, TypeError, ValueError, OverflowError):
                continue

    def status(self) -> dict[str, Any]:
        """Everything, as JSON, for /status."""
        now = self._clock()
        return {"load": dict(self._load), "backends": {n: self._status_of(b, now) for n, b in self._backends.items()}}

    @staticmethod
    def _status_of(found: _Backend, now: float) -> dict[str, Any]:
        view = found.link.view(now)
        return {
            "link_state": view.state,
            "link_why": found.link.why,
            "rtt_s": view.rtt.value,
            "rtt_min_s": view.rtt_min.value,
            "tcp_rtt_s": view.tcp_rtt.value,
            "uplink_bytes_per_s": view.uplink_bytes_per_s.value,
            "downlink_bytes_per_s": view.downlink_bytes_per_s.value,
            "slowdown": found.drift.slowdown(now),
            "classes": [
                {
                    "kind": kind,
                    "model": model,
                    "samples": known.samples,
                    "constant_s": known.w0,
                    "per_unit_s": known.w1 / known.unit,
                    "spread": math.exp(math.sqrt(known.variance)),
                }
                for (kind, model), known in found.classes.items()
                if known.samples
            ],
        }


def _optimism(known: ServiceTime, now: float) -> float:
    """How much benefit of the doubt a class deserves.

    With fewer than three samples, a fifth. A known loser is tried again once it was passed over so often
    that a try costs no more than a third of a percent of what was spent since: one that is r times slower
    after 300 (r - 1) decisions, and no sooner than as many minutes.
    """
    doubt = min(known.passes / PASSES_PER_TRIAL, max(now - known.at, 0.0) / TRIAL_EVERY_S)
    return (TRIAL_FACTOR if known.samples < TRIAL_SAMPLES else 1.0) / (1.0 + doubt)
