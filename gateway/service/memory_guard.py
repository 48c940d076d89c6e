"""Load shedding when memory is short: first no new work, then no new connections; running requests continue.

| memory used | action |
|---|---|
| below 85 % of the limit | request bodies together may use a share of the free memory (ingress/load_shedding.py) |
| 85 % and more | requests that bring work get 503 before their body is read |
| 95 % and more | no connection is accepted; new clients wait in the kernel's queue, which uses none of our memory |
| below 90 % again | connections are accepted again |
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.ingress.http.listener import HttpListener
from gateway.ingress.load_shedding import LoadShedding
from gateway.measure.memory_gauge import MemoryGauge
from gateway.telemetry import log, log_exceptions

SHED_RATIO, PAUSE_RATIO, RESUME_RATIO = 0.85, 0.95, 0.90


class MemoryGuard:
    """Compares the memory in use with the limits at each `check`, and sheds load."""

    def __init__(self, shedding: LoadShedding, gauge: MemoryGauge) -> None:
        self.gauge = gauge
        self._shedding = shedding
        self.is_paused = False

    async def check(self, sites: Sequence[HttpListener]) -> None:
        """Shed load, or stop shedding. Every listener is set at every check, so that a failed resume is repeated."""
        self._shedding.bodies.set_free_memory(self.gauge.free_bytes(SHED_RATIO))
        ratio = self.gauge.ratio() or 0.0
        is_short = ratio >= SHED_RATIO
        if self._shedding.is_active != is_short:
            self._shedding.is_active = is_short
            log.warning("memory.pressed" if is_short else "memory.relieved", ratio=round(ratio, 3))
        if not self.is_paused and ratio >= PAUSE_RATIO:
            self.is_paused = True
            log.error("memory.stopped_accepting", ratio=round(ratio, 3))
        elif self.is_paused and ratio < RESUME_RATIO:
            self.is_paused = False
            log.warning("memory.accepting_again", ratio=round(ratio, 3))
        for site in sites:
            if self.is_paused:
                site.pause("memory")
            else:
                with log_exceptions(f"accepting again on {site.name}"):
                    await site.resume("memory")
