"""One backend in life: what it serves, and how it stands."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gateway.decide.breaker import Breaker
from gateway.decide.quarantine import Quarantine
from gateway.plugin import Backend, BackendSettings, Kind, Site, names_of
from gateway.workers import WorkerBackend

AUTO = "auto"

State = Literal["starting", "serving", "failed", "closing", "closed"]


@dataclass(slots=True, kw_only=True)
class Member:
    """One backend in life. What the operator set wins over what the plugin declares."""

    name: str
    plugin: str
    settings: BackendSettings
    backend: Backend[Any] | None
    breaker: Breaker
    quarantine: Quarantine
    state: State = "starting"
    error: str | None = None
    unwell: str | None = None
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    life: asyncio.Task[None] | None = None
    fingerprint: object = None

    @property
    def site(self) -> Site:
        """Where it works."""
        return self.backend.site if self.backend else "edge"

    @property
    def is_pool(self) -> bool:
        """Whether it works in processes of its own, which are replaced when they die."""
        return isinstance(self.backend, WorkerBackend)

    @property
    def is_remote(self) -> bool:
        """Whether a network lies between the gateway and it."""
        declared = self.backend.remote if self.backend else None
        return self.site == "cloud" if declared is None else declared

    @property
    def slots(self) -> int:
        """How many tasks it works on at once."""
        return self.backend.slots if self.backend else 1

    @property
    def models(self) -> Mapping[str, str] | None:
        """Models by the client's name; None while unknown."""
        return None if self.backend is None or self.backend.models is None else names_of(self.backend.models)

    @property
    def tasks(self) -> Mapping[str, str] | None:
        """Tasks by the client's name; None while unknown."""
        return None if self.backend is None or self.backend.tasks is None else names_of(self.backend.tasks)

    def serves(self, kind: Kind, name: str) -> str | None:
        """The backend's own name for `name`, or None where it does not serve that."""
        if kind == "task":
            return (self.tasks or {}).get(name)
        models = self.models if self.backend and kind in self.backend.kinds else None
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
