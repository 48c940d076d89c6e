"""What is done when memory runs short: first no new work, then no new connection; what is there goes on.

before that         bodies together may take a share of what is free (ingress/load_shedding.py)
85 % of the limit   requests that bring work are 503 before their body is read
95 %                no connection is accepted; who comes waits in the kernel, where that costs us nothing
90 %                connections are accepted again
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.ingress.http.listener import HttpListener
from gateway.ingress.load_shedding import LoadShedding
from gateway.measure.memory_gauge import MemoryGauge
from gateway.telemetry import log, log_exceptions

SHED_AT, STOP_AT, RESUME_AT = 0.85, 0.95, 0.90


class MemoryGuard:
    """Looks at the memory whenever it is told to."""

    def __init__(self, shedding: LoadShedding, gauge: MemoryGauge) -> None:
        self.gauge = gauge
        self._shedding = shedding
        self.is_paused = False

    async def look(self, sites: Sequence[HttpListener]) -> None:
        """Do what the state of the memory asks for. Each listener is told at each look: what failed is tried again."""
        self._shedding.bodies.set_free_memory(self.gauge.free_bytes(SHED_AT))
        ratio = self.gauge.ratio() or 0.0
        is_short = ratio >= SHED_AT
        if self._shedding.is_active != is_short:
            self._shedding.is_active = is_short
            log.warning("memory.pressed" if is_short else "memory.relieved", ratio=round(ratio, 3))
        if not self.is_paused and ratio >= STOP_AT:
            self.is_paused = True
            log.error("memory.stopped_accepting", ratio=round(ratio, 3))
        elif self.is_paused and ratio < RESUME_AT:
            self.is_paused = False
            log.warning("memory.accepting_again", ratio=round(ratio, 3))
        for site in sites:
            if self.is_paused:
                site.pause("memory")
            else:
                with log_exceptions(f"accepting again on {site.name}"):
                    await site.resume("memory")
