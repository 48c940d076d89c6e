"""An operator's own Python functions as tasks, in worker processes where they may compute and block.

A JSON object's members are the keyword arguments; what the function returns is the result, and each value a
generator yields is a part. Functions and generators may be plain or async.

    TASKS=weather.tools:forecast,weather.tools:alarm     by name, or {"wx": "weather.tools:forecast"}
    TASKS_DIR=/etc/edge-gateway/tasks                    every public function of every file there
"""

from __future__ import annotations

import inspect
import math
import os
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, closing
from typing import ClassVar, Self

from pydantic import DirectoryPath, Field, field_validator

from gateway.plugin import (
    Backend,
    BackendSettings,
    BackendUnavailable,
    GatewayError,
    Part,
    Result,
    Services,
    Task,
    frames_of,
)
from gateway_local.calling import Callee, as_json
from gateway_local.loading import load_folder, load_named

SHIPPED = {name: f"gateway_local.functions:{name}" for name in ("add", "burn", "count", "squares")}
EXAMPLES = {"add": {"a": 10, "b": 20}, "burn": {"seconds": 0.001}, "count": {"n": 3}, "squares": {"items": [2, 3]}}
TELL_EVERY_S = 60.0
TRACEBACK_CHARS = 8000
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


class LocalSettings(BackendSettings):
    """What an operator may set."""

    tasks: dict[str, str] | None = Field(
        None,
        description="functions to serve, `package.module:function,…`, or a map from the client's name to such a one",
    )
    tasks_dir: DirectoryPath | None = Field(
        None, description="a folder; every public function of every `*.py` file in it is served"
    )

    @field_validator("tasks")
    @classmethod
    def _client_names(cls, tasks: dict[str, str] | None) -> dict[str, str] | None:
        """A function given without a name is called by its own."""
        named: dict[str, str] = {}
        for name, target in (tasks or {}).items():
            if not _TARGET.fullmatch(target):
                raise ValueError(f"`{target}` is not of the form `package.module:function`")
            name = re.split(r"[:.]", target)[-1] if name == target else name
            if name in named:
                raise ValueError(f"`{named[name]}` and `{target}` are both called `{name}`; name one by a map")
            named[name] = target
        return named or None


class Local(Backend[LocalSettings]):
    """Calls functions."""

    isolation = "process"
    examples: ClassVar = EXAMPLES
    slots = len(os.sched_getaffinity(0))

    def __init__(self, settings: LocalSettings, services: Services) -> None:
        super().__init__(settings, services)
        self.tasks = None
        self._callees: dict[str, Callee] = {}
        self._told: dict[tuple[str, str, str], tuple[float, int]] = {}

    async def __aenter__(self) -> Self:
        """Import the functions. Raises BackendUnavailable that names what is wrong with which."""
        settings = self.settings
        named = settings.tasks or ({} if settings.tasks_dir else SHIPPED)
        functions = load_named(named)
        if settings.tasks_dir is not None:
            for name, function in load_folder(settings.tasks_dir).items():
                if name in functions:
                    raise BackendUnavailable(f"`{name}` is both in TASKS ({named[name]}) and in {settings.tasks_dir}")
                functions[name] = function
        self._callees = {name: Callee(name, function) for name, function in functions.items()}
        self.tasks = {name: name for name in self._callees}
        return self

    async def run(self, task: Task) -> AsyncIterator[Part | Result]:
        """Call the function; yields one result, or a part for each value of a generator.

        What the function raises is its own affair, and often its argument's: that says nothing of the others.
        """
        try:
            async with aclosing(self._called(task)) as items:
                async for item in items:
                    yield item
        except GatewayError:
            raise
        except Exception as exc:
            self._tell(task, exc)
            message = f"`{task.name}` raised {type(exc).__name__}"
            raise BackendUnavailable(message, code="plugin_error", again=False, detail=str(exc)) from exc

    def _tell(self, task: Task, exc: Exception) -> None:
        """Once a minute of each place: clients can cause it."""
        what = type(exc).__name__
        frames = frames_of(exc)
        key, now = (task.name, what, frames[-1]), time.monotonic()
        told_at, left_out = self._told.get(key, (-math.inf, 0))
        if now - told_at < TELL_EVERY_S:
            self._told[key] = (told_at, left_out + 1)
            return
        self._told[key] = (now, 0)
        where = "\n".join(frames)[-TRACEBACK_CHARS:]
        self.services.log.error("local.raised", request_id=task.id, error=what, traceback=where, suppressed=left_out)

    async def _called(self, task: Task) -> AsyncGenerator[Part | Result, None]:
        value = self._callees[task.name].call(task.json)
        if inspect.isawaitable(value):
            value = await value
        if inspect.isasyncgen(value):
            async with aclosing(value):
                async for item in value:
                    yield Part(as_json(item, task.name))
        elif inspect.isgenerator(value):
            with closing(value):
                for item in value:
                    yield Part(as_json(item, task.name))
        else:
            yield Result(json={"result": as_json(value, task.name)})
