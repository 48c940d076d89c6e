"""Logs unexpected exceptions by their type and place, without their text: it may quote a request."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from gateway.plugin import checks, result, task
from gateway.plugin.errors import frames_of
from gateway.telemetry.logs import RateLimitedEvent

T = TypeVar("T")

_bugs = RateLimitedEvent("service.unhandled", per_s=1.0, burst=10)
_python_warnings = RateLimitedEvent("library.logged", per_s=1.0, burst=5)

# Code that checks values of a plugin, generated code (`<string>`) included. The fault is in its caller.
_CHECKING_FILES = frozenset({"<string>", checks.__file__, result.__file__, task.__file__})


def exception_fields(exc: BaseException | None) -> dict[str, str | None]:
    """The log keys for an unexpected exception: `error`, its type, and `where`, its file and line."""
    if exc is None:
        return {"error": None, "where": None}
    places = [each.rpartition(" ")[0] for each in frames_of(exc)]
    places = [place for place in places if place.rpartition(":")[0] not in _CHECKING_FILES]
    return {"error": type(exc).__name__, "where": places[-1] if places else None}


def log_bug(what: str, exc: BaseException | None) -> None:
    """Log `service.unhandled`: `what` was going on, and the type and place of the exception, if there is one.

    Rate-limited: on a host without free file descriptors, each waiting client causes one such event.
    """
    found = exception_fields(exc)
    _bugs.warning(error=(f"{what}: {found['error']}" if exc else what)[:500], where=found["where"])


@contextmanager
def log_exceptions(what: str) -> Iterator[None]:
    """Log and suppress exceptions raised inside. Cancellation and other BaseExceptions pass."""
    try:
        yield
    except Exception as exc:
        log_bug(what, exc)


def log_task_failure(running: asyncio.Task[T]) -> asyncio.Task[T]:
    """Log the exception, if any, in which a task without an awaiting caller ends. Returns the task."""
    running.add_done_callback(_on_task_done)
    return running


def _on_task_done(ended: asyncio.Task[Any]) -> None:
    if not ended.cancelled() and (exc := ended.exception()) is not None:
        log_bug(f"the task `{ended.get_name()}` has ended", exc)


def log_python_warning(place: str, category: str) -> None:
    """Log a warning of Python's `warnings` module by its place and category, without its text."""
    _python_warnings.warning(logger="warnings", message=place, error=category)
