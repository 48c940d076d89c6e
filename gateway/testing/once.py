"""One request, one answer: for tests of what a backend makes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, cast

from gateway.plugin import Backend, Part, Result, Task
from gateway.testing.bench import Dispatch, KitServices, hand_back


async def answer_of(cls: type[Backend[Any]], task: Task, *, dispatch: Dispatch = hand_back, **settings: Any) -> Result:
    """What a backend with these settings answers: started, asked, stopped. Raises what it raises."""
    items = await _items(cls, task, dispatch, settings)
    if len(items) != 1 or not isinstance(items[0], Result):
        raise AssertionError(f"it was to give one Result and gave {items!r}; parts_of is for streams")
    return items[0]


async def parts_of(
    cls: type[Backend[Any]], task: Task, *, dispatch: Dispatch = hand_back, **settings: Any
) -> list[Any]:
    """What a backend with these settings streams: the data of each part. Raises what it raises."""
    items = await _items(cls, task, dispatch, settings)
    if not all(isinstance(item, Part) for item in items):
        raise AssertionError(f"it was to give Parts and gave {items!r}; answer_of is for whole answers")
    return [item.raw if item.data is None else item.data for item in items if isinstance(item, Part)]


async def _items(
    cls: type[Backend[Any]], task: Task, dispatch: Dispatch, settings: dict[str, Any]
) -> list[Part | Result]:
    services = KitServices(cls.__name__.lower(), dispatch)
    async with cls(cls.Settings.model_validate(settings), services) as backend:
        produced = backend.run(task)
        if not isinstance(produced, AsyncIterator):
            return [await produced]
        async with aclosing(cast(Any, produced)) as items:
            return [item async for item in items]
