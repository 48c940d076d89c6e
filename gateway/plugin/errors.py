"""What a request can end in: one tree of errors. Plugins import it from `gateway.plugin`."""

from __future__ import annotations

import asyncio
import traceback

# What code that is not ours may raise without ending the gateway: sys.exit() too. A cancellation is none of it.
PLUGIN_FAULTS = (Exception, SystemExit, KeyboardInterrupt)
MAX_MESSAGE_CHARS = 2000  # characters of an exception's text that are passed on


def is_own_cancellation(exc: BaseException) -> bool:
    """Whether `exc` is the cancellation of the task we are in. A plugin may raise one, too, and that is a fault."""
    me = asyncio.current_task()
    return isinstance(exc, asyncio.CancelledError) and me is not None and me.cancelling() > 0


def message_of(exc: BaseException) -> str:
    """The text of `exc`, which may quote anything: for a log where nothing of a request can be in it, and for tests."""
    try:
        return str(exc)[:MAX_MESSAGE_CHARS]
    except BaseException as worse:  # its own __str__
        return f"its text raised {type(worse).__name__}"


def frames_of(exc: BaseException) -> list[str]:
    """Where `exc` came from, for a log: `FILE:LINE FUNCTION` of each frame, the innermost last; no line of a file."""
    frames = traceback.walk_tb(exc.__traceback__)
    return [f"{frame.f_code.co_filename}:{line} {frame.f_code.co_name}" for frame, line in frames]


class GatewayError(Exception):
    """What a request can end in. `code` is one of the contract's error codes; the door picks the status.

    `message` says what is wrong, where, and what to do; it reaches the client, so it holds no secret.
    `began` is False where the work certainly never started, so that even what must not run twice may be
    tried elsewhere. `again` is False where the same backend would only fail the same way again. `detail` is for the
    client alone: what may quote its request, such as the text of an exception, and so belongs in no log.
    `is_of_subtask`, which only the gateway sets: a subtask ended in it, so who dispatched that only passes it on.
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
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.param = param
        self.status = status  # an upstream's own status, where the contract says it is kept
        self.retry_after_s = retry_after_s
        self.began = began
        self.again = again
        self.detail = detail
        self.is_of_subtask = False


class TaskInvalid(GatewayError):
    """The client's mistake: wrong arguments, malformed content. Never tried again, nor held against a backend."""

    code = "bad_request"


class TaskRefused(GatewayError):
    """Too busy, or not allowed; nothing was run. `retry_after_s` says when it may be asked again."""

    code = "overloaded"


class BackendUnavailable(GatewayError):
    """This backend cannot serve now; another may be asked, when running twice is harmless."""

    code = "unavailable"


class NotServed(BackendUnavailable):
    """This backend has no such thing, or its own rules forbid it: nothing is wrong with it, and another may be asked.

    With code `not_found` it has no endpoint for the task's path, and is not asked for that for a while.
    """

    code = "no_backend"


class PluginRaised(BackendUnavailable):
    """A plugin raised what is none of these errors: a bug. `raised` is its type's name. No plugin raises this.

    `text` is its text, where a worker raised it: for the operator while the backend opens, and for tests of plugins.
    """

    code = "plugin_error"

    def __init__(self, message: str, *, raised: str, text: str = "") -> None:
        super().__init__(message, again=False)
        self.raised, self.text = raised, text


class BackendFailed(GatewayError):
    """This backend tried and failed; asking another would not help, or could do harm."""

    code = "plugin_error"


class DeadlineExceeded(GatewayError):
    """The time allowed has passed, or cannot be met."""

    code = "deadline_exceeded"
