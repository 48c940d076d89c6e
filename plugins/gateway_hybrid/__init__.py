"""Serves one request with two other backends, one on this site and one in the cloud.

    scatter   divides a batch (a list, embedding inputs, a long recording) over both sides
    cascade   uses the edge, and the cloud only if the edge is not confident
    hedge     uses the second side if the first takes longer than usual

A hybrid only dispatches subtasks. The gateway decides, queues, limits and times each of them like any request, and
enforces the locality rules for each of them.
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
    """A strategy for two sides. The policy uses its estimate, and `explain` shows its plan."""

    def __init__(self, settings: HybridSettings, services: Services) -> None: ...

    async def run(self, task: Task) -> Result:
        """See `Backend.run`."""
        ...

    def estimate(self, task: Task, view: View) -> float | None:
        """See `Backend.estimate`."""
        ...

    def plan(self, task: Task, view: View) -> Mapping[str, Any] | None:
        """See `Backend.plan`."""
        ...


MODES: Mapping[str, type[Mode]] = {"scatter": Scatter, "cascade": Cascade, "hedge": Hedge}
DIVISIBLE: frozenset[Kind] = frozenset({"embeddings", "transcription"})


class Hybrid(Backend[HybridSettings]):
    """Serves tasks with two other backends."""

    site = "hybrid"
    slots = 64
    repeatable = True  # each item is computed independently; operators set REPEATABLE=false otherwise

    def __init__(self, settings: HybridSettings, services: Services) -> None:
        super().__init__(settings, services)
        self.kinds = DIVISIBLE if settings.mode == "scatter" else type(self).kinds
        self._mode = MODES[settings.mode](settings, services)

    async def __aenter__(self) -> Self:
        """Import the validator that the settings name."""
        if isinstance(self._mode, Cascade):
            self._mode.open()
        return self

    async def run(self, task: Task) -> Result:
        return await self._mode.run(task)

    def estimate(self, task: Task, view: View) -> float | None:
        """Predicted seconds until the request is complete."""
        return self._mode.estimate(task, view)

    def plan(self, task: Task, view: View) -> Mapping[str, Any] | None:
        """The division of the work, for `explain`."""
        return self._mode.plan(task, view)
