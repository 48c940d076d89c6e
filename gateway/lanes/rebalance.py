"""Revises the choice while work waits: queued work moves where its cost is clearly lower."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from gateway.lanes.forecast import Forecast
from gateway.lanes.lane import LOOKAHEAD, Lane
from gateway.lanes.work import QueueEntry
from gateway.policy import Policy, cost_at

MIN_MOVE_S = 0.05  # a smaller gain is not worth a log line

# Returns why a backend may not receive work now, or None.
WhyExcluded = Callable[[str], str | None]


class Rebalancer:
    """Finds better lanes for queued work."""

    def __init__(self, forecast: Forecast, lanes: Mapping[str, Lane], why_excluded: WhyExcluded) -> None:
        self._forecast, self._lanes, self._why_excluded = forecast, lanes, why_excluded

    def moves(self, policy: Policy, now: float) -> Iterator[tuple[QueueEntry, Lane, Lane]]:
        """Yield each entry to move, with its lane and the better one. The caller moves it."""
        waiting = [lane for lane in self._lanes.values() if lane.entries]
        if not waiting:
            return
        excluded = {name: self._why_excluded(name) for name in self._lanes}
        for lane in waiting:
            for entry in lane.entries[:] if excluded[lane.name] else lane.entries[:LOOKAHEAD]:
                if entry.is_waiting and len(entry.work.allowed) > 1:  # an earlier move may have let it start
                    to = self._better_lane(entry, lane, excluded, policy, now)
                    if to is not None:
                        yield entry, lane, to

    def _better_lane(
        self, entry: QueueEntry, lane: Lane, excluded: Mapping[str, str | None], policy: Policy, now: float
    ) -> Lane | None:
        work, candidate = entry.work, self._forecast.candidate
        slack_s = work.deadline - now
        here = candidate(work, lane.name, excluded[lane.name], now, lane.index(entry))
        best, best_s = None, math.inf
        if here.refused is None:
            best_s = cost_at(here, here.t_s, slack_s, policy) * policy.rebind - MIN_MOVE_S
        for name in work.allowed:
            to = self._lanes.get(name)
            if to is None or to is lane or to.is_full:
                continue
            there = candidate(work, name, excluded[name], now)
            if there.refused is None and (there_s := cost_at(there, there.t_s, slack_s, policy)) < best_s:
                best, best_s = to, there_s
        return best
