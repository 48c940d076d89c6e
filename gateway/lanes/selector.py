"""Chooses a backend for work, from the forecasts of all lanes, under the operator's policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gateway.lanes.forecast import Forecast
from gateway.lanes.work import Work
from gateway.policy import Candidate, Decision, Policy, Query, decide

MAX_REMEMBERED = 1024


class Selector:
    """Decides where work should go; queues and runs nothing. Remembers the last choice for each class of work."""

    def __init__(self, forecast: Forecast, policy: Policy, clock: Callable[[], float]) -> None:
        self.policy = policy
        self._forecast, self._clock = forecast, clock
        self._last: dict[tuple[str, str], str] = {}

    def set_policy(self, policy: Policy) -> None:
        """Decide by this policy from now on."""
        self.policy = policy

    def choose(self, work: Work, query: Query, refused: Mapping[str, str | None]) -> Decision:
        """Decide among the backends in `refused`, which maps each to why it is excluded, or to None."""
        last = self._last.get((work.kind, work.name))
        return decide(query, self.candidates(work, refused), self.policy, last)

    def candidates(self, work: Work, refused: Mapping[str, str | None]) -> list[Candidate]:
        """Return the predictions for `work` at each backend in `refused`."""
        now, forecast = self._clock(), self._forecast.candidate
        return [forecast(work, name, reason, now) for name, reason in refused.items()]

    def remember(self, work: Work, backend: str) -> None:
        """Record that `backend` was chosen for this class of work."""
        if len(self._last) >= MAX_REMEMBERED:
            self._last.clear()
        self._last[work.kind, work.name] = backend
