"""Work that cannot be done in the client's time is refused before it starts: nobody waits for an answer that is late.

Only knowledge counts, no prior: as long as one backend that might serve has been seen too seldom, the work is let
through. So it is once every TRY_EVERY_S, or what is believed of a backend could never be proved wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from gateway.plugin import DeadlineExceeded, Task
from gateway.policy import Candidate
from gateway.telemetry import metrics

SURE_SAMPLES = 5
TRY_EVERY_S = 10.0


class Feasibility:
    """Remembers when each class of work was last let through against better knowledge."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tried: dict[tuple[str, str], float] = {}

    def check(self, task: Task, candidates: Iterable[Candidate], slack_s: float) -> None:
        """Raises the refusal, where there is one and no try is due; it is counted."""
        if (refusal := too_slow(candidates, slack_s)) is not None and not self._is_due(task):
            metrics.SHED.inc(reason="deadline")
            raise refusal

    def _is_due(self, task: Task) -> bool:
        now = self._clock()
        if now - self._tried.setdefault((task.kind, task.name), now) < TRY_EVERY_S:
            return False
        self._tried[(task.kind, task.name)] = now
        return True


def too_slow(candidates: Iterable[Candidate], slack_s: float) -> DeadlineExceeded | None:
    """The refusal, where every backend that may serve is known to need more than `slack_s`; else None."""
    allowed = [each for each in candidates if each.refused is None]
    if not allowed or any(each.t_s <= slack_s or each.samples < SURE_SAMPLES for each in allowed):
        return None
    takes = ", ".join(f"{each.name} {each.t_s:.3g} s" for each in allowed)
    return DeadlineExceeded(f"this would take too long ({takes}), and {slack_s:.3g} s are left for it", began=False)
