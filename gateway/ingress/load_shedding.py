"""Load shedding: refuse requests while memory is short, and bound the memory of bodies that are being read.

Memory is measured every half second, and a flood of bodies is faster than that. Each measurement therefore sets a
budget: the bytes that may be read until the next measurement. It is a share of the free memory, because a body exists
in several copies. Bytes that clients have announced (Content-Length) and not sent yet are reserved. A body that exceeds
the budget is refused before it is read, or while it is read if its length was not announced.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gateway.plugin import TaskRefused

COPIES = 4  # of a body: joined, parsed, sent to the backend, and answered
RETRY_S = 2.0


@dataclass(slots=True)
class BodyReservation:
    """The reservation of one body that is being read. announced_bytes: announced and not received yet."""

    budget: BodyBudget
    announced_bytes: int

    def consume(self, count: int) -> None:
        """Count bytes that were received. Raises TaskRefused if they were not announced and exceed the budget."""
        announced = min(count, self.announced_bytes)
        self.announced_bytes -= announced
        self.budget.announced_bytes -= announced
        self.budget.available_bytes -= count
        if count > announced:
            self.budget.check(0)


class BodyBudget:
    """The bytes of bodies that may be read until the next measurement of the memory.

    available_bytes: may still be read. announced_bytes: the part of them that is reserved.
    """

    def __init__(self) -> None:
        self.available_bytes = float("inf")
        self.announced_bytes = 0

    def set_free_memory(self, free_bytes: float) -> None:
        """Renew the budget after a measurement."""
        self.available_bytes = free_bytes / COPIES

    def check(self, more_bytes: int) -> None:
        """Raise TaskRefused if so many bytes more exceed the budget."""
        if self.announced_bytes + more_bytes > self.available_bytes:
            raise TaskRefused(
                "too many large bodies are being received at once; try again later, or send a smaller body",
                retry_after_s=RETRY_S,
            )

    @contextmanager
    def reserve(self, announced_bytes: int) -> Iterator[BodyReservation]:
        """Reserve memory for one body; 0 if its length is unknown. Raises TaskRefused if it exceeds the budget."""
        self.check(announced_bytes)
        self.announced_bytes += announced_bytes
        reservation = BodyReservation(self, announced_bytes)
        try:
            yield reservation
        finally:
            self.announced_bytes -= reservation.announced_bytes


class LoadShedding:
    """The load-shedding state: the memory guard sets it, the handler and the transports obey it.

    is_active: requests that bring work are refused before their body is read.
    """

    def __init__(self) -> None:
        self.is_active = False
        self.bodies = BodyBudget()

    def refusal(self) -> TaskRefused:
        """The error for a request while load shedding is active."""
        return TaskRefused("the gateway is short of memory; try again later", retry_after_s=RETRY_S)
