"""Which backends may serve a task: the operator's edge-only rules, and which backends are excluded now, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from gateway.lanes import Scheduler
from gateway.measure.measurements import Measurements
from gateway.plugin import BackendUnavailable, GatewayError, Kind, Task
from gateway.plugin.spelling import folded, unescaped
from gateway.policy import Decision
from gateway.registry import AUTO, Registry, ServingBackends

EDGE_ONLY = "edge-only: its data would leave the site"
LACKS_ENDPOINT = "it has no such endpoint"
PERMANENT = (None, EDGE_ONLY, LACKS_ENDPOINT)  # reasons that waiting does not remove
DEFAULT_RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class _Rules:
    """Edge-only rules in their normal form: whole names, and the beginnings of others."""

    whole: frozenset[str]
    beginnings: tuple[str, ...]

    def match(self, text: str) -> bool:
        return text in self.whole or text.startswith(self.beginnings)


@lru_cache(maxsize=8)
def _rules_of(edge_only: tuple[str, ...]) -> _Rules:
    whole = {_normal(rule) for rule in edge_only if not rule.rstrip().endswith("*")}
    beginnings = [_normal(rule.rstrip()[:-1]) for rule in edge_only if rule.rstrip().endswith("*")]
    return _Rules(frozenset(whole), (*beginnings, *(f"{rule}/" for rule in whole if rule.startswith("/"))))


def _normal(text: str) -> str:
    """Return a name, path or topic in the one spelling in which rules and requests are compared.

    Servers differ in whether they ignore case, width, escapes, invisible characters, repeated or final slashes, and a
    missing `/v1`, so a rule that distinguished them could be bypassed.
    """
    text = folded(unescaped(text)).replace("\\", "/")
    if not text.startswith("/"):
        return text.rstrip("/")
    path = "/".join(segment for segment in text.split("/") if segment)
    return f"/{path}" if f"{path}/".startswith("v1/") else f"/v1/{path}".rstrip("/")


def _spellings(name: str) -> Iterator[str]:
    """Yield a name as it is and without each backend before it; Ollama serves `x` and `x:latest` as one model."""
    while True:
        plain = _normal(name).removesuffix(":latest")
        yield plain
        yield f"{plain}:latest"
        _, slash, name = name.partition("/")
        if not slash:
            return


def is_edge_only(edge_only: tuple[str, ...], names: Iterable[str], places: Iterable[str] = ()) -> bool:
    """Whether an edge-only rule matches one of these models or tasks, or one of these places.

    names: as requested, pinned or not, and the names they may resolve to. places: the path, and the MQTT topic.
    A rule for a path holds for the paths below it.
    """
    if not edge_only:
        return False
    rules = _rules_of(edge_only)
    if any(rules.match(spelling) for name in names for spelling in _spellings(name)):
        return True
    return any(rules.match(_normal(place)) for place in places)


class Locality:
    """Applies the operator's edge-only rules to requests and to subtasks."""

    def __init__(self, registry: Registry, scheduler: Scheduler) -> None:
        self._registry, self._scheduler = registry, scheduler

    @property
    def has_rules(self) -> bool:
        """Whether the operator keeps any name or place on the site."""
        return bool(self._scheduler.policy.edge_only)

    def is_edge_only(self, kind: Kind, name: str, places: Iterable[str] = ()) -> bool:
        """Whether the rules keep `name`, what it may resolve to or is an alias of, or one of `places` on the site."""
        if not self.has_rules:
            return False
        is_auto = name.rpartition("/")[2] == AUTO  # pinned or not
        resolved = list(self._registry.auto_models_off_site(kind)) if is_auto else [name]
        aliased = {own for each in resolved for own in self._registry.aliased_names(kind, each)}
        return is_edge_only(self._scheduler.policy.edge_only, {name, *resolved, *aliased}, places)

    def with_locality(self, task: Task) -> Task:
        """Return the task with `may_leave` turned off where a rule keeps it on the site."""
        name = task.name if task.pin is None else f"{task.pin}/{task.name}"
        return task.replace(may_leave=False) if task.may_leave and self.is_edge_only(task.kind, name) else task

    def under_present_rules(self, task: Task, may_leave: Callable[[], bool] | None) -> Task:
        """Return the task with `may_leave` turned off where the rules of this moment, or its key, keep it on the site.

        may_leave: see ResponseSpec. A reload may have changed the rules since the request came.
        """
        if may_leave is not None and not may_leave():
            return task.replace(may_leave=False) if task.may_leave else task
        return self.with_locality(task)

    def task_for(self, task: Task, backend: str, own_name: str, **changes: Any) -> Task:
        """Return the task as `backend` receives it, with the backend's own name for it.

        A hybrid's own names are other backends' names here, so the rules for those names apply, too.
        """
        member, task = self._registry.members.get(backend), task.replace(name=own_name, **changes)
        return self.with_locality(task) if member is not None and member.site == "hybrid" else task


class Eligibility:
    """Which backends are excluded now, and why."""

    def __init__(self, registry: Registry, measurements: Measurements) -> None:
        self._registry, self._measurements = registry, measurements

    def refusal(self, name: str, task: Task, pinned: str | None) -> str | None:
        """Return why `name` must not serve `task` now, or None. pinned: the backend that the request names, if any."""
        if self._registry.members[name].is_off_site and not task.may_leave:
            return EDGE_ONLY
        if self._lacks_endpoint(name, task):
            return LACKS_ENDPOINT
        rests = self._registry.members[name].rests
        if rests.entries and (why := rests.reason(task.name)) is not None:
            return why
        if (why := self.why_unavailable(name, pinned=pinned == name)) is not None:
            return why
        # A hybrid pins its subtasks, and has another side to use.
        return self._measurements.why_down(name) if task.parent_id is not None else None

    def why_unavailable(self, name: str, *, pinned: bool = False) -> str | None:
        """Return why `name` should get no work now, whatever the work, or None.

        A pinned request ignores health checks and link state, but not the breaker.
        """
        member = self._registry.members[name]
        if member.backend is None or member.state != "serving":
            return f"it is {member.state}" + (f": {member.error}" if member.error else "")
        if (why := member.quarantine.reason(member.slots)) is not None:
            return why
        if not member.breaker.is_available(pinned=pinned):
            return f"breaker open: {member.breaker.why_open}"
        if pinned:
            return None
        return self._unhealthy(name) or self._measurements.why_down(name)

    def _unhealthy(self, name: str) -> str | None:
        unwell = self._registry.members[name].unhealthy_reason
        return f"unwell: {unwell}" if unwell else None

    def _lacks_endpoint(self, name: str, task: Task) -> bool:
        return task.kind != "task" and self._registry.members[name].missing_endpoints.is_missing(task.path)

    def last_resort(self, refused: Mapping[str, str | None], task: Task) -> dict[str, str | None]:
        """Allow the backends that are excluded only by a health check, a rest, or the state of their link.

        Their response is more helpful than ours, and may show that they are repaired. A request to a link that is down
        is a probe, which costs less than a wrong refusal; subtasks of a hybrid need the fast refusal. A backend known
        to answer 404 for this path is allowed only if every backend that may serve it is: its 404 is final and would
        mask a temporary failure.
        """
        all_lack_it = all(why == EDGE_ONLY or self._lacks_endpoint(name, task) for name, why in refused.items())
        lacks = LACKS_ENDPOINT if all_lack_it else None
        is_subtask = task.parent_id is not None
        allowed: dict[str, str | None] = {}
        for name, why in refused.items():
            down = None if is_subtask else self._measurements.why_down(name)
            temporary = (self._unhealthy(name), down, self._rest_of(name, task), lacks)
            allowed[name] = None if why in temporary else why
        return allowed

    def is_unreachable(self, name: str) -> bool:
        """Whether the link to `name` is down."""
        return self._measurements.is_down(name)

    def note_demand(self, refused: Iterable[str], task: Task) -> None:
        """Keep probing the excluded backends that this task could use: their next answer ends the exclusion."""
        for name in refused:
            if task.may_leave or not self._registry.members[name].is_off_site:
                self._measurements.on_demand(name)

    def _rest_of(self, name: str, task: Task) -> str | None:
        return self._registry.members[name].rests.reason(task.name)

    def error_without_candidates(self, decision: Decision, task: Task, serving: ServingBackends) -> GatewayError:
        """Return the error for a task that every backend is excluded from.

        `no_backend` if the edge-only rules exclude all, else an error with the time after which one may be retried.
        """
        listed = "; ".join(f"{name}: {why}" for name, why in decision.refused.items())
        message = f"no backend may serve this now ({listed})"
        members = self._registry.members
        if not task.may_leave and all(members[name].is_off_site for name in serving.names):
            return GatewayError(message, code="no_backend", began=False)
        breakers = [
            members[name].breaker for name in serving.names if self.refusal(name, task, serving.pinned) not in PERMANENT
        ]
        waits_s = [breaker.wait_s for breaker in breakers if breaker.wait_s > 0]
        code = "rate_limited" if breakers and all(breaker.is_rate_limit for breaker in breakers) else None
        retry_after_s = min(waits_s, default=DEFAULT_RETRY_AFTER_S)
        return BackendUnavailable(message, code=code, retry_after_s=retry_after_s, began=False)
