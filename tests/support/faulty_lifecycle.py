"""Backends that break what goes on beside requests: opening, being asked how they are, saying what they serve."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, Self

from pydantic import Field

from gateway.plugin import Backend, BackendSettings, BackendUnavailable, Result, Services, Task

SECRET = "login failed for api_key=hunter2"


class Panic(BaseException):
    """What native extensions raise: no Exception."""


class LifecycleSettings(BackendSettings):
    opens: str = Field("", description="how opening ends")


class UnprintableError(Exception):
    """Whose own text raises."""

    def __str__(self) -> str:
        raise Panic(SECRET)


class FaultyLifecycle(Backend[LifecycleSettings]):
    """Opens as `opens` says, or not, where `broken` says why; what is in `says`, its health check says in turn."""

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
        said = FaultyLifecycle.health_results.pop(0) if FaultyLifecycle.health_results else None
        if said == "cancels itself":
            me = asyncio.current_task()
            assert me is not None
            me.cancel()
            await asyncio.Event().wait()
        if not FaultyLifecycle.health_results:
            FaultyLifecycle.health_checked.set()
        if isinstance(said, BaseException):
            raise said
        return said

    async def run(self, task: Task) -> Result:
        return Result(json={"result": "served"})


class InvalidDeclaration(Backend[LifecycleSettings]):
    """Serves nothing of what it says: it cannot say it."""

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
    """Is nowhere, or has no slots, or cannot say whether there is a network between."""

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
