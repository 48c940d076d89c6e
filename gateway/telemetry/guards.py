"""What to do about exceptions nobody expected, where one must not end what else goes on: say so, and go on."""

from __future__ import annotations

import asyncio
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, TypeVar

from gateway.telemetry.logs import Limited, raised

T = TypeVar("T")

_broken = Limited("service.unhandled", per_s=1.0, burst=10)
_warned = Limited("library.logged", per_s=1.0, burst=5)


def broke(what: str, exc: BaseException | None) -> None:
    """Tell of a bug: where it struck, in our words, and the exception's type and place, if any, never its text.

    Rate-limited: a host that is out of descriptors brings one of these for every client that waits.
    """
    found = raised(exc)
    _broken.warning(error=(f"{what}: {found['error']}" if exc else what)[:500], where=found["where"])


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """What is raised inside is told, and goes no further. Cancellations, and what ends the process, do."""
    try:
        yield
    except Exception as exc:
        broke(what, exc)


def watched(task: asyncio.Task[T]) -> asyncio.Task[T]:
    """Have it told, by the task's name, when a task that nobody awaits ends in an exception. Returns the task."""
    task.add_done_callback(_ended)
    return task


def _ended(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (exc := task.exception()) is not None:
        broke(f"the task `{task.get_name()}` has ended", exc)


def speak_for_python() -> None:
    """Have lines of ours, without what they may quote, for what Python itself would print: for the whole process.

    That is what ends a thread, what is raised where nobody can catch it (`__del__`, callbacks of C), and warnings.
    """
    threading.excepthook = _thread_ended
    sys.unraisablehook = _was_raised
    warnings.showwarning = _warn


def _thread_ended(args: threading.ExceptHookArgs) -> None:
    if not isinstance(args.exc_value, SystemExit):
        broke(f"the thread `{args.thread.name if args.thread else None}` has ended", args.exc_value)


def _was_raised(args: sys.UnraisableHookArgs) -> None:
    broke(f"`{getattr(args.object, '__qualname__', type(args.object).__qualname__)}`", args.exc_value)


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _warned.warning(logger="warnings", message=f"{filename}:{lineno}", error=category.__name__)
