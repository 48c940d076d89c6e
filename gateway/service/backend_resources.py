"""What is kept of backends by name, lanes and measurements, as backends open, change, and go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from gateway.lanes import Lane, Scheduler
from gateway.measure.measurements import Measurements
from gateway.registry import ManagedBackend
from gateway.telemetry import log_exceptions

LOOK_S = 0.05
BESIDE_S = 3600.0  # whose name another has is in nobody's way; a stream may be long


class Backends:
    """Gives each backend its lane and its place on the board. forgotten(name): nothing of it is known any more."""

    def __init__(
        self, lanes: Scheduler, board: Measurements, forgotten: Callable[[str], None], drain_s: Callable[[], float]
    ) -> None:
        self._lanes, self._board, self._forgotten, self._drain_s = lanes, board, forgotten, drain_s
        self._retired: dict[int, Lane | None] = {}  # by the identity of members whose name another has

    def on_change(self, member: ManagedBackend) -> None:
        """It has opened, or has other settings: that is its lane. Nothing where it has failed."""
        if member.state != "serving":
            return
        self._board.add(member.name, remote=member.is_remote)
        self._lanes.add(
            member.name,
            site=member.site,
            slots=member.slots,
            queue=member.settings.queue,
            remote=member.is_remote,
            usd=member.settings.usd_per_request,
            watts=member.settings.watts,
        )
        asyncio.get_running_loop().call_soon(self._lanes.tick)  # what waits may be better off there

    def on_replaced(self, old: ManagedBackend, new: ManagedBackend) -> None:
        """Whoever waits goes to the new one, where that does the same; what runs goes on at the old one."""
        lane = self._retired[id(old)] = self._lanes.retire(old.name)
        if old.fingerprint != new.fingerprint:
            self._forget(old.name)
        self._board.add(new.name, remote=new.is_remote)
        self.on_change(new)
        if lane is not None:
            self._lanes.hand_over(lane, same_work=new.is_equivalent_to(old))

    async def drain(self, member: ManagedBackend, *, keep_data: bool = False) -> None:
        """Wait for what a backend has; then forget it, unless somebody has its name, or it comes back as it was."""
        if id(member) in self._retired:
            await self._ended(self._retired.pop(id(member)))
            return
        name = member.name
        await self._drained(
            lambda: bool(self._lanes.busy().get(name) or self._lanes.waiting().get(name)), self._drain_s()
        )
        self._lanes.remove(name)
        if not keep_data:
            self._forget(name)

    async def _ended(self, lane: Lane | None) -> None:
        if lane is not None:
            await self._drained(lambda: bool(lane.runs), BESIDE_S)
            self._lanes.forget(lane)

    async def _drained(self, is_busy: Callable[[], bool], within_s: float) -> None:
        until = time.monotonic() + within_s
        while time.monotonic() < until and is_busy():
            with log_exceptions("the tick"):
                self._lanes.tick()
            await asyncio.sleep(LOOK_S)

    def _forget(self, name: str) -> None:
        self._board.remove(name)
        self._forgotten(name)
