"""What a client expects, beside the task itself; the door tells dispatch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.dispatch.continuation import Continuation, Renderer
from gateway.plugin import Part


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
    """What the client expects beside the task itself.

    limits: how long it waits on a stream. is_content: whether a part is worth committing to.
    client_deadline: the task's deadline is the client's own, not the operator's default. has_own_limits: that, or it
    waits for less long than the operator would: time that runs out says little of a backend. quiet_s: after so long
    without content it wants a QUIET part. said: what it has been told, so that a broken stream can go on.
    renderer(backend, name): makes what that backend, which calls the model or task `name`, answers into what the
    client asked for. gathers: whether an answer that begins with this part is put together.
    """

    limits: Limits = field(default_factory=Limits)
    is_content: Callable[[Part], bool] = _any_part
    client_deadline: bool = False
    has_own_limits: bool = False
    quiet_s: float | None = None
    said: Continuation | None = None
    renderer: Callable[[str, str], Renderer] | None = None
    gathers: Callable[[Part], bool] = _no_part
