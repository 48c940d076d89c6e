"""Who may serve a task, who should, and why not the others. Runs nothing; `explain` asks the same way."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gateway.dispatch.deadline_check import Feasibility, too_slow
from gateway.dispatch.eligibility import is_edge_only
from gateway.lanes import Scheduler, Work
from gateway.measure.measurements import Measurements
from gateway.plugin import Backend, BackendUnavailable, GatewayError, Kind, Task
from gateway.plugin.errors import PLUGIN_EXCEPTIONS
from gateway.policy import Candidate, Decision, Policy, Query, cost_s
from gateway.registry import AUTO, ManagedBackend, Registry, ServingBackends

EDGE_ONLY = "edge-only: its data would leave the site"
LACKS = "it has no such endpoint"
WITHOUT_TIME = (None, EDGE_ONLY, LACKS)  # why a backend is out, though its time may never come
AGAIN_S = 1.0  # when to come back, where nobody knows


def _nowhere(_: str) -> None:
    """Work that is planned, not placed, starts nowhere."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A decision, what was on offer, and the work as the lanes will see it."""

    offer: ServingBackends
    work: Work
    decision: Decision


class Planner:
    """Turns a task into a plan, from the state of the registry, the board and the lanes."""

    def __init__(self, registry: Registry, board: Measurements, lanes: Scheduler) -> None:
        self.registry, self.board, self.lanes = registry, board, lanes
        self.feasibility = Feasibility()
        lanes.usable = self.unusable

    def plan(self, task: Task, *, client_deadline: bool = False, tried: Mapping[str, str] | None = None) -> Plan:
        """Decide where `task` should go; the order may be empty, see `check`. `tried` names backends that failed it
        already, and how. Raises GatewayError where nobody serves it at all."""
        tried = tried or {}
        offer = self._offer(task)
        work = self._work(task, offer, client_deadline)
        refused = {name: tried.get(name) or self._refusal(name, task, offer) for name in offer.names}
        query = self._query(task, offer, client_deadline)
        decision = self.lanes.choose(work, query, refused)
        if not decision.order:
            decision = self.lanes.choose(work, query, self._last_resort(refused, task))
        work.allowed = decision.order
        return Plan(offer, work, decision)

    def check(self, plan: Plan, task: Task, *, client_deadline: bool = False) -> None:
        """Raises GatewayError where the plan leaves nobody, or nobody has done such work in the client's time."""
        self._check_somebody(plan, task)
        if client_deadline:
            self.feasibility.check(task, self._standing(plan), task.deadline - time.monotonic())

    def _check_somebody(self, plan: Plan, task: Task) -> None:
        if not plan.decision.order:
            raise self._nobody(plan.decision, task, plan.offer)

    def _standing(self, plan: Plan) -> list[Candidate]:
        """Each backend as it stands after the decision."""
        return self.lanes.candidates(plan.work, {name: plan.decision.refused.get(name) for name in plan.offer.names})

    def explain(self, task: Task, *, client_deadline: bool = False) -> dict[str, Any]:
        """What would be decided, and every figure it rests on; seconds, dollars, joules. Errors as for a request."""
        plan = self.plan(task, client_deadline=client_deadline)
        self._check_somebody(plan, task)
        query = self._query(task, plan.offer, client_deadline)
        candidates = self._standing(plan)
        if client_deadline and (refusal := too_slow(candidates, query.slack_s)) is not None:
            raise refusal
        return {
            "order": plan.decision.order,
            "reason": plan.decision.reason,
            "why": plan.decision.why,
            "predicted_s": plan.decision.predicted_s,
            "candidates": {
                each.name: _explained(each, query, self.lanes.policy) | self._plan_of(each.name, task, plan.offer)
                for each in candidates
            },
        }

    def _plan_of(self, name: str, task: Task, offer: ServingBackends) -> dict[str, Any]:
        backend = self.registry.members[name].backend
        with suppress(Exception):  # as with its guesses
            planned = backend.plan(self.handed(task, name, offer.names[name]), self) if backend else None
            return {"plan": dict(planned)} if planned else {}
        return {}

    @staticmethod
    def _query(task: Task, offer: ServingBackends, client_deadline: bool) -> Query:
        return Query(
            kind=task.kind,
            name=task.name,
            slack_s=task.deadline - time.monotonic(),
            client_deadline=client_deadline,
            may_leave=task.may_leave,
            pinned=offer.pinned,
        )

    def _offer(self, task: Task) -> ServingBackends:
        offer = self.registry.resolve(task.kind, task.name)
        if task.pin is None:
            return offer
        if task.pin not in offer.names:
            raise BackendUnavailable(f"backend {task.pin!r} does not serve {task.name!r}", began=False)
        return ServingBackends({task.pin: offer.names[task.pin]}, task.pin, offer.members)

    def _work(self, task: Task, offer: ServingBackends, client_deadline: bool) -> Work:
        members = {name: self.registry.members[name] for name in offer.names}
        return Work(
            id=task.id,
            kind=_class_of(task),
            name=task.name,
            models=offer.names,
            sizes={name: _size(member, task) for name, member in members.items()},
            estimates=self._estimates(members.values(), task, offer),
            body_bytes=len(task.body),
            deadline=task.deadline,
            client_deadline=client_deadline,
            repeatable=all(member.is_repeatable(task.kind) for member in members.values()),
            start=_nowhere,
        )

    def _estimates(self, members: Iterable[ManagedBackend], task: Task, offer: ServingBackends) -> dict[str, float]:
        out: dict[str, float] = {}
        for member in members:
            backend = member.backend
            if backend is None or type(backend).estimate is Backend.estimate:
                continue
            with suppress(Exception):  # a plugin's guess must never cost the request
                seconds = backend.estimate(self.handed(task, member.name, offer.names[member.name]), self)
                if seconds is not None:
                    out[member.name] = float(seconds)
        return out

    # ── who is out ───────────────────────────────────────────────────────────────────────────────

    def unusable(self, name: str, *, pinned: bool = False) -> str | None:
        """Why `name` should get no work now, whatever the work; None when it may. A pin overrides a hunch."""
        member = self.registry.members[name]
        if member.backend is None or member.state != "serving":
            return f"it is {member.state}" + (f": {member.error}" if member.error else "")
        if (why := member.quarantine.reason(member.slots)) is not None:
            return why
        if not member.breaker.is_available(pinned=pinned):
            return f"breaker open: {member.breaker.why_open}"
        if pinned:
            return None
        return self._unwell(name) or ("its link is down" if self.board.is_down(name) else None)

    def _unwell(self, name: str) -> str | None:
        unwell = self.registry.members[name].unhealthy_reason
        return f"unwell: {unwell}" if unwell else None

    def _last_resort(self, refused: Mapping[str, str | None], task: Task) -> dict[str, str | None]:
        """Where nobody is left, those are asked that only a hunch speaks against: their answer says more.

        Who lacks the endpoint only where nobody may have it: else its 404, which is final, hides what passes.
        """
        nobody_has_it = all(why == EDGE_ONLY or self._lacks(name, task) for name, why in refused.items())
        lacks = LACKS if nobody_has_it else None
        return {name: None if why and why in (self._unwell(name), lacks) else why for name, why in refused.items()}

    def _lacks(self, name: str, task: Task) -> bool:
        return task.kind != "task" and self.registry.members[name].missing_endpoints.is_missing(task.path)

    def _refusal(self, name: str, task: Task, offer: ServingBackends) -> str | None:
        if self.registry.members[name].is_off_site and not task.may_leave:
            return EDGE_ONLY
        if self._lacks(name, task):
            return LACKS
        return self.unusable(name, pinned=offer.pinned == name)

    def keeps(self, kind: Kind, name: str, places: Iterable[str] = ()) -> bool:
        """Whether the operator keeps `name` on the site, under each name that it may become, or one of `places`."""
        is_auto = name.rpartition("/")[2] == AUTO  # pinned or not
        names = (name, *self.registry.auto_models_off_site(kind)) if is_auto else (name,)
        return is_edge_only(self.lanes.policy.edge_only, names, places)

    def kept(self, task: Task) -> Task:
        """The task as it may travel: what a hybrid calls its subtasks by is under the operator's rules, too."""
        name = task.name if task.pin is None else f"{task.pin}/{task.name}"
        return task.replace(may_leave=False) if task.may_leave and self.keeps(task.kind, name) else task

    def handed(self, task: Task, backend: str, own: str, **changes: Any) -> Task:
        """The task as `backend` gets it, by its own name. A hybrid's own names are others' here, with their rules."""
        member, task = self.registry.members.get(backend), task.replace(name=own, **changes)
        return self.kept(task) if member is not None and member.site == "hybrid" else task

    def _nobody(self, decision: Decision, task: Task, offer: ServingBackends) -> GatewayError:
        """No candidate is left: `no_backend` where the rules refuse all, else when one of them may be asked again."""
        listed = "; ".join(f"{name}: {why}" for name, why in decision.refused.items())
        message = f"no backend may serve this now ({listed})"
        if self._is_by_rule(offer, task):
            return GatewayError(message, code="no_backend", began=False)
        out = [
            self.registry.members[n].breaker for n in offer.names if self._refusal(n, task, offer) not in WITHOUT_TIME
        ]
        waits_s = [breaker.wait_s for breaker in out if breaker.wait_s > 0]
        code = "rate_limited" if out and all(breaker.is_rate_limit for breaker in out) else None
        return BackendUnavailable(message, code=code, retry_after_s=min(waits_s, default=AGAIN_S), began=False)

    def _is_by_rule(self, offer: ServingBackends, task: Task) -> bool:
        return not task.may_leave and all(self.registry.members[n].is_off_site for n in offer.names)

    # ── gateway.plugin.View ──────────────────────────────────────────────────────────────────────

    def seconds(self, backend: str, task: Task) -> float | None:
        """Predicted seconds until `backend` would have finished `task`; None where it cannot serve it."""
        found = self._candidate(backend, task)
        return found.t_s if found else None

    def p95_s(self, backend: str, task: Task) -> float | None:
        """The same, as it is exceeded by one task of this class in twenty."""
        found = self._candidate(backend, task)
        return found.wait_s + found.upload_s + found.p95_s if found else None

    def _candidate(self, backend: str, task: Task) -> Candidate | None:
        member = self.registry.members.get(backend)
        own = member.own_name(task.kind, task.name) if member else None
        task = self.kept(task)
        if own is None or self._refusal(backend, task, ServingBackends({}, None)):
            return None
        work = self._work(task, ServingBackends({backend: own}, backend), False)
        found = self.lanes.candidates(work, {backend: None})[0]
        return None if found.refused else found

    def slots(self, backend: str) -> int:
        """How many tasks `backend` works on at once; 0 where there is none of that name."""
        member = self.registry.members.get(backend)
        return member.slots if member else 0


def _class_of(task: Task) -> str:
    """What is learned apart: a stream is timed to its first content, a whole answer to its end."""
    return f"{task.kind}+stream" if task.stream else task.kind


def _explained(candidate: Candidate, query: Query, policy: Policy) -> dict[str, Any]:
    if candidate.refused:
        return {"site": candidate.site, "refused": candidate.refused}
    figures = candidate._asdict()
    del figures["name"], figures["refused"]
    return {**figures, "t_s": candidate.t_s, "j": cost_s(candidate, query, policy)}


def _size(member: ManagedBackend, task: Task) -> float:
    try:
        return float(member.backend.size(task)) if member.backend else 0.0
    except PLUGIN_EXCEPTIONS:  # as above
        return float(len(task.body))
