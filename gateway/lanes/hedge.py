"""Second attempts for work that a remote backend, or the way there, seems to have lost.

Stalled is an upload that takes more than twice what it should, and an answer later than its 95th percentile
by a fifth. What stalls has a heavy tail: it takes as long again as it is late. On a link that is down everything
is lost; those second attempts are moves in all but name, and cost no token. Nor do those for an answer that is
later than LOST times its 95th percentile: an upstream that has gone silent must not use up the budget, and then
keep everybody waiting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from gateway.lanes.forecast import Forecast
from gateway.lanes.lane import Lane
from gateway.lanes.rebalance import Usable
from gateway.lanes.work import RunningWork
from gateway.measure.measurements import Measurements

GAIN = 0.7  # of what remains; a second attempt that takes longer than this part of it is not worth its cost
MIN_STALLED_S = 0.5
LATE_ANSWER = 1.2
LOST, MIN_LOST_S = 4.0, 3.0
RATIO, BURST = 0.02, 3.0  # the token bucket: second attempts per request, and how many may be saved up


class Hedger:
    """Watches what was sent; asks for second attempts as far as the budget goes."""

    def __init__(self, forecast: Forecast, lanes: Mapping[str, Lane], board: Measurements) -> None:
        self._forecast, self._lanes, self._board = forecast, lanes, board
        self._tokens = 1.0

    def earn(self) -> None:
        """A request came in: the budget grows."""
        self._tokens = min(self._tokens + RATIO, BURST)

    def rescue(self, usable: Usable, now: float) -> None:
        """One pass over all that runs at remote backends."""
        for lane in list(self._lanes.values()):
            if lane.remote:
                gone = self._board.is_down(lane.name)
                for run in list(lane.runs.values()):
                    if self._may_be_rescued(run):
                        self._try(run, lane, usable, math.inf if gone else self._stalled_s(run, now), now)

    @staticmethod
    def _may_be_rescued(run: RunningWork) -> bool:
        return not run.rescued and not run.answered and run.work.repeatable and run.work.duplicate is not None

    @staticmethod
    def _stalled_s(run: RunningWork, now: float) -> float:
        """Seconds stalled work still takes; 0 where it is not stalled."""
        if run.is_uploading():
            late_s = now - run.began - run.upload_s
            return late_s + run.service_s if late_s > max(MIN_STALLED_S, run.upload_s) else 0.0
        age_s = now - run.sent_by()
        return max(age_s, MIN_STALLED_S) if age_s > run.p95_s * LATE_ANSWER else 0.0

    @staticmethod
    def _is_lost(run: RunningWork, now: float) -> bool:
        return not run.is_uploading() and now - run.sent_by() > max(LOST * run.p95_s, MIN_LOST_S)

    def _try(self, run: RunningWork, lane: Lane, usable: Usable, remaining_s: float, now: float) -> None:
        price = 0.0 if remaining_s == math.inf or self._is_lost(run, now) else 1.0
        if remaining_s <= 0.0 or self._tokens < price:
            return
        best, best_s = None, GAIN * remaining_s
        for name in run.work.allowed:
            to = self._lanes.get(name)
            if to is not None and to is not lane and not to.is_full:
                there = self._forecast.candidate(run.work, name, usable(name), now)
                if there.refused is None and there.t_s < best_s:
                    best, best_s = name, there.t_s
        if best is not None and run.work.duplicate is not None and run.work.duplicate(best):
            run.rescued = True
            self._tokens -= price
