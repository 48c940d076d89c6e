"""Room for bodies: what is announced is kept free, what is not is refused as it comes, and nothing is lost of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.ingress.body_budget import COPIES, BodyBudget
from gateway.plugin import TaskRefused


def room_of(size: int) -> BodyBudget:
    room = BodyBudget()
    room.measured(size * COPIES)
    return room


def test_what_was_announced_is_kept_for_who_announced_it() -> None:
    room = room_of(100)
    with room.reading(60) as first:
        with pytest.raises(TaskRefused, match="too many large bodies") as refused, room.reading(60):
            pass
        assert refused.value.retry_after_s is not None
        first.took(60)
        with room.reading(40) as second:
            second.took(40)
    with pytest.raises(TaskRefused), room.reading(1):
        pass


def test_what_nobody_announced_is_refused_where_it_is_too_much() -> None:
    with room_of(100).reading(0) as chunked:
        chunked.took(100)
        with pytest.raises(TaskRefused):
            chunked.took(1)


def test_a_look_that_finds_memory_makes_room_again_but_for_what_is_still_announced() -> None:
    room = room_of(100)
    with room.reading(80):
        room.measured(100 * COPIES)
        with pytest.raises(TaskRefused), room.reading(30):
            pass
    with room.reading(100):
        pass


@given(st.lists(st.tuples(st.integers(0, 50), st.lists(st.integers(0, 20), max_size=5)), max_size=20))
def test_whatever_comes_no_promise_is_left_over(bodies: list[tuple[int, list[int]]]) -> None:
    room = room_of(200)
    for announced, pieces in bodies:
        try:
            with room.reading(announced) as reading:
                for piece in pieces:
                    reading.took(piece)
        except TaskRefused:
            pass
        assert room.promised == 0
