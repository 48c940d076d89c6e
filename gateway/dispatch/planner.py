"""Plans a task: which backends may serve it, in which order, and why the others may not. Runs nothing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gateway.dispatch.deadline_check import DeadlineCheck, too_slow
from gateway.dispatch.eligibility import Eligibility, Locality
from gateway.dispatch.view import BackendView
from gateway.lanes import Scheduler, Work
from gateway.measure.measurements import Measurements
from gateway.plugin import Backend, BackendUnavailable, Task
from gateway.plugin.errors import PLUGIN_EXCEPTIONS
from gateway.policy import Candidate, Decision, Policy, Query, cost_s
from gateway.registry import ManagedBackend, Registry, ServingBackends


@dataclass(frozen=True, slots=True)
class Plan:
    """One decision: the backends that serve the task, the work as the lanes see it, the query and its result.

    is_probe: every backend is excluded, and the link to the chosen one is down: the task is a probe of that link.
    """

    serving: ServingBackends
    work: Work
    query: Query
    decision: Decision
    is_probe: bool = False


class Planner:
    """Makes plans from the state of the registry, the measurements and the lanes."""

    def __init__(self, registry: Registry, measurements: Measurements, scheduler: Scheduler) -> None:
        self._registry, self._selector = registry, scheduler.selector
        self._deadline_check = DeadlineCheck()
        self.eligibility = Eligibility(registry, measurements)
        self.locality = Locality(registry, scheduler)
        self.view = BackendView(registry, self._selector, self.eligibility, self.locality, self._work_for)

    def plan(self, task: Task, *, client_deadline: bool = False, tried: Mapping[str, str] | None = None) -> Plan:
        """Decide which backends to try for `task`, best first; the order may be empty, see `check`.

        tried: the backends that failed it already, and how. Raises GatewayError if no backend serves it at all.
        """
        tried = tried or {}
        serving = self._serving(task)
        work = self._work_for(task, serving, client_deadline)
        refusal, pinned = self.eligibility.refusal, serving.pinned
        refused = {name: tried.get(name) or refusal(name, task, pinned) for name in serving.names}
        query = self._query(task, serving, client_deadline)
        decision = self._selector.choose(work, query, refused)
        is_probe = False
        if not decision.order:
            decision = self._selector.choose(work, query, self.eligibility.last_resort(refused, task))
            is_probe = bool(decision.order) and self.eligibility.is_unreachable(decision.order[0])
        work.allowed = decision.order
        return Plan(serving, work, query, decision, is_probe)

    def check(self, plan: Plan, task: Task, *, client_deadline: bool = False) -> None:
        """Raise GatewayError if the plan has no backend, or if no backend can meet the client's deadline."""
        if not plan.decision.order:
            raise self.eligibility.error_without_candidates(plan.decision, task, plan.serving)
        if client_deadline:
            self._deadline_check.check(task, self._candidates(plan), task.deadline - time.monotonic())

    def explain(self, task: Task, *, client_deadline: bool = False) -> dict[str, Any]:
        """Return the decision for `task` with its figures, in seconds, dollars and joules.

        Raises the errors that the request itself would raise.
        """
        plan = self.plan(task, client_deadline=client_deadline)
        self.check(plan, task)
        candidates = self._candidates(plan)
        if client_deadline and (refusal := too_slow(candidates, plan.query.slack_s)) is not None:
            raise refusal
        return {
            "order": plan.decision.order,
            "reason": plan.decision.reason,
            "why": plan.decision.why,
            "predicted_s": plan.decision.predicted_s,
            "candidates": {
                each.name: _explained(each, plan.query, self._selector.policy)
                | self._plugin_plan(each.name, task, plan.serving)
                for each in candidates
            },
        }

    def others(self, plan: Plan, task: Task) -> list[Candidate]:
        """Return the present predictions of the backends that follow the first of the plan."""
        refusal, pinned = self.eligibility.refusal, plan.serving.pinned
        members = self._registry.members
        present = {name: refusal(name, task, pinned) for name in plan.decision.order[1:] if name in members}
        return self._selector.candidates(plan.work, present)

    def _candidates(self, plan: Plan) -> list[Candidate]:
        """Return each backend's predictions after the decision."""
        refused = plan.decision.refused
        return self._selector.candidates(plan.work, {name: refused.get(name) for name in plan.serving.names})

    def _plugin_plan(self, name: str, task: Task, serving: ServingBackends) -> dict[str, Any]:
        backend = self._registry.members[name].backend
        with suppress(*PLUGIN_EXCEPTIONS):  # a plugin's plan must never fail the request, like its estimate
            task = self.locality.task_for(task, name, serving.names[name])
            planned = backend.plan(task, self.view) if backend else None
            return {"plan": dict(planned)} if planned else {}
        return {}

    @staticmethod
    def _query(task: Task, serving: ServingBackends, client_deadline: bool) -> Query:
        return Query(
            kind=task.kind,
            name=task.name,
            slack_s=task.deadline - time.monotonic(),
            client_deadline=client_deadline,
            may_leave=task.may_leave,
            pinned=serving.pinned,
        )

    def _serving(self, task: Task) -> ServingBackends:
        serving = self._registry.resolve(task.kind, task.name)
        if task.pin is None:
            return serving
        if task.pin not in serving.names:
            raise BackendUnavailable(f"backend {task.pin!r} does not serve {task.name!r}", began=False)
        return ServingBackends({task.pin: serving.names[task.pin]}, task.pin, serving.members)

    def _work_for(self, task: Task, serving: ServingBackends, client_deadline: bool) -> Work:
        members = {name: self._registry.members[name] for name in serving.names}
        return Work(
            id=task.id,
            kind=f"{task.kind}+stream" if task.stream else task.kind,  # a stream is timed to its first content only
            name=task.name,
            models=serving.names,
            sizes={name: _size(member, task) for name, member in members.items()},
            estimates=self._estimates(members.values(), task, serving),
            body_bytes=len(task.body),
            deadline=task.deadline,
            client_deadline=client_deadline,
            repeatable=all(member.is_repeatable(task.kind) for member in members.values()),
        )

    def _estimates(self, members: Iterable[ManagedBackend], task: Task, serving: ServingBackends) -> dict[str, float]:
        estimates: dict[str, float] = {}
        for member in members:
            backend = member.backend
            if backend is None or type(backend).estimate is Backend.estimate:
                continue
            with suppress(*PLUGIN_EXCEPTIONS):  # a plugin's estimate must never fail the request
                own = self.locality.task_for(task, member.name, serving.names[member.name])
                seconds = backend.estimate(own, self.view)
                if seconds is not None:
                    estimates[member.name] = float(seconds)
        return estimates


def _explained(candidate: Candidate, query: Query, policy: Policy) -> dict[str, Any]:
    if candidate.refused:
        return {"site": candidate.site, "refused": candidate.refused}
    figures = candidate._asdict()
    del figures["name"], figures["refused"]
    return {**figures, "t_s": candidate.t_s, "j": cost_s(candidate, query, policy)}


def _size(member: ManagedBackend, task: Task) -> float:
    try:
        return float(member.backend.size(task)) if member.backend else 0.0
    except PLUGIN_EXCEPTIONS:  # a plugin's size must never fail the request
        return float(len(task.body))
