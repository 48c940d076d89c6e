"""The choice revised while work waits: it moves where its cost is clearly below what it is here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from gateway.lanes.forecast import Forecast
from gateway.lanes.lane import LOOKED_AT, Lane
from gateway.lanes.work import QueueEntry
from gateway.policy import Policy, cost_at

MIN_MOVE_S = 0.05  # a move for less is not worth a log line

Usable = Callable[[str], str | None]


class Rebalancer:
    """Finds better lines for those who wait."""

    def __init__(self, forecast: Forecast, lanes: Mapping[str, Lane], policy: Policy) -> None:
        self._forecast, self._lanes, self._policy = forecast, lanes, policy

    def moves(self, usable: Usable, now: float) -> Iterator[tuple[QueueEntry, Lane, Lane]]:
        """Each place that is better off elsewhere, with its lane and the better one. The caller moves it."""
        waiting = [lane for lane in self._lanes.values() if lane.places]
        if not waiting:
            return
        shut = {name: usable(name) for name in self._lanes}
        for lane in waiting:
            for place in lane.places[:] if shut[lane.name] else lane.places[:LOOKED_AT]:
                if place.is_waiting and len(place.work.allowed) > 1:  # a move before may have let it start
                    to = self._better(place, lane, shut, now)
                    if to is not None:
                        yield place, lane, to

    def _better(self, place: QueueEntry, lane: Lane, shut: Mapping[str, str | None], now: float) -> Lane | None:
        work, policy, candidate = place.work, self._policy, self._forecast.candidate
        slack_s = work.deadline - now
        here = candidate(work, lane.name, shut[lane.name], now, lane.index(place))
        best, best_s = None, math.inf
        if here.refused is None:
            best_s = cost_at(here, here.t_s, slack_s, policy) * policy.rebind - MIN_MOVE_S
        for name in work.allowed:
            to = self._lanes.get(name)
            if to is None or to is lane or to.is_full:
                continue
            there = candidate(work, name, shut[name], now)
            if there.refused is None and (there_s := cost_at(there, there.t_s, slack_s, policy)) < best_s:
                best, best_s = to, there_s
        return best
