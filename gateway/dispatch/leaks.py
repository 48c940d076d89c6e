"""Counts leaked attempts: cancelled, but still running. Each holds a slot, and whatever its plugin holds.

A plugin in the gateway's loop has LEAKED_S to end after its cancellation. A plugin in a worker process may compute for
`drain_s`, and then its process is killed; it counts as leaked only after that.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping

from gateway.dispatch.attempt import Attempt
from gateway.registry import ManagedBackend
from gateway.telemetry import log, metrics

LEAKED_S = 5.0


class LeakDetector:
    """Finds leaked attempts; logs each once and reports their number to the backend's quarantine."""

    def __init__(self) -> None:
        self._cancelled_at: dict[asyncio.Task[None], float] = {}
        self._logged: set[asyncio.Task[None]] = set()

    def check(
        self, attempts: Mapping[asyncio.Task[None], Attempt], backends: Mapping[str, ManagedBackend], now: float
    ) -> None:
        """Look at all attempts once."""
        found: Counter[int] = Counter()  # by identity: a reload gives a name to another backend
        self._cancelled_at = {
            task: self._cancelled_at.get(task, now) for task in attempts if task.cancelling() and not task.done()
        }
        self._logged &= self._cancelled_at.keys()
        for task, since in self._cancelled_at.items():
            backend = attempts[task].member
            if backend is not None and now >= since + backend.drain_s + LEAKED_S:
                found[id(backend)] += 1
                self._log_once(task, attempts[task], backend.name)
        for name, backend in backends.items():
            if backend.quarantine.leaked != (leaked := found[id(backend)]):
                backend.quarantine.leaked = leaked
                metrics.LEAKED.set(leaked, backend=name)

    def _log_once(self, task: asyncio.Task[None], attempt: Attempt, backend: str) -> None:
        if task not in self._logged:
            self._logged.add(task)
            stack = task.get_stack(limit=1)
            where = f"{stack[-1].f_code.co_filename}:{stack[-1].f_lineno}" if stack else None
            log.error("dispatch.leaked", request_id=attempt.task.id, backend=backend, where=where)
