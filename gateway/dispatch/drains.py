"""Attempts that drain: cancelled, but their worker still computes, and so no client waits for what their slot does.

A request counts for its API key until all its attempts, and those of its subtasks, have freed their slots. Otherwise a
client that hangs up again and again would hold any number of slots.

A drained worker keeps its loaded model, so it is left alone while its slot is not needed. Once other requests wait for
the backend, or for the key, the computation has GRACE_S from its cancellation; then its worker is replaced.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from gateway.admit import Caller
from gateway.dispatch.attempt import Attempt
from gateway.lanes import Scheduler
from gateway.registry import ManagedBackend
from gateway.telemetry import log, metrics

GRACE_S = 3.0
LOGGED_AFTER_S = 1.0  # most computations end sooner after their cancellation


@dataclass(slots=True)
class _OpenRequest:
    """A request that has ended for its client. running: its attempts that have not ended."""

    caller: Caller
    running: set[asyncio.Task[None]]


class DrainMonitor:
    """Releases callers when their attempts have ended, and replaces workers that drain while others wait."""

    def __init__(self, attempts: Mapping[asyncio.Task[None], Attempt], scheduler: Scheduler) -> None:
        self._attempts, self._scheduler = attempts, scheduler
        self._roots: dict[asyncio.Task[None], str] = {}  # the request of each attempt at a subtask
        self._open: dict[asyncio.Task[None], _OpenRequest] = {}
        self._cancelled_at: dict[asyncio.Task[None], float] = {}
        self._logged: set[asyncio.Task[None]] = set()

    def add_subtask(self, running: asyncio.Task[None], parent_id: str) -> None:
        """Count an attempt at a subtask for the request that it belongs to."""
        parent = next((task for task, attempt in self._attempts.items() if attempt.task.id == parent_id), None)
        self._roots[running] = parent_id if parent is None else self._roots.get(parent, parent_id)
        running.add_done_callback(self._roots.pop)

    def release(self, caller: Caller, request_id: str) -> None:
        """Count the request out for its key: now, or when its last attempt has ended."""
        running = {
            task
            for task, attempt in self._attempts.items()
            if self._roots.get(task, attempt.task.id) == request_id and not task.done()
        }
        if not running:
            caller.release()
            return
        request = _OpenRequest(caller, running)
        for task in running:
            self._open[task] = request
            task.add_done_callback(self._on_ended)

    def _on_ended(self, task: asyncio.Task[None]) -> None:
        request = self._open.pop(task)
        request.running.discard(task)
        if not request.running:
            request.caller.release()

    def check(self, backends: Mapping[str, ManagedBackend], now: float) -> None:
        """Look at all attempts once: log, count, and replace workers. Call it regularly."""
        found: Counter[str] = Counter()
        self._cancelled_at = {
            task: self._cancelled_at.get(task, now) for task in self._attempts if task.cancelling() and not task.done()
        }
        self._logged &= self._cancelled_at.keys()
        for task, since in self._cancelled_at.items():
            attempt, backend = self._attempts[task], self._attempts[task].member
            if backend is None:
                continue
            found[backend.name] += 1
            if now - since >= LOGGED_AFTER_S and task not in self._logged:
                self._logged.add(task)
                log.info("dispatch.draining", request_id=attempt.task.id, backend=backend.name)
            if now - since >= GRACE_S and self._is_needed(task, backend.name):
                backend.end_cancelled(attempt.task.id)
        for name in backends:
            metrics.DRAINING.set(found[name], backend=name)

    def _is_needed(self, task: asyncio.Task[None], backend: str) -> bool:
        request = self._open.get(task)
        is_needed_by_key = request is not None and request.caller.has_refused
        return is_needed_by_key or self._scheduler.waiting().get(backend, 0) > 0
