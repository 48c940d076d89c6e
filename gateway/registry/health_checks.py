"""The health checks of one backend: when they run, how long they may take, and what their outcome changes.

A check without a result in time is a miss for the link. At a remote backend that is its only effect: the state of the
link excludes the backend, and any answer ends that. The check continues, because a late answer is an answer, and the
next check is started beside it: on a path that was dead, an old connection may wait longer for its retransmission than
a new one needs. When a check has a result, the older ones are cancelled. Elsewhere one check runs at a time, and is
cancelled at its timeout.
"""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.measure.link_state import MAX_PROBE_S
from gateway.measure.measurements import Measurements
from gateway.plugin.errors import is_own_cancellation
from gateway.registry.managed_backend import ManagedBackend, public_error
from gateway.telemetry import log, log_task_failure

MIN_PAUSE_S = 0.01
MAX_PAUSE_S = 0.25  # demand for an idle backend advances its next probe; this is how late that is noticed
MAX_LATE = 3  # checks that may continue after their timeout while the backend answers
CANCEL_S = 1.0


class HealthChecks:
    """Runs the health checks of one open backend. Close it before the backend.

    pending: the checks that have neither a result nor timed out.
    """

    def __init__(self, managed: ManagedBackend, measurements: Measurements) -> None:
        self._managed, self._measurements = managed, measurements
        self._may_overlap = managed.is_remote and not managed.has_workers
        self._late: list[asyncio.Task[str | None]] = []  # calls of the plugin that have timed out, oldest first
        self.pending: set[asyncio.Task[None]] = set()

    async def run_if_due(self) -> float | None:
        """Run a check if one is due, or start one that may overlap. Returns seconds until the next call; None: never.

        The first call returns after the first check has a result or has timed out.
        """
        name, is_first = self._managed.name, not self._managed.opening_done.is_set()
        if not self._managed.has_health_check:
            return None
        if self._measurements.is_answering(name) and (self.pending or len(self._late) >= MAX_LATE):
            return MAX_PAUSE_S
        if is_first or self._due_s() <= 0:
            if self._may_overlap:
                check = log_task_failure(asyncio.create_task(self._check(), name=f"health check of {name}"))
                self.pending.add(check)
                check.add_done_callback(self.pending.discard)
                if is_first:
                    await asyncio.wait({check})
            else:
                await self._check_alone()
        return min(max(MIN_PAUSE_S, self._due_s()), MAX_PAUSE_S)

    async def close(self) -> None:
        """Cancel all checks, and wait up to CANCEL_S for their end."""
        running: set[asyncio.Task[Any]] = {*self.pending, *self._late}
        for each in running:
            each.cancel()
        if running:
            await asyncio.wait(running, timeout=CANCEL_S)

    def _due_s(self) -> float:
        """Answers of requests do not postpone a check that may end the backend's exclusion."""
        has_fault = self._managed.health_error is not None
        return self._measurements.probe_due_s(self._managed.name, after_answers=not has_fault)

    async def _check_alone(self) -> None:
        name, measurements = self._managed.name, self._measurements
        timeout_s, sent_at = measurements.probe_timeout_s(name), measurements.on_probe_sent(name)
        try:
            async with asyncio.timeout(timeout_s):
                fault = await self._fault()
        except TimeoutError:
            fault = f"its health check timed out after {timeout_s:.3g} s"
            measurements.on_probe_timeout(name, sent_at, timeout_s)
        self._set(fault)

    async def _check(self) -> None:
        """Run a check until it has a result or times out; after that it continues by itself."""
        name, measurements = self._managed.name, self._measurements
        timeout_s, sent_at = measurements.probe_timeout_s(name), measurements.on_probe_sent(name)
        call = asyncio.create_task(self._fault(), name=f"health of {name}")
        try:
            await asyncio.wait({call}, timeout=timeout_s)
        except asyncio.CancelledError:
            call.cancel()
            raise
        if call.done():
            self._on_result(call)
            return
        self._late.append(call)
        call.add_done_callback(self._on_late_result)
        asyncio.get_running_loop().call_later(MAX_PROBE_S - timeout_s, call.cancel)
        measurements.on_probe_timeout(name, sent_at, timeout_s)

    async def _fault(self) -> str | None:
        """The fault that the plugin's health check reports, or how the check itself failed; None if it passed."""
        assert self._managed.backend is not None
        try:
            fault = await self._managed.backend.health()
        except BaseException as exc:
            if is_own_cancellation(exc):
                raise
            return f"its health check raised {public_error(exc)}"
        return None if fault is None else str(fault)

    def _on_result(self, call: asyncio.Task[str | None]) -> None:
        self._set("its health check cancelled itself" if call.cancelled() else call.result())
        for older in self._late:
            older.cancel()

    def _on_late_result(self, call: asyncio.Task[str | None]) -> None:
        """Use a late success. A late failure is not new: the timeout was reported."""
        self._late.remove(call)
        if not call.cancelled() and call.exception() is None and call.result() is None:
            self._on_result(call)

    def _set(self, error: str | None) -> None:
        managed, before = self._managed, self._managed.health_error
        managed.health_error = error
        if error is None:
            managed.breaker.record_probe_success()
        if error and not before:
            log.warning("backend.unwell", backend=managed.name, error=error)
        elif before and not error:
            log.info("backend.well", backend=managed.name)
