"""The choice revised while work waits: it moves where its cost is clearly below what it is here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

from gateway.decide.policy import Policy, Query, cost_s
from gateway.lanes.forecast import Forecast
from gateway.lanes.lane import LOOKED_AT, Lane
from gateway.lanes.work import Place

MOVE_LEAST_S = 0.05  # a move for less is not worth a log line

Usable = Callable[[str], str | None]


class Rebinding:
    """Finds better lines for those who wait."""

    def __init__(self, forecast: Forecast, lanes: Mapping[str, Lane], policy: Policy) -> None:
        self._forecast, self._lanes, self._policy = forecast, lanes, policy

    def moves(self, usable: Usable, now: float) -> Iterator[tuple[Place, Lane, Lane]]:
        """Each place that is better off elsewhere, with its lane and the better one. The caller moves it."""
        for lane in list(self._lanes.values()):
            shut = usable(lane.name) if lane.places else None
            for place in lane.places[:] if shut else lane.places[:LOOKED_AT]:
                if len(place.work.allowed) > 1:
                    to = self._better(place, lane, shut, usable, now)
                    if to is not None:
                        yield place, lane, to

    def _better(self, place: Place, lane: Lane, shut: str | None, usable: Usable, now: float) -> Lane | None:
        work = place.work
        query = Query(work.kind, work.name, work.deadline - now, work.client_deadline)
        here = self._forecast.candidate(work, lane.name, shut, now, place.key)
        best, best_s = None, math.inf
        if here.refused is None:
            best_s = cost_s(here, query, self._policy) * self._policy.rebind - MOVE_LEAST_S
        for name in work.allowed:
            to = self._lanes.get(name)
            if to is None or to is lane or len(to.places) >= max(to.queue, 1):
                continue
            there = self._forecast.candidate(work, name, usable(name), now)
            if there.refused is None and (there_s := cost_s(there, query, self._policy)) < best_s:
                best, best_s = to, there_s
        return best
