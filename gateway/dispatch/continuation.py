"""What dispatch must know of an answer: how it is made whole, and how somebody else goes on with it.

The door, which knows formats, tells it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

from gateway.plugin import Part, Result, Task

How = Literal["prefill", "restart"]


class Renderer(Protocol):
    """Makes one backend's answer into what the client asked for; where that cannot be, it is the backend's failure."""

    def add(self, part: Part) -> None:
        """The next part, where the client wants a whole. Raises BackendUnavailable for one that cannot be read."""
        ...

    async def whole(self, result: Result | None) -> Result:
        """The answer: `result`, or what the parts make. Raises BackendUnavailable where it is none."""
        ...


class Continuation(Protocol):
    """What of one answer has reached the client, and how it may go on."""

    @property
    def is_complete(self) -> bool:
        """Whether the answer has said why it ended: nothing the client needs is missing."""
        ...

    def heard(self, part: Part) -> None:
        """Note a part of the first backend, which goes to the client as it is."""
        ...

    def resumed(self, task: Task, how: How) -> Task | None:
        """The task for whoever goes on; None where it cannot be done that way."""
        ...

    def joined(self, part: Part) -> Iterable[Part]:
        """What the client lacks of a part of whoever goes on. Raises GatewayError where it does not fit."""
        ...

    def ended(self) -> Iterable[Part]:
        """What was held back, now that whoever goes on is through. Raises GatewayError where the answer fell short."""
        ...

    def parts_of(self, result: Result) -> Iterable[Part]:
        """The parts of an answer that came whole."""
        ...
