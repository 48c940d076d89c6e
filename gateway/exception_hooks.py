"""Python's last-resort hooks, routed to the gateway's log without exception messages: they may contain request data.

The hooks report an exception that ends a thread, an exception that no caller can catch (in `__del__` or in a callback
from C), a warning, and an unhandled exception in an asyncio callback or task.
"""

from __future__ import annotations

import sys
import threading
import warnings
from asyncio import AbstractEventLoop
from collections.abc import Callable, Mapping
from typing import Any, TextIO

OnException = Callable[[str, BaseException | None], None]
OnWarning = Callable[[str, str], None]


def install(on_exception: OnException, on_warning: OnWarning) -> None:
    """Install the hooks for the whole process.

    on_exception(what, exception): called for each exception. on_warning(place, category): called for each warning.
    """

    def on_thread_exception(args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, SystemExit):
            on_exception(f"the thread `{args.thread.name if args.thread else None}` has ended", args.exc_value)

    def on_unraisable(args: sys.UnraisableHookArgs) -> None:
        on_exception(f"`{getattr(args.object, '__qualname__', type(args.object).__qualname__)}`", args.exc_value)

    def show_warning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        on_warning(f"{filename}:{lineno}", category.__name__)

    threading.excepthook, sys.unraisablehook, warnings.showwarning = on_thread_exception, on_unraisable, show_warning


def loop_handler(on_exception: OnException) -> Callable[[AbstractEventLoop, Mapping[str, Any]], None]:
    """An exception handler for an event loop. It omits asyncio's message on a callback, which has its arguments."""

    def on_unhandled(_: AbstractEventLoop, context: Mapping[str, Any]) -> None:
        what = "an exception in a callback" if "handle" in context else str(context.get("message"))
        on_exception(what, context.get("exception"))

    return on_unhandled
