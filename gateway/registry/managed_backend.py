"""One backend under the control of the registry: its declarations, its health and its state.

State machine of the lifecycle. The pairs that the table does not hold cannot happen, and raise KeyError:

    starting  the plugin's `__aenter__` runs, or is about to
    serving   opened; gets requests
    failed    it could not be opened; it stays in the registry, so that its error can be reported, and is tried again
    closing   a reload retires it: it finishes its work and gets no new work
    closed    the plugin's `__aexit__` was called, or the opening was cancelled
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

from gateway.health.breaker import Breaker
from gateway.health.missing_endpoints import MissingEndpoints
from gateway.health.quarantine import Quarantine
from gateway.health.rests import Rests
from gateway.plugin import Backend, BackendSettings, BackendUnavailable, GatewayError, Kind, Site
from gateway.plugin.checks import parse_names
from gateway.plugin.errors import message_of
from gateway.telemetry import log
from gateway.workers import WorkerBackend

AUTO = "auto"

State = Literal["starting", "serving", "failed", "closing", "closed"]
Event = Literal["opened", "open_failed", "open_cancelled", "retired", "closed"]

TRANSITIONS: dict[State, dict[Event, State]] = {
    "starting": {
        "opened": "serving",
        "open_failed": "failed",
        "open_cancelled": "closed",
        "retired": "closing",
        "closed": "closed",  # the stop was requested while it opened
    },
    "serving": {"retired": "closing", "closed": "closed"},
    "failed": {
        "opened": "serving",  # at a further attempt
        "open_failed": "failed",
        "open_cancelled": "closed",
        "retired": "closing",
        "closed": "closed",
    },
    "closing": {
        "open_failed": "failed",  # retired while it opened
        "open_cancelled": "closed",
        "retired": "closing",  # the first reload was superseded by a second one
        "closed": "closed",
    },
    "closed": {"retired": "closing"},  # its task had ended by itself
}

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class ManagedBackend:
    """One configured backend. Settings of the operator win over declarations of the plugin.

    error: why it does not serve, safe for clients to read. cause: the same for the operator, with the exception's text.
    can_open_later: the last attempt to open it failed in a way that may pass.
    health_error: the result of the last health check; None: it passed. declaration_errors: by attribute, why the
    plugin's declaration cannot be read.
    opening_done: set once it has opened and its first health check is done, or once the opening has failed.
    stop_requested: set to close it. task: runs its lifecycle.
    """

    name: str
    plugin: str
    settings: BackendSettings
    backend: Backend[Any] | None
    breaker: Breaker
    quarantine: Quarantine
    state: State = "starting"
    error: str | None = None
    cause: str | None = None
    can_open_later: bool = False
    health_error: str | None = None
    declaration_errors: dict[str, str] = field(default_factory=dict)
    missing_endpoints: MissingEndpoints = field(default_factory=MissingEndpoints)
    rests: Rests = field(default_factory=Rests)
    opening_done: asyncio.Event = field(default_factory=asyncio.Event)
    stop_requested: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    fingerprint: object = None

    def transition(self, event: Event) -> None:
        """Change the state by the table. Raises KeyError for an event that the state does not allow."""
        self.state = TRANSITIONS[self.state][event]

    def fail(self, exc: BaseException) -> None:
        """It does not serve because `exc` was raised while it opened."""
        self.transition("open_failed")
        self.can_open_later = self.backend is not None and (self.has_workers or isinstance(exc, BackendUnavailable))
        self.error = public_error(exc)
        text = exc.detail if isinstance(exc, GatewayError) else message_of(exc)
        if self.backend is not None or self.cause is None:  # else its plugin cannot be loaded: the first cause stays
            self.cause = f"{self.error}: {text}" if text else self.error

    # ── where it works ───────────────────────────────────────────────────────────────────────────

    @property
    def site(self) -> Site:
        return self.backend.site if self.backend else "edge"

    @property
    def is_off_site(self) -> bool:
        """True if request data leaves the site.

        False only for a backend on the site, and for one that has the gateway run all its subtasks: each subtask is
        checked by itself. The latter counts only if the plugin's class declares it (`site = "hybrid"`).
        """
        backend = self.backend
        runs_subtasks_only = backend is not None and backend.site == type(backend).site == "hybrid"
        return self.site != "edge" and not runs_subtasks_only

    @property
    def is_remote(self) -> bool:
        """True if there is a network between the gateway and the backend."""
        declared = self.backend.remote if self.backend else None
        return self.site == "cloud" if declared is None else declared

    @property
    def has_workers(self) -> bool:
        """True if it runs in worker processes, which are replaced when they die."""
        return isinstance(self.backend, WorkerBackend)

    @property
    def workers(self) -> list[dict[str, Any]] | None:
        """The status of its worker processes, one per slot; None without worker processes."""
        return self.backend.workers if isinstance(self.backend, WorkerBackend) else None

    @property
    def drain_s(self) -> float:
        """Seconds a cancelled task has to end before its worker process is killed; 0 without worker processes."""
        return self.backend.drain_s() if isinstance(self.backend, WorkerBackend) else 0.0

    def end_cancelled(self, task_id: str) -> None:
        """Replace the worker process that still computes this cancelled task, if there is one."""
        if isinstance(self.backend, WorkerBackend):
            self.backend.end_cancelled(task_id)

    @property
    def slots(self) -> int:
        """How many tasks it runs at once."""
        declared = self.backend.slots if self.backend else 1
        return declared if isinstance(declared, int) and declared > 0 else 1  # also read before `check_declaration`

    @property
    def has_exclusive_resources(self) -> bool:
        """True if it may hold a resource that exists once per host: the memory of a model, a device."""
        return self.has_workers or (self.site == "edge" and not self.is_remote)

    # ── its health ───────────────────────────────────────────────────────────────────────────────

    @property
    def unhealthy_reason(self) -> str | None:
        """Why it is unhealthy; None if no fault is known."""
        return self.health_error or next(iter(self.declaration_errors.values()), None)

    @property
    def is_usable(self) -> bool:
        """True if it serves or is about to, and is not quarantined."""
        return self.state in ("starting", "serving") and self.quarantine.reason(self.slots) is None

    @property
    def has_health_check(self) -> bool:
        """True if the plugin implements `health`."""
        return self.backend is not None and type(self.backend).health is not Backend.health

    # ── its declarations ─────────────────────────────────────────────────────────────────────────

    @property
    def models(self) -> Mapping[str, str] | None:
        """The backend's own name of each model, by the client's name; None while unknown."""
        return self._declared("models", lambda backend: _names(backend.models), None)

    @property
    def tasks(self) -> Mapping[str, str] | None:
        """The backend's own name of each task, by the client's name; None while unknown."""
        return self._declared("tasks", lambda backend: _names(backend.tasks), None)

    @property
    def problems(self) -> list[str]:
        """Faults that do not keep it out of service."""
        return self._declared("problems", lambda backend: [str(problem) for problem in backend.problems], [])

    def supports(self, kind: Kind) -> bool:
        """True if its models serve requests of this kind."""
        return self._declared("kinds", lambda backend: kind in backend.kinds, False)

    def own_name(self, kind: Kind, name: str) -> str | None:
        """The backend's own name for the client's `name`; None if it does not serve that name."""
        if kind == "task":
            return (self.tasks or {}).get(name)
        models = self.models if self.supports(kind) else None
        if not models:
            return None
        return next(iter(models.values())) if name == AUTO else models.get(name)

    def is_catalog_known(self, kind: Kind) -> bool:
        """True if the names that it serves for `kind` are known."""
        if self.state == "starting":
            return False
        return self.state != "serving" or (self.tasks if kind == "task" else self.models) is not None

    def may_own_unopened(self, kind: Kind, name: str) -> bool:
        """True if it failed to open and may serve `name`: it declares the name, or its names are not known."""
        if self.state != "failed":
            return False
        backend = self.backend.unopened if isinstance(self.backend, WorkerBackend) else self.backend
        declared: list[Mapping[str, str] | None] = []
        for own, chosen in (("tasks", self.settings.tasks), ("models", self.settings.models)):
            names = self._declared(own, lambda _, own=own: _names(getattr(backend, own)), None)  # type: ignore[misc]
            declared.append(names if chosen is None else chosen)
        tasks, models = declared
        if not tasks and not models and None not in declared:
            return True  # a plugin may learn its names when it opens
        names = tasks if kind == "task" else models
        return names is None or name in names or (name == AUTO and kind != "task" and bool(names))

    def is_repeatable(self, kind: Kind) -> bool:
        """True if running a task of `kind` twice is harmless."""
        declared = self.backend.repeatable if self.backend else None
        return kind != "task" if declared is None else declared

    @property
    def resumes(self) -> bool:
        """True if it continues an assistant's turn from a given beginning."""
        return self.backend is not None and self.backend.resumes

    def is_equivalent_to(self, other: ManagedBackend) -> bool:
        """True if work planned for `other` may run here: same site, same names."""
        return (self.site, self.is_off_site, self.models, self.tasks) == (
            other.site, other.is_off_site, other.models, other.tasks,
        )  # fmt: skip

    def check_declaration(self) -> None:
        """Raise BackendUnavailable without a plugin, or if it declares unusable values: then the plugin is dropped."""
        backend, self.backend = self.backend, None
        if backend is None:
            raise BackendUnavailable(self.error or "it has no plugin")
        if backend.site not in get_args(Site):
            raise BackendUnavailable(f"its `site` has to be one of {', '.join(get_args(Site))}")
        if not isinstance(backend.slots, int) or backend.slots < 1:
            raise BackendUnavailable("its `slots` has to be a whole number, 1 or more")
        if backend.remote not in (None, True, False) or backend.repeatable not in (None, True, False):
            raise BackendUnavailable("its `remote` and `repeatable` have to be True, False or None")
        self.backend = backend

    def _declared(self, attribute: str, read: Callable[[Backend[Any]], T], unknown: T) -> T:
        """A declaration of the plugin, which may be a property. If it raises, return `unknown` and log that once."""
        if self.backend is None:
            return unknown
        try:
            found = read(self.backend)
        except BaseException as exc:  # synchronous, so every exception comes from the plugin
            if attribute not in self.declaration_errors:
                error = f"its declaration of `{attribute}` cannot be read: {type(exc).__name__}"
                self.declaration_errors[attribute] = error
                log.warning("backend.unwell", backend=self.name, error=error)
            return unknown
        if attribute in self.declaration_errors:
            del self.declaration_errors[attribute]
        return found


def public_error(exc: BaseException) -> str:
    """The part of `exc` that clients may read: the message of a GatewayError, else only the type."""
    return exc.message if isinstance(exc, GatewayError) else type(exc).__name__


def _names(declared: Any) -> Mapping[str, str] | None:
    """Declared names as a map; None while unknown. Raises TypeError if they are neither a map nor a list of names."""
    names = parse_names(declared)
    if names is not None and not isinstance(names, Mapping):
        raise TypeError(f"{type(names).__name__} is not a list of names")
    return names
