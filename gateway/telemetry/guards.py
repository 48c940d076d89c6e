"""What to do about exceptions nobody expected, where one must not end what else goes on: say so, and go on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from gateway.telemetry.logs import RateLimitedEvent, raised

T = TypeVar("T")

_broken = RateLimitedEvent("service.unhandled", per_s=1.0, burst=10)
_warned = RateLimitedEvent("library.logged", per_s=1.0, burst=5)


def log_bug(what: str, exc: BaseException | None) -> None:
    """Tell of a bug: where it struck, in our words, and the exception's type and place, if any, never its text.

    Rate-limited: a host that is out of descriptors brings one of these for every client that waits.
    """
    found = raised(exc)
    _broken.warning(error=(f"{what}: {found['error']}" if exc else what)[:500], where=found["where"])


@contextmanager
def log_exceptions(what: str) -> Iterator[None]:
    """What is raised inside is told, and goes no further. Cancellations, and what ends the process, do."""
    try:
        yield
    except Exception as exc:
        log_bug(what, exc)


def log_task_failure(task: asyncio.Task[T]) -> asyncio.Task[T]:
    """Have it told, by the task's name, when a task that nobody awaits ends in an exception. Returns the task."""
    task.add_done_callback(_ended)
    return task


def _ended(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (exc := task.exception()) is not None:
        log_bug(f"the task `{task.get_name()}` has ended", exc)


def warned(place: str, category: str) -> None:
    """Tell of a warning by its place and category; its text may quote anything."""
    _warned.warning(logger="warnings", message=place, error=category)
