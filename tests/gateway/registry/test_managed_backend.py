"""The lifecycle table of a backend."""

from __future__ import annotations

from typing import get_args

import pytest

from gateway.health.breaker import Breaker
from gateway.health.quarantine import Quarantine
from gateway.plugin import BackendSettings
from gateway.registry.managed_backend import TRANSITIONS, Event, ManagedBackend, State
from support.clock import Clock

PAIRS = [(state, event) for state in get_args(State) for event in get_args(Event)]


def managed_in(state: State) -> ManagedBackend:
    clock = Clock()
    return ManagedBackend(
        name="desk",
        plugin="echo",
        settings=BackendSettings.model_validate({}),
        backend=None,
        breaker=Breaker(clock),
        quarantine=Quarantine(clock),
        state=state,
    )


def test_table_has_a_row_for_each_state_and_every_state_but_the_first_is_entered() -> None:
    assert set(TRANSITIONS) == set(get_args(State))
    assert {after for row in TRANSITIONS.values() for after in row.values()} == set(get_args(State)) - {"starting"}


@pytest.mark.parametrize(("state", "event"), PAIRS)
def test_transition_follows_the_table_and_an_unknown_pair_raises(state: State, event: Event) -> None:
    managed = managed_in(state)
    if event in TRANSITIONS[state]:
        managed.transition(event)
        assert managed.state == TRANSITIONS[state][event]
    else:
        with pytest.raises(KeyError):
            managed.transition(event)
        assert managed.state == state


def test_failed_opening_keeps_the_exception_text_from_clients() -> None:
    managed = managed_in("starting")
    managed.fail(ValueError("the secret is 42"))
    assert (managed.state, managed.error) == ("failed", "ValueError")
    assert managed.cause == "ValueError: the secret is 42"
