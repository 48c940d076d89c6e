"""How much room there is for bodies: what all requests together may bring before memory is short.

A look at the memory comes every half second, and a flood is quicker than that. So each look says how many bytes may
still be read until the next (a share of what is free, since a body is held in several forms), and what clients have
announced and not yet sent is kept for them. Who asks for more is refused before, or while, it is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gateway.plugin import TaskRefused

COPIES = 4  # of a body, while it is joined, understood, worked on and answered
RETRY_S = 2.0


@dataclass(slots=True)
class BodyReservation:
    """One body that is being read. promised: bytes its head has announced that are still to come."""

    room: BodyBudget
    promised: int

    def took(self, count: int) -> None:
        """So many bytes have come. Raises TaskRefused where there is no room for what nobody announced."""
        announced = min(count, self.promised)
        self.promised -= announced
        self.room.promised -= announced
        self.room.left -= count
        if count > announced:
            self.room.check(0)


class BodyBudget:
    """The room as the last look found it. left: bytes that may still be read; promised: those announced."""

    def __init__(self) -> None:
        self.left = float("inf")
        self.promised = 0

    def measured(self, free_bytes: float) -> None:
        """There is so much memory that nobody uses."""
        self.left = free_bytes / COPIES

    def check(self, more: int) -> None:
        """Raises TaskRefused where so many bytes more are too many."""
        if self.promised + more > self.left:
            raise TaskRefused("too many large bodies are on their way at once; come back later", retry_after_s=RETRY_S)

    @contextmanager
    def reading(self, announced: int) -> Iterator[BodyReservation]:
        """Read a body of so many bytes; 0: its head does not say. Raises TaskRefused where it does not fit."""
        self.check(announced)
        self.promised += announced
        reading = BodyReservation(self, announced)
        try:
            yield reading
        finally:
            self.promised -= reading.promised
