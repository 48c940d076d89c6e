"""The implementation of `gateway.plugin.View`: predictions that plugins use to divide or place work."""

from __future__ import annotations

from collections.abc import Callable

from gateway.dispatch.eligibility import Eligibility, Locality
from gateway.lanes import Selector, Work
from gateway.plugin import Task
from gateway.policy import Candidate
from gateway.registry import Registry, ServingBackends


class BackendView:
    """Implements `gateway.plugin.View`. work_for: makes the work that the lanes predict with."""

    def __init__(
        self,
        registry: Registry,
        selector: Selector,
        eligibility: Eligibility,
        locality: Locality,
        work_for: Callable[[Task, ServingBackends, bool], Work],
    ) -> None:
        self._registry, self._selector = registry, selector
        self._eligibility, self._locality, self._work_for = eligibility, locality, work_for

    def seconds(self, backend: str, task: Task) -> float | None:
        """Return the predicted seconds until `backend` would have finished `task`; None if it cannot serve it."""
        candidate = self._candidate(backend, task)
        return candidate.t_s if candidate else None

    def p95_s(self, backend: str, task: Task) -> float | None:
        """Return the seconds that one task of this class in twenty exceeds; None if `backend` cannot serve it."""
        candidate = self._candidate(backend, task)
        return candidate.wait_s + candidate.upload_s + candidate.p95_s if candidate else None

    def slots(self, backend: str) -> int:
        """Return how many tasks `backend` processes at once; 0 for an unknown name."""
        member = self._registry.members.get(backend)
        return member.slots if member else 0

    def _candidate(self, backend: str, task: Task) -> Candidate | None:
        member = self._registry.members.get(backend)
        own_name = member.own_name(task.kind, task.name) if member else None
        task = self._locality.with_locality(task)
        if own_name is None or self._eligibility.refusal(backend, task, None):
            return None
        work = self._work_for(task, ServingBackends({backend: own_name}, backend), False)
        candidate = self._selector.candidates(work, {backend: None})[0]
        return None if candidate.refused else candidate
