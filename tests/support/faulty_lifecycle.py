"""Backends with faults in opening, health checks and declarations."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, Self

from pydantic import Field

from gateway.plugin import Backend, BackendSettings, BackendUnavailable, Result, Services, Task

SECRET = "login failed for api_key=hunter2"


class Panic(BaseException):
    """A BaseException that is not an Exception, as native extensions raise."""


class LifecycleSettings(BackendSettings):
    opens: str = Field("", description="how opening ends")


class UnprintableError(Exception):
    """An exception with a `str` that raises."""

    def __str__(self) -> str:
        raise Panic(SECRET)


class FaultyLifecycle(Backend[LifecycleSettings]):
    """Opens as `opens` specifies; fails with `open_error` if set.

    Health checks return `health_results` in turn.
    """

    tasks = ("serve",)
    open_error: ClassVar[str] = ""
    health_results: ClassVar[list[Any]] = []
    health_checked: ClassVar[asyncio.Event]

    async def __aenter__(self) -> Self:
        FaultyLifecycle.health_checked = asyncio.Event()
        if FaultyLifecycle.open_error:
            raise BackendUnavailable(FaultyLifecycle.open_error)
        if self.settings.opens == "cancelled":
            raise asyncio.CancelledError
        if self.settings.opens == "panic":
            raise Panic(SECRET)
        if self.settings.opens == "raises":
            raise RuntimeError(SECRET)
        if self.settings.opens == "speechless":
            raise UnprintableError
        return self

    async def health(self) -> str | None:
        outcome = FaultyLifecycle.health_results.pop(0) if FaultyLifecycle.health_results else None
        if outcome == "cancels itself":
            me = asyncio.current_task()
            assert me is not None
            me.cancel()
            await asyncio.Event().wait()
        if not FaultyLifecycle.health_results:
            FaultyLifecycle.health_checked.set()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def run(self, task: Task) -> Result:
        return Result(json={"result": "served"})


class InvalidDeclaration(Backend[LifecycleSettings]):
    """Declares models, tasks or kinds of a wrong type."""

    kinds: Any = frozenset({"chat"})
    models: Any = ("lie",)
    tasks: Any = ("lie",)

    def __init__(self, settings: LifecycleSettings, services: Services) -> None:
        super().__init__(settings, services)
        if settings.opens == "number":
            self.models = self.tasks = 3
        elif settings.opens == "kinds":
            self.kinds = None

    async def run(self, task: Task) -> Result:
        return Result(json=1)


class InvalidAttribute(InvalidDeclaration):
    """Sets site, slots or remote to an invalid value."""

    def __init__(self, settings: LifecycleSettings, services: Services) -> None:
        super().__init__(settings, services)
        wrong: Any = {"site": "moon", "slots": "4", "remote": "far"}[settings.opens]
        setattr(self, settings.opens, wrong)


class RaisingProperty(InvalidDeclaration):
    @property
    def models(self) -> Any:  # type: ignore[override]
        raise RuntimeError(SECRET)

    @models.setter
    def models(self, value: Any) -> None:
        pass
