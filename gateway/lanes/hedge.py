"""Hedges: second attempts for work that a remote backend, or the network to it, seems to have lost.

Stalled means an upload that takes more than twice its predicted time, or an answer later than its 95th percentile by a
fifth. The delay of stalled work has a heavy tail: it is predicted to last as long again as it is late. On a link that
is down all work is lost; its hedges are in effect moves, and cost no token. Hedges for an answer later than LOST times
its 95th percentile are also free: an upstream that has gone silent must not use up the budget and then delay every
other request.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from gateway.lanes.forecast import Forecast
from gateway.lanes.lane import Lane
from gateway.lanes.rebalance import WhyExcluded
from gateway.lanes.work import RunningWork
from gateway.measure.measurements import Measurements

GAIN = 0.7  # a hedge that takes longer than this share of the remaining time is not worth its cost
MIN_STALLED_S = 0.5
LATE_ANSWER = 1.2
LOST, MIN_LOST_S = 4.0, 3.0
RATIO, BURST = 0.02, 3.0  # the token bucket: hedges per request, and the most that are saved up


class Hedger:
    """Watches running work and requests hedges within the budget."""

    def __init__(
        self,
        forecast: Forecast,
        lanes: Mapping[str, Lane],
        measurements: Measurements,
        why_excluded: WhyExcluded,
    ) -> None:
        self._forecast, self._lanes, self._measurements = forecast, lanes, measurements
        self._why_excluded = why_excluded
        self._tokens = 1.0

    def add_tokens(self) -> None:
        """Add the share of one request to the budget."""
        self._tokens = min(self._tokens + RATIO, BURST)

    def hedge_stalled(self, now: float) -> None:
        """Look once at all work that runs at remote backends, and hedge what has stalled."""
        for lane in list(self._lanes.values()):
            if lane.remote:
                is_down = self._measurements.is_down(lane.name)
                for run in list(lane.runs.values()):
                    if self._can_be_hedged(run):
                        self._try(run, lane, math.inf if is_down else self._stalled_s(run, now), now)

    @staticmethod
    def _can_be_hedged(run: RunningWork) -> bool:
        return not run.is_hedged and not run.is_answered and run.work.repeatable and len(run.work.allowed) > 1

    @staticmethod
    def _stalled_s(run: RunningWork, now: float) -> float:
        """Return the seconds that stalled work still takes; 0 if it has not stalled."""
        if run.is_uploading():
            late_s = now - run.began - run.upload_s
            return late_s + run.service_s if late_s > max(MIN_STALLED_S, run.upload_s) else 0.0
        age_s = now - run.last_byte_at()
        return max(age_s, MIN_STALLED_S) if age_s > run.p95_s * LATE_ANSWER else 0.0

    @staticmethod
    def _is_lost(run: RunningWork, now: float) -> bool:
        return not run.is_uploading() and now - run.last_byte_at() > max(LOST * run.p95_s, MIN_LOST_S)

    def _try(self, run: RunningWork, lane: Lane, remaining_s: float, now: float) -> None:
        price = 0.0 if remaining_s == math.inf or self._is_lost(run, now) else 1.0
        if remaining_s <= 0.0 or self._tokens < price:
            return
        best, best_s = None, GAIN * remaining_s
        for name in run.work.allowed:
            to = self._lanes.get(name)
            if to is not None and to is not lane and not to.is_full:
                there = self._forecast.candidate(run.work, name, self._why_excluded(name), now)
                if there.refused is None and there.t_s < best_s:
                    best, best_s = name, there.t_s
        if best is not None and run.owner.on_stalled(best):
            run.is_hedged = True
            self._tokens -= price
