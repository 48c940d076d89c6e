"""Dividing a batch into groups: no I/O, the clock is a number."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway_hybrid.assignment import MAX_ROUNDS, Assignment, Group, RetryHistory
from gateway_hybrid.throughput import Throughput

BOTH = frozenset({"here", "there"})


def pace(
    per_item_s: float | None = None, overhead_s: float = 0.0, max_groups: int = 1, initial_groups: int = 1
) -> Throughput:
    return Throughput(
        max_groups=max_groups, initial_groups=initial_groups, per_item_s=per_item_s, overhead_s=overhead_s
    )


def deal(count: int, here: Throughput | None = None, there: Throughput | None = None, **settings: Any) -> Assignment:
    return Assignment(count, {"here": here or pace(), "there": there or pace()}, groups=16, **settings)


@dataclass
class Simulation:
    """Run a deal to its end.

    A group takes `seconds(group, n)`, and fails after that time if it is negative.
    """

    table: Assignment
    now: float = 0.0
    answered: list[Group] = field(default_factory=list)
    started: list[Group] = field(default_factory=list)
    twins: int = 0
    _due: list[tuple[float, int, Group, bool]] = field(default_factory=list)
    _order: Any = field(default_factory=itertools.count)
    _gone: set[int] = field(default_factory=set)

    def play(self, seconds: Any, most_steps: int = 20_000) -> bool:
        for _ in range(most_steps):
            if self.table.is_done:
                return True
            for group in self.table.assign(self.now):
                self._begin(group, seconds)
            self._gone |= {id(late) for late in self.table.reclaimed}
            self.table.reclaimed.clear()
            if not self._step():
                return False
        raise AssertionError("the deal did not end within most_steps")

    def _begin(self, group: Group, seconds: Any) -> None:
        self.started.append(group)
        self.twins += group.duplicate is not None
        takes_s = seconds(group, len(self.started))
        heapq.heappush(self._due, (self.now + abs(takes_s), next(self._order), group, takes_s >= 0))

    def _step(self) -> bool:
        """Advance to the next event. False if the deal has failed."""
        wait_s = self.table.next_check_s(self.now)
        at, _, group, is_good = self._due[0] if self._due else (float("inf"), 0, None, False)
        if wait_s is not None and self.now + wait_s < at:
            self.now += wait_s
            return True
        assert group is not None, "no group is in flight and none will start"
        heapq.heappop(self._due)
        self.now = max(self.now, at)
        if id(group) in self._gone:
            return True
        if not is_good:
            return self.table.on_failure(group, self.now)
        self.table.on_answer(group, self.now)
        self.answered.append(group)
        if group.duplicate is not None:
            self._gone.add(id(group.duplicate))
        return True

    def spans(self) -> list[tuple[int, int]]:
        return sorted((group.start, group.stop) for group in self.answered)


def covers(spans: list[tuple[int, int]], count: int) -> bool:
    """Whether the spans contain each item exactly once."""
    ends = [0, *(stop for _, stop in spans)]
    return [start for start, _ in spans] == ends[:-1] and ends[-1] == count


@settings(deadline=None)
@given(
    count=st.integers(1, 300),
    durations=st.lists(st.floats(0.001, 3.0), min_size=1, max_size=40),
    slots=st.integers(1, 4),
    priors=st.tuples(st.none() | st.floats(1e-5, 10), st.none() | st.floats(1e-5, 10)),
)
def test_each_item_is_answered_once_for_any_group_durations(
    count: int, durations: list[float], slots: int, priors: tuple[float | None, float | None]
) -> None:
    table = deal(
        count,
        pace(priors[0], max_groups=slots, initial_groups=slots),
        pace(priors[1], 0.05, max_groups=16, initial_groups=2),
    )
    simulation = Simulation(table)
    assert simulation.play(lambda group, n: durations[n % len(durations)])
    assert covers(simulation.spans(), count)
    assert simulation.twins <= 1


@settings(deadline=None)
@given(
    count=st.integers(1, 200), fates=st.lists(st.sampled_from([0.1, 0.1, 0.5, -0.05, -2.0]), min_size=3, max_size=30)
)
def test_failures_at_one_side_are_done_by_the_other(count: int, fates: list[float]) -> None:
    def seconds(group: Group, n: int) -> float:
        return 0.1 if group.side == "here" else fates[n % len(fates)]

    simulation = Simulation(deal(count, pace(max_groups=2, initial_groups=2), pace(max_groups=8, initial_groups=2)))
    assert simulation.play(seconds)
    assert covers(simulation.spans(), count)


def test_deal_fails_when_both_sides_fail() -> None:
    simulation = Simulation(deal(10))
    assert not simulation.play(lambda group, n: -0.01)


def test_hung_groups_are_done_by_the_other_side() -> None:
    simulation = Simulation(deal(40, pace(max_groups=2, initial_groups=2), pace(max_groups=4, initial_groups=2)))
    assert simulation.play(lambda group, n: 0.05 if group.side == "here" else 1e6)
    assert covers(simulation.spans(), 40)
    assert simulation.now < 5.0


def test_side_that_cannot_finish_in_time_receives_no_group() -> None:
    simulation = Simulation(deal(20, pace(0.01), pace(0.01, overhead_s=5.0, max_groups=16)))
    assert simulation.play(lambda group, n: 0.01 * group.items + (5.0 if group.side == "there" else 0.0))
    assert {group.side for group in simulation.started} == {"here"}


def test_faster_side_does_more_and_both_end_together() -> None:
    speeds = {"here": 0.04, "there": 0.02}
    simulation = Simulation(deal(60))
    assert simulation.play(lambda group, n: speeds[group.side] * group.items)
    done = {side: sum(group.items for group in simulation.answered if group.side == side) for side in speeds}
    assert done["there"] == pytest.approx(40, abs=4)
    assert simulation.now < 1.12 * 0.8


def test_group_size_decreases_towards_the_end() -> None:
    simulation = Simulation(deal(1000, pace(0.01), pace(0.01)))
    assert simulation.play(lambda group, n: 0.01 * group.items)
    sizes = [group.items for group in simulation.started]
    assert max(sizes) <= 1000 / 16 + 1
    assert max(sizes[-4:]) <= 4


def test_cheap_items_are_sent_in_larger_groups() -> None:
    simulation = Simulation(deal(1000, pace(1e-4), pace(1e-4)))
    assert simulation.play(lambda group, n: 1e-4 * group.items)
    assert len(simulation.started) < 40


def test_non_repeatable_items_never_run_twice() -> None:
    simulation = Simulation(deal(30, pace(0.01), pace(0.01), repeatable=False))
    assert simulation.play(lambda group, n: 0.01 * group.items if group.side == "here" else 3.0)
    assert sum(group.items for group in simulation.started) == 30


def test_pause_after_a_refusal_doubles_each_time() -> None:
    table = deal(100, pace(1.0), pace(1.0))
    began = []
    now = 0.0
    for _ in range(4):
        (group,) = [each for each in table.assign(now) if each.side == "there"]
        began.append(now)
        table.on_failure(group, now, is_refusal=True)
        while not table._sides["there"].has_capacity(now):
            now += 0.01
    pauses = [after - before for before, after in itertools.pairwise(began)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4], abs=0.02)


@given(st.lists(st.tuples(st.sampled_from(sorted(BOTH)), st.booleans()), max_size=30))
def test_group_is_lost_when_every_side_failed_or_refusals_reach_the_limit(tried: list[tuple[str, bool]]) -> None:
    history: RetryHistory | None = RetryHistory()
    for count, (side, is_refusal) in enumerate(tried, 1):
        history = history.after(side, BOTH, is_refusal=is_refusal)
        if history is None:
            failed = {name for name, refusal in tried[:count] if not refusal}
            assert failed == BOTH or count >= MAX_ROUNDS
            return
        assert history.avoids < BOTH, "no side is left for the group"


# ── groups in flight ─────────────────────────────────────────────────────────────────────────────


def in_flight(servers: int, rtt_s: float, item_s: float, groups: int = 400) -> int:
    """Return the most groups in flight to `servers` behind a network.

    A group has ten items.
    """
    side = pace(max_groups=16, initial_groups=2)
    table = Assignment(groups * 10, {"there": side}, groups=groups)
    free, highest = [0.0] * servers, 0

    def seconds(group: Group, n: int) -> float:
        nonlocal highest
        highest = max(highest, group.in_flight)
        begun = max(simulation.now + rtt_s, heapq.heappop(free))
        heapq.heappush(free, begun + item_s * group.items)
        return begun + item_s * group.items - simulation.now

    simulation = Simulation(table)
    assert simulation.play(seconds)
    return highest


def test_serial_server_has_few_groups_in_flight() -> None:
    assert in_flight(servers=1, rtt_s=0.001, item_s=0.01) <= 4


def test_groups_in_flight_reach_the_number_of_servers() -> None:
    assert in_flight(servers=8, rtt_s=0.001, item_s=0.01) >= 8


def test_groups_in_flight_fill_a_long_round_trip() -> None:
    assert in_flight(servers=1, rtt_s=0.3, item_s=0.01) >= 4
