"""Counts attempts that were told to stop and do not: each holds a slot, and whatever its plugin holds.

A plugin in the gateway's loop has LEAKED_S to let its cancellation through. One in a worker computes on until its
deadline, or for `drain_s`, and then its process is killed; it is late only after that.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping

from gateway.dispatch.attempt import Attempt
from gateway.registry import ManagedBackend
from gateway.telemetry import log, metrics

LEAKED_S = 5.0


class Leaks:
    """Looks through the attempts whenever it is told to."""

    def __init__(self) -> None:
        self._cancelled_at: dict[asyncio.Task[None], float] = {}
        self._told: set[asyncio.Task[None]] = set()

    def look(
        self, attempts: Mapping[asyncio.Task[None], Attempt], members: Mapping[str, ManagedBackend], now: float
    ) -> None:
        """Find those that should have ended; tell of each once, and let its backend's quarantine know."""
        found: Counter[int] = Counter()  # by identity: a reload gives a name to another one
        self._cancelled_at = {
            task: self._cancelled_at.get(task, now) for task in attempts if task.cancelling() and not task.done()
        }
        self._told &= self._cancelled_at.keys()
        for task, since in self._cancelled_at.items():
            member = attempts[task].member
            if member is not None and now >= _ends_at(attempts[task], member, since) + LEAKED_S:
                found[id(member)] += 1
                self._tell(task, attempts[task], member.name)
        for name, member in members.items():
            if member.quarantine.leaked != (leaked := found[id(member)]):
                member.quarantine.leaked = leaked
                metrics.LEAKED.set(leaked, backend=name)

    def _tell(self, task: asyncio.Task[None], attempt: Attempt, backend: str) -> None:
        if task not in self._told:
            self._told.add(task)
            stack = task.get_stack(limit=1)
            where = f"{stack[-1].f_code.co_filename}:{stack[-1].f_lineno}" if stack else None
            log.error("dispatch.leaked", request_id=attempt.task.id, backend=backend, where=where)


def _ends_at(attempt: Attempt, member: ManagedBackend, cancelled_at: float) -> float:
    """By when its backend should have let go of it."""
    return max(cancelled_at, min(attempt.task.parts_deadline, cancelled_at + member.drain_s))
