"""A plugin that raises and never answers is left alone for longer and longer; one answer and it is forgotten."""

from __future__ import annotations

from gateway.health.quarantine import FIRST_S, MAX_S, RAISES, Quarantine
from gateway.testing.clock import FakeClock


def raise_it(quarantine: Quarantine, times: int) -> None:
    for _ in range(times):
        quarantine.raised("KeyError")


def test_a_plugin_that_raises_and_answers_nothing_gets_no_work_for_a_while() -> None:
    clock = FakeClock()
    told: list[float] = []
    quarantine = Quarantine(clock, lambda why, seconds: told.append(seconds))
    raise_it(quarantine, RAISES - 1)
    assert quarantine.why(1) is None
    raise_it(quarantine, 1)
    assert "raised KeyError 20 times" in (quarantine.why(1) or "")
    clock.move(FIRST_S)
    assert quarantine.why(1) is None
    assert told == [FIRST_S]


def test_each_try_that_raises_again_costs_twice_as_long_up_to_a_quarter_of_an_hour() -> None:
    clock, told = FakeClock(), list[float]()
    quarantine = Quarantine(clock, lambda why, seconds: told.append(seconds))
    raise_it(quarantine, RAISES)
    for _ in range(6):
        clock.move(MAX_S)
        raise_it(quarantine, 1)
    assert told == [60, 120, 240, 480, 900, 900, 900]


def test_one_answer_and_all_is_forgotten() -> None:
    quarantine = Quarantine(FakeClock())
    raise_it(quarantine, RAISES)
    quarantine.answered()
    assert quarantine.why(1) is None
    raise_it(quarantine, RAISES - 1)
    assert quarantine.why(1) is None


def test_a_plugin_whose_every_slot_is_held_is_out_until_one_ends() -> None:
    quarantine = Quarantine(FakeClock())
    quarantine.leaked = 2
    assert "2 tasks hold its slots" in (quarantine.why(2) or "")
    assert quarantine.why(3) is None
