"""Divides a list over two other backends, one here and one far away, and puts the answers together again.

Theory of operation: the list is cut into groups, and each side takes the next group whenever it is free, so
the faster one does more and nobody has to know by how much. The groups are ordinary subtasks: the gateway
queues, limits and times each of them, and keeps what may not leave on the site.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from gateway.plugin import (
    Backend,
    BackendFailed,
    BackendSettings,
    BackendUnavailable,
    DeadlineExceeded,
    GatewayError,
    Result,
    Task,
    TaskInvalid,
    View,
)

__all__ = ["Hybrid", "HybridSettings"]


class HybridSettings(BackendSettings):
    """Which two backends share the work, and how a task is divided."""

    mode: Literal["scatter"] = Field("scatter", description="how work is divided: `scatter` deals out a list")
    edge: str = Field(description="name of the backend on this site")
    cloud: str = Field(description="name of the backend far away")
    tasks: dict[str, str] = Field(
        description="tasks it offers: list, or map from the client's name to what both backends call it"
    )
    argument: str = Field("items", description="the argument of the task that holds the list")
    groups: int = Field(8, ge=2, le=1024, description="into how many groups a list is cut, at most")

    @field_validator("edge", "cloud")
    @classmethod
    def _is_another_backend(cls, value: str, info: ValidationInfo) -> str:
        others = {*(info.context or {}).get("backends", ())} - {(info.context or {}).get("name")}
        if info.context and value not in others:
            raise ValueError(f"there is no other backend {value!r}; there are: {', '.join(sorted(others)) or 'none'}")
        return value

    @model_validator(mode="after")
    def _two_sides(self) -> Self:
        if self.edge == self.cloud:
            raise ValueError(f"EDGE and CLOUD are both {self.edge!r}; name two different backends")
        return self


class Hybrid(Backend[HybridSettings]):
    """Answers `{"result": [...]}`, the parts' results in the order of the list they came from."""

    site = "hybrid"
    slots = 64
    repeatable = True  # what is scattered is a function of an item alone; REPEATABLE=false where it is not

    async def run(self, task: Task) -> Result:
        task.terms.enter("split")
        scatter = _Scatter(self, task)
        task.terms.leave()
        await scatter.work()
        task.terms.enter("aggregate")
        return scatter.whole()

    def estimate(self, task: Task, view: View) -> float | None:
        """Both sides work at once, so their speeds add: 1/T = 1/T_edge + 1/T_cloud."""
        sides = [self.settings.edge, self.settings.cloud] if task.may_leave else [self.settings.edge]
        speeds = [1 / seconds for side in sides if (seconds := view.seconds(side, task))]
        return 1 / sum(speeds) if speeds else None


class _Scatter:
    """One list on its way: which groups wait, and what came back for each."""

    def __init__(self, hybrid: Hybrid, task: Task) -> None:
        self.settings, self.services, self.task = hybrid.settings, hybrid.services, task
        items = self._items()
        self._waiting = deque(enumerate(_cut(items, self.settings.groups)))
        self._answers: list[Result | None] = [None] * len(self._waiting)

    def _items(self) -> list[Any]:
        name, arguments = self.settings.argument, self.task.json
        items = arguments.get(name) if isinstance(arguments, dict) else None
        if not isinstance(items, list):
            message = f'{self.task.name} takes an object with a list {name!r}: {{"{name}": [...]}}'
            raise TaskInvalid(message, param=name)
        return items

    async def work(self) -> None:
        """Let every side pull until all groups are answered. The first failure stops the rest."""
        edge, cloud = self.settings.edge, self.settings.cloud
        sides = [(edge, cloud), (cloud, edge)] if self.task.may_leave else [(edge, None)]
        try:
            async with asyncio.TaskGroup() as feeders:
                for side, other in sides:
                    feeders.create_task(self._feed(side, other))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _feed(self, side: str, other: str | None) -> None:
        while self._waiting:
            number, group = self._waiting.popleft()
            self._answers[number] = await self._ask_either(side, other, group)

    async def _ask_either(self, side: str, other: str | None, group: list[Any]) -> Result:
        try:
            return await self._ask(side, group)
        except (TaskInvalid, DeadlineExceeded):
            raise
        except GatewayError as exc:
            # Refusals aside (a busy side, a link known to be down), it may have run before it failed.
            may_have_run = exc.began and isinstance(exc, BackendUnavailable | BackendFailed)
            if other is None or (may_have_run and self.settings.repeatable is False):
                raise
            self.services.log.info(
                "hybrid.group_moved", parent_id=self.task.id, before=side, after=other, error=exc.code
            )
            return await self._ask(other, group)

    async def _ask(self, side: str, group: list[Any]) -> Result:
        arguments = {**self.task.json, self.settings.argument: group}
        return await self.services.dispatch(self.task.subtask(backend=side, json=arguments, items=len(group)))

    def whole(self) -> Result:
        """All answers as one; an upstream's own refusal of a group is the answer to the whole."""
        answers = [answer for answer in self._answers if answer is not None]
        for answer in answers:
            if answer.status >= 400:
                return answer
        return Result(json={"result": [value for answer in answers for value in _values(answer)]})


def _cut(items: list[Any], groups: int) -> Iterator[list[Any]]:
    """At most `groups` slices, none empty, sizes as equal as they can be."""
    groups = min(groups, len(items))
    for number in range(groups):
        yield items[number * len(items) // groups : (number + 1) * len(items) // groups]


def _values(answer: Result) -> list[Any]:
    value = answer.value()
    values = value.get("result") if isinstance(value, dict) else None
    if not isinstance(values, list):
        raise BackendFailed(
            f'{answer.backend or "a backend"} was to answer {{"result": [...]}} for its group, and did not',
            code="upstream_bad_response",
        )
    return values
