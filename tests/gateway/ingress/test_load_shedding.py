"""Memory budget for request bodies.

An announced length is reserved. A chunked body counts as it is read. Every reservation is released.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.ingress.load_shedding import COPIES, BodyBudget
from gateway.plugin import TaskRefused


def room_of(size: int) -> BodyBudget:
    room = BodyBudget()
    room.set_free_memory(size * COPIES)
    return room


def test_announced_length_is_reserved_for_its_request() -> None:
    room = room_of(100)
    with room.reserve(60) as first:
        with pytest.raises(TaskRefused, match="too many large bodies") as refused, room.reserve(60):
            pass
        assert refused.value.retry_after_s is not None
        first.consume(60)
        with room.reserve(40) as second:
            second.consume(40)
    with pytest.raises(TaskRefused), room.reserve(1):
        pass


def test_chunked_body_is_refused_when_it_exceeds_the_budget() -> None:
    with room_of(100).reserve(0) as chunked:
        chunked.consume(100)
        with pytest.raises(TaskRefused):
            chunked.consume(1)


def test_new_measurement_refills_the_budget_minus_open_reservations() -> None:
    room = room_of(100)
    with room.reserve(80):
        room.set_free_memory(100 * COPIES)
        with pytest.raises(TaskRefused), room.reserve(30):
            pass
    with room.reserve(100):
        pass


@given(st.lists(st.tuples(st.integers(0, 50), st.lists(st.integers(0, 20), max_size=5)), max_size=20))
def test_no_reservation_is_left_after_any_sequence_of_bodies(bodies: list[tuple[int, list[int]]]) -> None:
    room = room_of(200)
    for announced, pieces in bodies:
        try:
            with room.reserve(announced) as reservation:
                for piece in pieces:
                    reservation.consume(piece)
        except TaskRefused:
            pass
        assert room.announced_bytes == 0
