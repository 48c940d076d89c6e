"""How long to wait for one attempt, so that another can still be made after it."""

from __future__ import annotations

import time

from gateway.dispatch.planner import Plan
from gateway.policy import Decision

PATIENCE = 4.0  # an attempt that could be made elsewhere is given this many predicted times, at least
PATIENCE_SHARE = 0.5  # or this share of the time that is left, whichever is more
RESERVE = 2.0  # what is left for the next one: so many times what it needs,
RESERVE_SHARE = 0.1  # and at least this share of the time


def patience(plan: Plan, until: float) -> float:
    """How long to wait for this attempt: to the end, or less where another could still be made after it."""
    if len(plan.decision.order) < 2 or not plan.work.repeatable:
        return until
    now = time.monotonic()
    left_s = until - now
    min_s = max(PATIENCE_SHARE * left_s, PATIENCE * (plan.decision.predicted_s or 0.0))
    return min(now + min_s, until - _reserve_s(plan.decision, left_s))


def patience_rescued(plan: Plan, until: float) -> float:
    """The same once two are at work: to the end, or where there is a third one, half of what is left."""
    now = time.monotonic()
    return until if len(plan.decision.order) < 3 else now + PATIENCE_SHARE * (until - now)


def _reserve_s(decision: Decision, left_s: float) -> float:
    """Seconds to leave for whoever is asked after this attempt; 0 where nobody can be done in half of the time left.

    However long this attempt may take by what was learned: a backend that hangs teaches that it takes long.
    """
    next_ones = [ranked[-1] for ranked in decision.ranked[1:]]
    half_s = (1 - PATIENCE_SHARE) * left_s
    if any(each.samples == 0 for each in next_ones):
        return half_s
    needs_s = max(RESERVE * min(each.wait_s + each.upload_s + each.p95_s for each in next_ones), RESERVE_SHARE * left_s)
    return needs_s if needs_s < half_s else 0.0
