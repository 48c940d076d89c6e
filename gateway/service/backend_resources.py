"""The lane and the measurements of each backend, kept up to date while backends open, change and close."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from gateway.lanes import Lane, Scheduler
from gateway.measure.measurements import Measurements
from gateway.registry import ManagedBackend
from gateway.telemetry import log_exceptions

POLL_S = 0.05
REPLACED_DRAIN_S = 3600.0  # long, because streams are, and a replaced backend does not delay its replacement


class BackendResources:
    """Gives each backend a lane and measurements, and removes them.

    on_forgotten(name): called when the measurements of a backend have been removed. drain_s: seconds a closing backend
    has to finish its work.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        measurements: Measurements,
        on_forgotten: Callable[[str], None],
        drain_s: Callable[[], float],
    ) -> None:
        self._scheduler, self._measurements = scheduler, measurements
        self._on_forgotten, self._drain_s = on_forgotten, drain_s
        self._retired: dict[int, Lane | None] = {}  # by the identity of a backend that has been replaced

    def on_change(self, member: ManagedBackend) -> None:
        """Add or update the backend's lane after it has opened or its settings have changed; ignore one that failed."""
        if member.state != "serving":
            return
        self._measurements.add(member.name, remote=member.is_remote)
        self._scheduler.add(
            member.name,
            site=member.site,
            slots=member.slots,
            queue=member.settings.queue,
            remote=member.is_remote,
            usd=member.settings.usd_per_request,
            watts=member.settings.watts,
        )
        asyncio.get_running_loop().call_soon(self._scheduler.tick)  # waiting work may be faster there

    def on_replaced(self, old: ManagedBackend, new: ManagedBackend) -> None:
        """Move waiting work to the new backend if it is equivalent; running work finishes on the old one."""
        lane = self._retired[id(old)] = self._scheduler.retire(old.name)
        if old.fingerprint != new.fingerprint:
            self._forget(old.name)
        self._measurements.add(new.name, remote=new.is_remote)
        self.on_change(new)
        if lane is not None:
            self._scheduler.hand_over(lane, same_work=new.is_equivalent_to(old))

    async def drain(self, member: ManagedBackend, *, keep_data: bool = False) -> None:
        """Wait until the backend's work has ended, at most `drain_s`; then remove its lane and measurements.

        A replaced backend only loses its retired lane: the name belongs to its replacement. keep_data: keep the
        measurements, because the same backend will open again.
        """
        if id(member) in self._retired:
            await self._remove_retired(self._retired.pop(id(member)))
            return
        name = member.name
        await self._wait_while(
            lambda: bool(self._scheduler.busy().get(name) or self._scheduler.waiting().get(name)), self._drain_s()
        )
        self._scheduler.remove(name)
        if not keep_data:
            self._forget(name)

    async def _remove_retired(self, lane: Lane | None) -> None:
        if lane is not None:
            await self._wait_while(lambda: bool(lane.runs), REPLACED_DRAIN_S)
            self._scheduler.forget(lane)

    async def _wait_while(self, is_busy: Callable[[], bool], timeout_s: float) -> None:
        until = time.monotonic() + timeout_s
        while time.monotonic() < until and is_busy():
            with log_exceptions("the tick"):
                self._scheduler.tick()
            await asyncio.sleep(POLL_S)

    def _forget(self, name: str) -> None:
        self._measurements.remove(name)
        self._on_forgotten(name)
