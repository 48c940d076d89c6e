"""Refuses work that cannot be done in the client's time before it starts, so that no client waits for a late answer.

Only measurements count, not priors: work is admitted as long as one backend that may serve it has too few samples.
Work is also admitted once every TRY_EVERY_S, because otherwise a wrong prediction could never be corrected.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from gateway.plugin import DeadlineExceeded, Task
from gateway.policy import Candidate
from gateway.telemetry import metrics

SURE_SAMPLES = 5
TRY_EVERY_S = 10.0


class DeadlineCheck:
    """Remembers when each class of work was last admitted in spite of its predictions."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tried_at: dict[tuple[str, str], float] = {}

    def check(self, task: Task, candidates: Iterable[Candidate], slack_s: float) -> None:
        """Raise DeadlineExceeded, and count it, if every backend is too slow and no try is due."""
        if (refusal := too_slow(candidates, slack_s)) is not None and not self._is_try_due(task):
            metrics.SHED.inc(reason="deadline")
            raise refusal

    def _is_try_due(self, task: Task) -> bool:
        now = self._clock()
        if now - self._tried_at.setdefault((task.kind, task.name), now) < TRY_EVERY_S:
            return False
        self._tried_at[(task.kind, task.name)] = now
        return True


def too_slow(candidates: Iterable[Candidate], slack_s: float) -> DeadlineExceeded | None:
    """Return the refusal if every allowed backend is known to need more than `slack_s`, else None."""
    allowed = [each for each in candidates if each.refused is None]
    if not allowed or any(each.t_s <= slack_s or each.samples < SURE_SAMPLES for each in allowed):
        return None
    takes = ", ".join(f"{each.name} {each.t_s:.3g} s" for each in allowed)
    return DeadlineExceeded(f"this would take too long ({takes}), and {slack_s:.3g} s are left for it", began=False)
