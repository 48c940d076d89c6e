"""What Python says of its own accord, told to somebody else without exceptions' words, which may quote a request.

That is what ends a thread, what is raised where nobody can catch it (`__del__`, callbacks of C), warnings, and what
asyncio finds at its end in a callback or a task.
"""

from __future__ import annotations

import sys
import threading
import warnings
from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping
from typing import Any, TextIO

Told = Callable[[str, BaseException | None], None]
Warned = Callable[[str, str], None]


def redirect(told: Told, warned: Warned) -> None:
    """From now on, in the whole process. told(what, exception); warned(place, category)."""

    def thread_ended(args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, SystemExit):
            told(f"the thread `{args.thread.name if args.thread else None}` has ended", args.exc_value)

    def was_raised(args: sys.UnraisableHookArgs) -> None:
        told(f"`{getattr(args.object, '__qualname__', type(args.object).__qualname__)}`", args.exc_value)

    def warn(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        warned(f"{filename}:{lineno}", category.__name__)

    threading.excepthook, sys.unraisablehook, warnings.showwarning = thread_ended, was_raised, warn


def for_loop(told: Told) -> Callable[[AbstractEventLoop, Mapping[str, Any]], None]:
    """An exception handler for a loop. asyncio's words on a callback show its arguments, so they are not taken."""

    def unhandled(_: AbstractEventLoop, context: Mapping[str, Any]) -> None:
        what = "an exception in a callback" if "handle" in context else str(context.get("message"))
        told(what, context.get("exception"))

    return unhandled
