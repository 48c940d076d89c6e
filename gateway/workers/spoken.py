"""What Python says of its own accord in a worker, without the words of an exception, which may quote a request.

What ends a thread, what is raised where nobody can catch it, what a task ends in that nobody awaits, and warnings: each
is printed as one line with its type and place, and so is a `worker.output` of the gateway's log.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
import warnings
from collections.abc import Mapping
from typing import Any


def speak_for_python() -> None:
    """From now on, in the whole process."""
    threading.excepthook = _thread_ended
    sys.unraisablehook = _was_raised
    warnings.formatwarning = _warning


def unhandled(_: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    """The loop's exception handler. asyncio's words on a callback show its arguments, so they are not taken."""
    what = "an exception in a callback" if "handle" in context else str(context.get("message"))
    _say(what, context.get("exception"))


def _say(what: str, exc: BaseException | None) -> None:
    frames = traceback.extract_tb(exc.__traceback__) if exc is not None else []
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    print(f"{what}: {type(exc).__name__}{where}", file=sys.stderr)


def _thread_ended(args: threading.ExceptHookArgs) -> None:
    if not isinstance(args.exc_value, SystemExit):
        _say(f"the thread `{args.thread.name if args.thread else None}` has ended", args.exc_value)


def _was_raised(args: sys.UnraisableHookArgs) -> None:
    _say(f"`{getattr(args.object, '__qualname__', type(args.object).__qualname__)}`", args.exc_value)


def _warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"{filename}:{lineno}: {category.__name__}\n"
