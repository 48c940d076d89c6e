"""Serves an operator's Python functions as tasks, in worker processes in which they may compute and block.

The members of the JSON body are the keyword arguments. The return value is the result; each value that a generator
yields is a part of a stream. Functions and generators may be plain or async.

    TASKS=weather.tools:forecast,weather.tools:alarm     by name, or {"wx": "weather.tools:forecast"}
    TASKS_DIR=/etc/edge-gateway/tasks                    every public function of every file there
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import aclosing
from typing import Any, ClassVar, Self

from pydantic import DirectoryPath, Field, field_validator

from gateway.plugin import (
    Backend,
    BackendSettings,
    BackendUnavailable,
    GatewayError,
    NotServed,
    Part,
    Result,
    Services,
    Task,
    debug_text,
    frames_of,
)
from gateway_local.calling import BoundFunction, as_json
from gateway_local.event_loop import outside_loop
from gateway_local.loading import Functions, load_file, load_folder, load_functions

EXAMPLE_FUNCTIONS = {name: f"gateway_local.functions:{name}" for name in ("add", "burn", "count", "squares")}
EXAMPLES = {"add": {"a": 10, "b": 20}, "burn": {"seconds": 0.001}, "count": {"n": 3}, "squares": {"items": [2, 3]}}
LOG_INTERVAL_S = 60.0
RETRY_S = 5.0  # between two attempts to load a file that could not be imported
TRACEBACK_CHARS = 8000
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


class LocalSettings(BackendSettings):
    """Settings of the `local` plugin."""

    tasks: dict[str, str] | None = Field(
        None,
        description="functions to serve, `package.module:function,…`, or a map from the client's name to such a target",
    )
    tasks_dir: DirectoryPath | None = Field(
        None, description="a folder; every public function of every `*.py` file in it is served"
    )

    @field_validator("tasks")
    @classmethod
    def _client_names(cls, tasks: dict[str, str] | None) -> dict[str, str] | None:
        """A function listed without a name is served by its own name."""
        named: dict[str, str] = {}
        for name, target in (tasks or {}).items():
            if not _TARGET.fullmatch(target):
                raise ValueError(f"`{target}` is not of the form `package.module:function`")
            name = re.split(r"[:.]", target)[-1] if name == target else name
            if name in named:
                raise ValueError(f"`{named[name]}` and `{target}` are both called `{name}`; rename one by a map")
            named[name] = target
        return named or None


class Local(Backend[LocalSettings]):
    """Calls Python functions."""

    isolation = "process"
    examples: ClassVar = EXAMPLES
    slots = len(os.sched_getaffinity(0))

    def __init__(self, settings: LocalSettings, services: Services) -> None:
        super().__init__(settings, services)
        self.tasks = None
        self._functions = Functions()
        self._tried_at: dict[str, float] = {}  # by broken task, the last attempt to load it
        self._logged: dict[tuple[str, str, str], tuple[float, int]] = {}

    async def __aenter__(self) -> Self:
        """Import the functions. Raises BackendUnavailable if none can be served; it names the first error."""
        settings = self.settings
        named = settings.tasks or ({} if settings.tasks_dir else EXAMPLE_FUNCTIONS)
        functions = self._functions = Functions()
        with outside_loop():
            if settings.tasks_dir is not None:
                load_folder(settings.tasks_dir.absolute(), functions)
            for name in set(named) & set(functions.files):
                raise BackendUnavailable(f"`{name}` is both in TASKS ({named[name]}) and in {settings.tasks_dir}")
            load_functions(named, functions)
        if not functions.served:
            nothing = f"no file in {settings.tasks_dir} defines a public function"
            raise BackendUnavailable("; ".join(functions.problems) or nothing)
        names = [*functions.served, *functions.broken]
        self.tasks, self.problems = dict(zip(names, names, strict=True)), tuple(functions.problems)
        self._tried_at = dict.fromkeys(functions.broken, time.monotonic())
        return self

    def _function(self, name: str) -> BoundFunction:
        """Return the function of a task. One that could not be loaded is tried again after RETRY_S.

        Raises NotServed, which another backend may serve, with the reason.
        """
        functions, now = self._functions, time.monotonic()
        if name in functions.broken and now - self._tried_at[name] >= RETRY_S:
            self._tried_at[name] = now
            with outside_loop():
                self._load_again(name)
        if name in functions.broken:
            reason = f"task `{name}` cannot be served: {functions.broken[name]}"
            raise NotServed(reason, code="unavailable", began=False, again=False)
        return functions.served[name]

    def _load_again(self, name: str) -> None:
        if (file := self._functions.files.get(name)) is not None:
            importlib.invalidate_caches()
            load_file(file, self._functions)
        elif target := (self.settings.tasks or {}).get(name):
            load_functions({name: target}, self._functions)

    async def run(self, task: Task) -> AsyncIterator[Part | Result]:
        """Call the function; yield one result, or a part for each value of a generator.

        An exception of the function often depends on its argument, so it does not count against the backend.
        """
        try:
            async with aclosing(self._call(task)) as items:
                async for item in items:
                    yield item
        except GatewayError:
            raise
        except Exception as exc:
            self._log_exception(task, exc)
            message = f"`{task.name}` raised {type(exc).__name__}"
            error = BackendUnavailable(message, code="plugin_error", again=False, detail=str(exc))
            error.debug = debug_text(exc)
            raise error from exc

    def _log_exception(self, task: Task, exc: Exception) -> None:
        """Log at most once a minute for each place: a client can cause any number of exceptions."""
        what = type(exc).__name__
        frames = frames_of(exc)
        key, now = (task.name, what, frames[-1]), time.monotonic()
        logged_at, suppressed = self._logged.get(key, (-math.inf, 0))
        if now - logged_at < LOG_INTERVAL_S:
            self._logged[key] = (logged_at, suppressed + 1)
            return
        self._logged[key] = (now, 0)
        where = "\n".join(frames)[-TRACEBACK_CHARS:]
        self.services.log.error("local.raised", request_id=task.id, error=what, traceback=where, suppressed=suppressed)

    async def _call(self, task: Task) -> AsyncGenerator[Part | Result, None]:
        function = self._function(task.name)
        arguments = function.arguments(task)
        with outside_loop():
            value = function.call(arguments)
        if inspect.isawaitable(value):
            value = await value
        if inspect.isasyncgen(value):
            async with aclosing(value):
                async for item in value:
                    yield Part(as_json(item, task.name))
        elif inspect.isgenerator(value):
            async with aclosing(_iterate(value)) as items:
                async for item in items:
                    yield Part(as_json(item, task.name))
        else:
            yield Result(json={"result": as_json(value, task.name)})


async def _iterate(values: Generator[Any, Any, Any]) -> AsyncGenerator[Any, None]:
    """Yield the values of a plain generator, whose code runs outside the event loop."""
    done = object()
    try:
        while True:
            with outside_loop():
                item = next(values, done)
            if item is done:
                return
            yield item
    finally:
        with outside_loop():
            values.close()
