"""Predicts the times of work at each backend, from the contents of the lanes and the measurements."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping

from gateway.lanes.lane import Lane
from gateway.lanes.work import AGING, Work
from gateway.measure.measurements import Estimate, Measurements, untried
from gateway.policy import Candidate

MAX_BUSY_PERIOD_S = 30.0
WINDOW_LIMITED_RTTS = 4.0


class Forecast:
    """Reads lanes and measurements, and changes neither. Makes every candidate, for decisions and for /explain."""

    def __init__(self, measurements: Measurements, lanes: Mapping[str, Lane], clock: Callable[[], float]) -> None:
        self._measurements, self._lanes, self._clock = measurements, lanes, clock

    def candidate(self, work: Work, name: str, refused: str | None, now: float, ahead: int | None = None) -> Candidate:
        """Return the predictions for `work` at `name`.

        refused: why the backend is excluded, or None. ahead: the entries before the work, if it is queued there.
        """
        lane = self._lanes.get(name)
        if lane is None:
            return Candidate(name, "edge", refused or "it is not open")
        if refused is not None:
            return Candidate(name, lane.site, refused)
        service_s, p95_s, samples, optimism, hold = self.service(work, name)
        held_s = service_s * hold
        if ahead is None:
            ahead = bisect_left(lane.keys, held_s + AGING * now) if lane.entries else 0
        wait_s = lane.slot_wait_s(ahead, now)
        if lane.remote:
            upload_s, own_s = self._upload(lane, work.body_bytes, ahead, now)
            busy_s, mine_s = upload_s, own_s
        else:
            upload_s, busy_s, mine_s = 0.0, wait_s + held_s, held_s / lane.slots
        arrivals_per_s, utilisation = lane.pressure(now)
        # The delay added to others: each arrival during the busy period waits longer by the time that this work takes.
        others_s = arrivals_per_s * min(busy_s, MAX_BUSY_PERIOD_S) * mine_s
        return Candidate(
            name, lane.site, None, wait_s, upload_s, service_s, p95_s, samples,
            lane.usd, lane.watts * held_s, others_s, utilisation, optimism,
        )  # fmt: skip

    def _upload(self, lane: Lane, nbytes: int, ahead: int, now: float) -> tuple[float, float]:
        """Return the seconds until the last of `nbytes` has left, and the share of these bytes in them."""
        rate = self._measurements.uplink_bytes_per_s(lane.name)
        own_s = nbytes / rate
        ahead_s = lane.unsent_s(rate, now) if lane.runs else 0.0
        if ahead:
            ahead_s += lane.sizes.before(ahead, now) / rate
        return ahead_s + own_s, own_s

    def upload_s(self, lane: Lane, nbytes: int, now: float) -> float:
        """Return the seconds until the last of `nbytes` would have left if they were sent now."""
        return self._upload(lane, nbytes, 0, now)[0] if lane.remote else 0.0

    def permits(self, lane: Lane, nbytes: int) -> int:
        """Return how many large uploads may run at once: one, or two if one cannot fill the path.

        An upload that takes less than four round trips is limited by its own congestion window and not by
        the link: a second upload at the same time does not slow it down.
        """
        rtt_s = self._measurements.rtt_s(lane.name)
        if not rtt_s:
            return 1
        return 2 if nbytes < WINDOW_LIMITED_RTTS * rtt_s * self._measurements.uplink_bytes_per_s(lane.name) else 1

    def service(self, work: Work, name: str) -> Estimate:
        """Return the service time at `name`: its plugin's estimate, the learned one, or a guess."""
        model, size = work.models.get(name, work.name), work.sizes.get(name, 0.0)
        learned = self._measurements.predict(name, work.kind, model, size)
        if work.estimates and name in work.estimates:
            mean_s = max(work.estimates[name], 0.0)
            return Estimate(mean_s, max(learned.p95_s, mean_s), max(learned.samples, 1), hold=learned.hold)
        return learned if learned.samples else self._guess(work, name, learned)

    def _guess(self, work: Work, name: str, prior: Estimate) -> Estimate:
        """Guess for unmeasured work: its time at another backend, but at least the age of such work running here.

        Both round trips are known: the other backend's is left out, and this backend's is added.
        """
        path_s = self._measurements.path_s(name)
        mean_s = prior.mean_s - path_s
        for other in work.models:
            known = self._measurements.predict(other, work.kind, work.model(other), work.size(other))
            if known.samples:
                mean_s = max(known.mean_s - self._measurements.path_s(other), 0.0)
                break
        now, oldest_s = self._clock(), 0.0
        for run in self._lanes[name].runs.values():
            if run.work.kind == work.kind and run.work.name == work.name:
                oldest_s = max(oldest_s, now - run.began)
        mean_s = max(mean_s, oldest_s - path_s)
        return untried(mean_s, path_s, prior.optimism)
