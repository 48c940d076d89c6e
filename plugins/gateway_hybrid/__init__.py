"""Puts two other backends to use together, one here and one far away, for one request.

    scatter   divides a batch (a list, embedding inputs, a long recording) over both: sooner than either alone
    cascade   asks the edge, and the cloud only where the edge is not sure
    hedge     asks the second side where the first is later than usual

All it does is to dispatch subtasks: the gateway decides, queues, limits and times each of them like any request,
and keeps what may not leave on the site.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, Self

from gateway.plugin import Backend, Kind, Result, Services, Task, View
from gateway_hybrid.cascade import Cascade
from gateway_hybrid.hedge import Hedge
from gateway_hybrid.scatter import Scatter
from gateway_hybrid.settings import HybridSettings

__all__ = ["Hybrid", "HybridSettings"]


class Mode(Protocol):
    """A way to put two sides to use. Its estimate, and its plan for `explain`, are for the policy."""

    def __init__(self, settings: HybridSettings, services: Services) -> None: ...

    async def run(self, task: Task) -> Result:
        """As `Backend.run`."""
        ...

    def estimate(self, task: Task, view: View) -> float | None:
        """As `Backend.estimate`."""
        ...

    def plan(self, task: Task, view: View) -> Mapping[str, Any] | None:
        """As `Backend.plan`."""
        ...


MODES: Mapping[str, type[Mode]] = {"scatter": Scatter, "cascade": Cascade, "hedge": Hedge}
DIVISIBLE: frozenset[Kind] = frozenset({"embeddings", "transcription"})


class Hybrid(Backend[HybridSettings]):
    """Serves by two others."""

    site = "hybrid"
    slots = 64
    repeatable = True  # what is scattered is a function of an item alone; REPEATABLE=false where it is not

    def __init__(self, settings: HybridSettings, services: Services) -> None:
        super().__init__(settings, services)
        self.kinds = DIVISIBLE if settings.mode == "scatter" else type(self).kinds
        self._mode = MODES[settings.mode](settings, services)

    async def __aenter__(self) -> Self:
        """Find what the settings name."""
        if isinstance(self._mode, Cascade):
            self._mode.open()
        return self

    async def run(self, task: Task) -> Result:
        """Serve it by the mode that is set."""
        return await self._mode.run(task)

    def estimate(self, task: Task, view: View) -> float | None:
        """Predicted seconds until both have done it together."""
        return self._mode.estimate(task, view)

    def plan(self, task: Task, view: View) -> Mapping[str, Any] | None:
        """What it would ask of whom."""
        return self._mode.plan(task, view)
