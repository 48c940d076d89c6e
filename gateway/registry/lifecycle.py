"""Lifecycle of backends: each is opened, health-checked and closed in a task of its own.

Any exception that a plugin raises there, including a cancellation that it caused itself, is a fault of that backend
only: it is recorded in the backend's state and logged.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from gateway.measure.measurements import Measurements
from gateway.plugin.errors import is_own_cancellation
from gateway.registry.health_checks import MAX_PAUSE_S, HealthChecks
from gateway.registry.managed_backend import ManagedBackend, public_error
from gateway.telemetry import log, log_exceptions, log_task_failure

CLOSE_S = 10.0  # at the gateway's stop, a backend that has not closed after this is cancelled
CANCEL_S = 1.0  # and abandoned this much later if it ignores the cancellation

FIRST_RETRY_S, MAX_RETRY_S = 1.0, 60.0  # between two attempts to open a backend; the pause doubles

OnChange = Callable[[ManagedBackend], None]


class BackendLifecycle:
    """Starts and stops backends. It keeps each one until its task ends, those that a reload replaced as well.

    clock: returns monotonic seconds.
    """

    def __init__(self, measurements: Measurements, clock: Callable[[], float]) -> None:
        self._measurements, self._clock = measurements, clock
        self._running: dict[asyncio.Task[None], ManagedBackend] = {}

    def start(self, managed: ManagedBackend, on_change: OnChange) -> None:
        """Open it in the background and check its health from then on. on_change: called once it opened or failed."""
        task = managed.task = log_task_failure(
            asyncio.create_task(self._run(managed, on_change), name=f"backend {managed.name}")
        )
        self._running[task] = managed
        task.add_done_callback(self._running.pop)

    async def retire(self, managed: ManagedBackend, drain: Callable[[ManagedBackend], Awaitable[None]]) -> None:
        """Give it no new work, wait for `drain`, then close it. It is abandoned after CLOSE_S."""
        managed.transition("retired")
        await drain(managed)
        managed.stop_requested.set()
        if managed.task is not None:
            await asyncio.wait({managed.task}, timeout=CLOSE_S)

    def stop(self, managed: ManagedBackend) -> None:
        """Close it without waiting. An opening that still runs is cancelled, because it may never end."""
        managed.stop_requested.set()
        if managed.state in ("starting", "failed") and managed.task is not None:
            managed.task.cancel()

    async def close_all(self) -> None:
        """Close all backends. After CLOSE_S the remaining tasks are cancelled; CANCEL_S later they are abandoned."""
        for managed in self._running.values():
            managed.stop_requested.set()
        if self._running:
            await asyncio.wait(set(self._running), timeout=CLOSE_S)
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(set(self._running), timeout=CANCEL_S)

    def stuck(self) -> list[str]:
        """The backends that still open or close; after `close_all`, those that will never end."""
        return sorted({managed.name for managed in self._running.values()})

    async def _run(self, managed: ManagedBackend, on_change: OnChange) -> None:
        try:
            if await self._open_with_retries(managed, on_change):
                try:
                    await self._check_health_until_stopped(managed)
                finally:
                    await self._close(managed)
        except asyncio.CancelledError:
            if not managed.stop_requested.is_set():
                managed.error = managed.error or "its plugin cancelled the task that runs the backend"
                log.error("backend.ended", backend=managed.name, error=managed.error)
            raise
        finally:
            managed.opening_done.set()

    async def _open_with_retries(self, managed: ManagedBackend, on_change: OnChange) -> bool:
        """Open the backend, again after each failure until it is stopped; True if it has to be closed later.

        Only failures that may pass are tried again: those of worker processes, and BackendUnavailable.
        """
        pause_s = FIRST_RETRY_S
        while not await self._open(managed, on_change):
            managed.opening_done.set()
            if not managed.can_open_later:
                return False
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(managed.stop_requested.wait(), pause_s)
            if managed.stop_requested.is_set() or managed.state != "failed":
                return False
            pause_s = min(2 * pause_s, MAX_RETRY_S)
        return True

    async def _open(self, managed: ManagedBackend, on_change: OnChange) -> bool:
        """Open the backend; True if it has to be closed later."""
        began = self._clock()
        try:
            managed.check_declaration()
            assert managed.backend is not None
            # Before it opens: a plugin may report network samples while it opens.
            self._measurements.add(managed.name, remote=managed.is_remote)
            await managed.backend.__aenter__()
        except BaseException as exc:
            if managed.stop_requested.is_set() and is_own_cancellation(exc):
                managed.transition("open_cancelled")  # requested by us, so not a failure
                raise
            before = managed.cause if managed.state == "failed" else None
            managed.fail(exc)
            if managed.cause != before:  # else a further attempt failed in the same manner
                log.error("backend.failed_to_open", backend=managed.name, plugin=managed.plugin, error=managed.cause)
                on_change(managed)
            if is_own_cancellation(exc):
                raise
            return False
        is_retired = managed.state not in ("starting", "failed")  # while the plugin opened
        if not is_retired and not managed.stop_requested.is_set():
            managed.transition("opened")
            managed.error = managed.cause = None
            seconds = round(self._clock() - began, 3)
            log.info("backend.opened", backend=managed.name, plugin=managed.plugin, seconds=seconds)
            for problem in managed.problems:
                log.warning("backend.problem", backend=managed.name, error=problem)
            with log_exceptions(f"opening backend {managed.name}"):
                on_change(managed)
        return True

    async def _check_health_until_stopped(self, managed: ManagedBackend) -> None:
        checks = HealthChecks(managed, self._measurements)
        stopped = asyncio.create_task(managed.stop_requested.wait())
        try:
            while not stopped.done():
                pause_s: float | None = MAX_PAUSE_S
                with log_exceptions(f"watching backend {managed.name}"):  # our own bug: the backend continues to serve
                    pause_s = await checks.run_if_due()
                managed.opening_done.set()
                await asyncio.wait({stopped, *checks.pending}, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            await checks.close()

    async def _close(self, managed: ManagedBackend) -> None:
        managed.transition("closed")
        try:
            assert managed.backend is not None
            await managed.backend.__aexit__(None, None, None)
        except BaseException as exc:
            log.error("backend.close_failed", backend=managed.name, error=public_error(exc))
            if is_own_cancellation(exc):
                raise
