"""One backend in life: what it serves, and how it stands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

from gateway.health.breaker import Breaker
from gateway.health.missing_endpoints import MissingEndpoints
from gateway.health.quarantine import Quarantine
from gateway.plugin import Backend, BackendSettings, BackendUnavailable, GatewayError, Kind, Site
from gateway.plugin.checks import parse_names
from gateway.plugin.errors import message_of
from gateway.telemetry import log
from gateway.workers import WorkerBackend

AUTO = "auto"

State = Literal["starting", "serving", "failed", "closing", "closed"]
T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class ManagedBackend:
    """One backend in life. What the operator set wins over what the plugin declares.

    error: why it does not serve, as clients may read it; cause: the same for the operator, with the words of whatever
    was raised. unwell: what its health check says, or what is wrong with what it declares.
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
    complaint: str | None = None
    flaws: dict[str, str] = field(default_factory=dict)
    lacks: MissingEndpoints = field(default_factory=MissingEndpoints)
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    life: asyncio.Task[None] | None = None
    fingerprint: object = None

    @property
    def site(self) -> Site:
        """Where it works."""
        return self.backend.site if self.backend else "edge"

    @property
    def is_off_site(self) -> bool:
        """Whether what it is given leaves the site. Yes, unless it works here, or has the gateway do all its work.

        The latter is for the plugin's class to declare (`hybrid`): what it asks for is judged task by task.
        """
        backend = self.backend
        divides = backend is not None and backend.site == type(backend).site == "hybrid"
        return self.site != "edge" and not divides

    def does_as(self, other: ManagedBackend) -> bool:
        """Whether work that was meant for `other` may be done here: on the same side, under the same names."""
        return (self.site, self.is_off_site, self.models, self.tasks) == (
            other.site, other.is_off_site, other.models, other.tasks,
        )  # fmt: skip

    @property
    def is_pool(self) -> bool:
        """Whether it works in processes of its own, which are replaced when they die."""
        return isinstance(self.backend, WorkerBackend)

    @property
    def workers(self) -> list[dict[str, Any]] | None:
        """Its processes, one for each slot; None where it has none."""
        return self.backend.workers if isinstance(self.backend, WorkerBackend) else None

    @property
    def drain_s(self) -> float:
        """Seconds a cancelled task has to end in, before its process is killed; 0 where there is none to kill."""
        return self.backend.drain_s() if isinstance(self.backend, WorkerBackend) else 0.0

    @property
    def is_remote(self) -> bool:
        """Whether a network lies between the gateway and it."""
        declared = self.backend.remote if self.backend else None
        return self.site == "cloud" if declared is None else declared

    @property
    def slots(self) -> int:
        """How many tasks it works on at once."""
        declared = self.backend.slots if self.backend else 1
        return declared if isinstance(declared, int) and declared > 0 else 1  # it is asked before `check`, too

    @property
    def unwell(self) -> str | None:
        """What is wrong with it; None where nothing is known to be."""
        return self.complaint or next(iter(self.flaws.values()), None)

    @property
    def is_sound(self) -> bool:
        """Whether it serves, or is about to, as far as anybody knows."""
        return self.state in ("starting", "serving") and self.quarantine.why(self.slots) is None

    @property
    def holds_resources(self) -> bool:
        """Whether it may hold what there is only once on this host: the memory of a model, a device."""
        return self.is_pool or (self.site == "edge" and not self.is_remote)

    @property
    def models(self) -> Mapping[str, str] | None:
        """Models by the client's name; None while unknown."""
        return self._declared("models", lambda backend: _names(backend.models), None)

    @property
    def tasks(self) -> Mapping[str, str] | None:
        """Tasks by the client's name; None while unknown."""
        return self._declared("tasks", lambda backend: _names(backend.tasks), None)

    def has(self, kind: Kind) -> bool:
        """Whether its models serve requests of this kind."""
        return self._declared("kinds", lambda backend: kind in backend.kinds, False)

    def _declared(self, what: str, read: Callable[[Backend[Any]], T], unknown: T) -> T:
        """What the plugin declares, which may be a property; where that breaks it is unknown, and told once."""
        if self.backend is None:
            return unknown
        try:
            found = read(self.backend)
        except BaseException as exc:  # nothing is awaited here: whatever it is, it is the plugin's
            if what not in self.flaws:
                self.flaws[what] = f"what it declares as `{what}` cannot be read: {type(exc).__name__}"
                log.warning("backend.unwell", backend=self.name, error=self.flaws[what])
            return unknown
        if what in self.flaws:
            del self.flaws[what]
        return found

    def check(self) -> None:
        """Raise BackendUnavailable where what everybody asks it for is of no use; it has no plugin then."""
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

    def fail(self, exc: BaseException) -> None:
        """It does not serve because of `exc`."""
        self.state, self.error = "failed", describe(exc)
        words = exc.detail if isinstance(exc, GatewayError) else message_of(exc)
        self.cause = self.cause or (f"{self.error}: {words}" if words else self.error)

    def serves(self, kind: Kind, name: str) -> str | None:
        """The backend's own name for `name`, or None where it does not serve that."""
        if kind == "task":
            return (self.tasks or {}).get(name)
        models = self.models if self.has(kind) else None
        if not models:
            return None
        return next(iter(models.values())) if name == AUTO else models.get(name)

    def knows(self, kind: Kind) -> bool:
        """Whether it is known what it serves of `kind`."""
        if self.state == "starting":
            return False
        return self.state != "serving" or (self.tasks if kind == "task" else self.models) is not None

    def repeatable(self, kind: Kind) -> bool:
        """Whether running a task of `kind` twice is harmless."""
        declared = self.backend.repeatable if self.backend else None
        return kind != "task" if declared is None else declared

    @property
    def resumes(self) -> bool:
        """Whether it continues an assistant's turn whose beginning it is given."""
        return self.backend is not None and self.backend.resumes

    @property
    def is_watched(self) -> bool:
        """Whether its health is asked for."""
        return self.backend is not None and type(self.backend).health is not Backend.health


def describe(exc: BaseException) -> str:
    """What anybody may read of `exc`: a plugin's own word where it is a GatewayError, else its type alone."""
    return exc.message if isinstance(exc, GatewayError) else type(exc).__name__


def _names(declared: Any) -> Mapping[str, str] | None:
    """As a map; None while unknown. Raises where it is none, nor a list of names."""
    names = parse_names(declared)
    if names is not None and not isinstance(names, Mapping):
        raise TypeError(f"{type(names).__name__} is no list of names")
    return names
