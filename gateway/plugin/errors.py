"""The errors that a request can end in. Plugins import them from `gateway.plugin`."""

from __future__ import annotations

import asyncio
import traceback
from typing import Literal

# Exceptions of plugin code that must not end the gateway: sys.exit() too. Cancellations are not included.
PLUGIN_EXCEPTIONS = (Exception, SystemExit, KeyboardInterrupt)
MAX_MESSAGE_CHARS = 2000  # of an exception's text
MAX_DEBUG_CHARS = 8000  # of its traceback


def is_own_cancellation(exc: BaseException) -> bool:
    """Return whether `exc` is the cancellation of the current asyncio task.

    A CancelledError that a plugin raises by itself is not: it is a bug of the plugin.
    """
    current = asyncio.current_task()
    return isinstance(exc, asyncio.CancelledError) and current is not None and current.cancelling() > 0


def message_of(exc: BaseException) -> str:
    """Return the text of `exc`, at most MAX_MESSAGE_CHARS characters.

    The text may quote the data of a request. Log it only where no request is involved.
    """
    try:
        return str(exc)[:MAX_MESSAGE_CHARS]
    except BaseException as error:  # raised by its __str__
        return f"its text raised {type(error).__name__}"


def frames_of(exc: BaseException) -> list[str]:
    """Return the traceback of `exc` for a log: `FILE:LINE FUNCTION` of each frame, the innermost last.

    Source lines are left out.
    """
    frames = traceback.walk_tb(exc.__traceback__)
    return [f"{frame.f_code.co_filename}:{line} {frame.f_code.co_name}" for frame, line in frames]


def debug_text(exc: BaseException) -> str:
    """Return the traceback of `exc` with its text, at most MAX_DEBUG_CHARS characters, for `GatewayError.debug`."""
    try:
        return "".join(traceback.format_exception(exc))[-MAX_DEBUG_CHARS:]
    except BaseException as error:  # raised by its __str__
        return f"its traceback raised {type(error).__name__}"


class GatewayError(Exception):
    """The base of all errors that a request can end in. Plugins raise its subclasses.

    message: the fault, its place, and how to fix it. It is sent to the client and must not contain secrets.
    code: one of the documented error codes, from which the gateway derives the HTTP status.
    param: the name of the wrong field in the request. status: the status of the upstream's error response.
    retry_after_s: seconds after which the request may be sent again.
    began: False if the work certainly did not start; even a task that must not run twice may be tried elsewhere then.
    again: False if the same backend would fail in the same manner again.
    detail: text for the client only, never logged, because it may quote the request (such as an exception's text).
    rests: "backend" or "model" if every further request would fail in the same manner until the operator repairs it.
        The backend, or this model of it, is then used only if no other can serve, and its breaker does not count it.
    debug: the traceback of the exception behind the error, with its text: only for clients on this host, in
        developer mode (`GATEWAY_DEBUG`), because it may contain data of the request.
    is_of_subtask: set by the gateway if the error comes from a subtask that the backend dispatched.
    """

    code = "plugin_error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        status: int | None = None,
        retry_after_s: float | None = None,
        began: bool = True,
        again: bool = True,
        detail: str = "",
        rests: Literal["", "backend", "model"] = "",
    ) -> None:
        super().__init__(message)
        self.rests = rests
        self.message = message
        self.code = code or type(self).code
        self.param = param
        self.status = status
        self.retry_after_s = retry_after_s
        self.began = began
        self.again = again
        self.detail = detail
        self.debug = ""
        self.is_of_subtask = False


class TaskInvalid(GatewayError):
    """A mistake of the client: wrong arguments, malformed content.

    The request is not tried again, and the error does not count as a failure of the backend.
    """

    code = "bad_request"


class TaskRefused(GatewayError):
    """The request was refused without running: overload, or a limit. `retry_after_s`: when to send it again."""

    code = "overloaded"


class BackendUnavailable(GatewayError):
    """The backend cannot serve the task now.

    Another backend is tried if running the task twice is harmless or the work did not start (`began=False`).
    """

    code = "unavailable"


class NotServed(BackendUnavailable):
    """The backend does not serve such tasks, or its rules forbid this one; another backend may be tried.

    It does not count as a failure of the backend. With code `not_found` the backend has no endpoint for the task's
    path, and gets no tasks for that path for a while.
    """

    code = "no_backend"


class PluginRaised(BackendUnavailable):
    """A plugin raised an exception that is not a GatewayError, which is a bug. Only the gateway raises this error.

    raised: the name of the exception's type. text: the text of an exception that was raised in a worker, for the
    operator while the backend opens, and for tests of plugins.
    """

    code = "plugin_error"

    def __init__(self, message: str, *, raised: str, text: str = "") -> None:
        super().__init__(message, again=False)
        self.raised, self.text = raised, text


class BackendFailed(GatewayError):
    """The backend tried and failed; trying another backend would not help, or could do harm."""

    code = "plugin_error"


class DeadlineExceeded(GatewayError):
    """The deadline has passed or cannot be met."""

    code = "deadline_exceeded"
