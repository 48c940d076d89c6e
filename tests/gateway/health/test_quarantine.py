"""Plugin quarantine: growing periods after repeated exceptions; a success resets."""

from __future__ import annotations

from gateway.health.quarantine import FIRST_S, MAX_EXCEPTIONS, MAX_S, Quarantine
from gateway.testing.clock import FakeClock


def raise_it(quarantine: Quarantine, times: int) -> None:
    for _ in range(times):
        quarantine.record_exception("KeyError")


def test_plugin_is_quarantined_after_raising_many_times_without_success() -> None:
    clock = FakeClock()
    told: list[float] = []
    quarantine = Quarantine(clock, lambda why, seconds: told.append(seconds))
    raise_it(quarantine, MAX_EXCEPTIONS - 1)
    assert quarantine.reason(1) is None
    raise_it(quarantine, 1)
    assert "raised KeyError 20 times" in (quarantine.reason(1) or "")
    clock.move(FIRST_S)
    assert quarantine.reason(1) is None
    assert told == [FIRST_S]


def test_quarantine_period_doubles_up_to_fifteen_minutes() -> None:
    clock, told = FakeClock(), list[float]()
    quarantine = Quarantine(clock, lambda why, seconds: told.append(seconds))
    raise_it(quarantine, MAX_EXCEPTIONS)
    for _ in range(6):
        clock.move(MAX_S)
        raise_it(quarantine, 1)
    assert told == [60, 120, 240, 480, 900, 900, 900]


def test_one_success_resets_the_quarantine() -> None:
    quarantine = Quarantine(FakeClock())
    raise_it(quarantine, MAX_EXCEPTIONS)
    quarantine.record_success()
    assert quarantine.reason(1) is None
    raise_it(quarantine, MAX_EXCEPTIONS - 1)
    assert quarantine.reason(1) is None


def test_plugin_is_excluded_while_leaked_tasks_hold_every_slot() -> None:
    quarantine = Quarantine(FakeClock())
    quarantine.leaked = 2
    assert "2 tasks hold its slots" in (quarantine.reason(2) or "")
    assert quarantine.reason(3) is None
