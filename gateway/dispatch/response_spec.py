"""The response that a client expects: its limits, its form, and how another backend can continue it.

Dispatch knows no wire format. Whatever depends on a format is passed in as a `Renderer` or a `Continuation`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from gateway.plugin import Part, Result, Task

ResumeMode = Literal["prefill", "restart"]


class Renderer(Protocol):
    """Converts the response of one backend into the form that the client requested."""

    def add(self, part: Part) -> None:
        """Add the next part of a stream to a whole response. Raises BackendUnavailable for an unreadable part."""
        ...

    async def whole(self, result: Result | None) -> Result:
        """Return the response made from `result`, or from the added parts. Raises BackendUnavailable if unreadable."""
        ...


class Continuation(Protocol):
    """The part of one stream that has reached the client, and how another backend can continue it."""

    @property
    def is_complete(self) -> bool:
        """Whether the stream has given its finish reason: the client misses nothing that it needs."""
        ...

    def record(self, part: Part) -> None:
        """Record a part of the first backend, which is sent to the client unchanged."""
        ...

    def resumed(self, task: Task, how: ResumeMode) -> Task | None:
        """Return the task for the backend that continues; None if it cannot continue in this mode."""
        ...

    def joined(self, part: Part) -> Iterable[Part]:
        """Return what the client lacks of a part of the continuing backend. Raises GatewayError if it does not fit."""
        ...

    def ended(self) -> Iterable[Part]:
        """Return the text held back until the continuing backend ended. Raises GatewayError if it ended too early."""
        ...

    def parts_of(self, result: Result) -> Iterable[Part]:
        """Return the parts of a response that came whole."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds a stream may take to its first content, and between contents."""

    first_byte_s: float = 60.0
    stall_s: float = 30.0


def _any_part(_: Part) -> bool:
    return True


def _no_part(_: Part) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseSpec:
    """The response that a client expects, beside the task itself.

    limits: the longest silences of a stream. is_content: whether a part is worth committing to.
    client_deadline: the task's deadline was set by the client and is not the operator's default.
    has_own_limits: the client set a deadline, or waits for less time than the operator allows. A timeout then does not
    show that a backend is slow.
    heartbeat_s: an IDLE part is due after this many seconds without content; None: never.
    continuation: the record of a stream, with which another backend can continue it after a failure.
    renderer(backend, name): makes the renderer for the response of that backend, which calls the model or task `name`.
    collects: whether a response that begins with this part is collected into a whole one.
    may_leave: whether the data may leave the site by the rules and the key of this moment. It raises GatewayError if
    the key may not use the model or task any more. None: the task alone decides.
    """

    limits: Limits = field(default_factory=Limits)
    is_content: Callable[[Part], bool] = _any_part
    client_deadline: bool = False
    has_own_limits: bool = False
    heartbeat_s: float | None = None
    continuation: Continuation | None = None
    renderer: Callable[[str, str], Renderer] | None = None
    collects: Callable[[Part], bool] = _no_part
    may_leave: Callable[[], bool] | None = None
