"""Assign the items of a batch to the two sides. Pure: no I/O; the caller passes the time. `scatter` carries it out.

Theory of operation. A side pulls a group when it has capacity for one, so the faster side does more work without a
prediction of the ratio. Groups shrink as the batch does (guided self-scheduling, Polychronopoulos and Kuck 1987), so
that both sides finish at about the same time. Three rules keep the batch from waiting for the slower side:

- guard: a side takes no group that it would finish later than the other side would finish everything that is left;
- duplicate: if no item is left, a side with capacity repeats the group that the other side needs longest for, once per
  batch; the first answer counts;
- reclaim: a group that takes 20 % longer than expected is taken away from its side and assigned to a side that has
  capacity and no other work.

A failed group goes to the other side. A side that fails pauses; each further failure doubles the pause.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gateway_hybrid.throughput import Throughput

MAX_ROUNDS = 4  # rounds in which both sides refuse a group before the batch fails
GROUPS_AHEAD = 3.0  # a side's expected share is divided into this many groups for each group in flight
FIRST_GROUP_DIVISOR, MAX_FIRST_ITEMS = (
    64,
    16,
)  # the first group of a batch while the speed is unknown: count / 64 items, at most 16
MIN_GROUP_S = 0.02  # a shorter group costs more to dispatch than to compute
MIN_OVERHEADS = 3.0  # minimum length of a group, in overheads, if the side has only one group in flight
FIRST_PAUSE_S, MAX_PAUSE_S = 0.1, 2.0
STALLED_FACTOR, MIN_STALLED_S = 1.2, 0.1
DUPLICATE_GAIN = 0.8
MIN_CHECK_S, MAX_CHECK_S = 0.02, 0.25


@dataclass(frozen=True, slots=True)
class RetryHistory:
    """The attempts at a group so far. avoids: sides tried in this round; failed_at: sides on which it failed."""

    avoids: frozenset[str] = frozenset()
    failed_at: frozenset[str] = frozenset()
    rounds: int = 0

    def after(self, side: str, sides: frozenset[str], *, is_refusal: bool) -> RetryHistory | None:
        """Return the history after `side` failed or refused the group; None if no attempt is left."""
        failed_at = self.failed_at if is_refusal else self.failed_at | {side}
        avoids, rounds = self.avoids | {side}, self.rounds
        if avoids >= sides:
            avoids, rounds = failed_at, rounds + 1
        return None if failed_at >= sides or rounds >= MAX_ROUNDS else RetryHistory(avoids, failed_at, rounds)


@dataclass(slots=True, eq=False)
class Group:
    """Items `start` to `stop` in flight on one side. duplicate: the same items in flight on the other side."""

    start: int
    stop: int
    side: str
    began: float
    expected_s: float
    in_flight: int
    history: RetryHistory = field(default_factory=lambda: RetryHistory())
    duplicate: Group | None = None

    @property
    def items(self) -> int:
        return self.stop - self.start

    def remaining_s(self, now: float) -> float:
        """Expected seconds until it completes. A late group is expected to take as long again (Lindy's law)."""
        age_s = now - self.began
        left_s = max(self.expected_s - age_s, self.expected_s / 4)
        return max(left_s, age_s / 2) if age_s > 2 * self.expected_s else left_s

    def is_stalled(self, now: float) -> bool:
        """Whether it exceeds its expected time by so much that it is reclaimed."""
        return now - self.began > max(STALLED_FACTOR * self.expected_s, MIN_STALLED_S)


@dataclass(slots=True)
class _Side:
    name: str
    throughput: Throughput
    running: list[Group] = field(default_factory=list)
    failures: int = 0
    resumes_at: float = -math.inf

    def is_paused(self, now: float) -> bool:
        return now < self.resumes_at

    def has_capacity(self, now: float) -> bool:
        if self.is_paused(now):
            return False
        last = self.running[-1].items if self.running else 1
        return self.throughput.has_capacity(len(self.running), self.ahead(now) * self.item_s(now), last)

    def item_s(self, now: float) -> float:
        return self.throughput.item_s(now, self.running[0].items if self.running else 0)

    def ahead(self, now: float) -> float:
        """Estimated items in flight that are not complete; late groups count for more."""
        return sum(
            group.items * group.remaining_s(now) / group.expected_s if group.expected_s else group.items
            for group in self.running
        )

    def finish_s(self, items: int, now: float) -> float:
        """Expected seconds until `items` more would be complete."""
        return max(self.throughput.latency_s(items), (self.ahead(now) + items) * self.item_s(now))


class Assignment:
    """The state of one batch: items left, in flight and complete. Times are seconds on the caller's clock."""

    def __init__(
        self, count: int, throughputs: Mapping[str, Throughput], *, groups: int, repeatable: bool = True
    ) -> None:
        self.count, self.repeatable = count, repeatable
        self.duplicates_left = 1 if repeatable and len(throughputs) > 1 else 0
        self._sides = {name: _Side(name, throughput) for name, throughput in throughputs.items()}
        self._next = 0
        self._returned: list[tuple[int, int, RetryHistory]] = []
        self.reclaimed: list[Group] = []  # taken away from their side; the caller cancels them and clears the list
        self._largest = math.ceil(count / groups)
        self.done = 0

    @property
    def is_done(self) -> bool:
        return self.done == self.count

    @property
    def left(self) -> int:
        """Items that are not in flight and not complete."""
        return self.count - self._next + sum(stop - start for start, stop, _ in self._returned)

    # ── assignment ───────────────────────────────────────────────────────────────────────────────

    def assign(self, now: float) -> list[Group]:
        """Return the groups to start now."""
        out: list[Group] = []
        while (group := self._next_group(now)) is not None:
            out.append(group)
        return out

    def _next_group(self, now: float) -> Group | None:
        ready = [side for side in self._sides.values() if side.has_capacity(now)]
        ready.sort(key=lambda side: len(side.running))
        for side in ready:
            if (group := self._pull(side, now) or self._duplicate_or_reclaim(side, now)) is not None:
                return group
        if self._is_stuck(now):  # the guard stops both sides: the faster one takes the group
            return self._assign_forced(ready, now)
        return None

    def _is_stuck(self, now: float) -> bool:
        return self.left > 0 and not any(side.running for side in self._sides.values())

    def _assign_forced(self, ready: list[_Side], now: float) -> Group | None:
        for side in sorted(ready, key=lambda side: side.finish_s(1, now)):
            if self.left and (group := self._take(side, self._size(side, now), now)) is not None:
                return group
        return None

    def _pull(self, side: _Side, now: float) -> Group | None:
        if not self.left:
            return None
        items = self._size(side, now)
        other = self._other(side)
        is_guarded = (
            other is not None and side.throughput.is_known and other.throughput.is_known and not other.is_paused(now)
        )
        if is_guarded and side.finish_s(items, now) > self._all_remaining_s(other, now):
            return None
        return self._take(side, items, now)

    def _all_remaining_s(self, side: _Side | None, now: float) -> float:
        """Expected seconds until `side` would complete everything that is left."""
        assert side is not None
        overhead_s = 0.0 if side.running else side.throughput.overhead_s
        return overhead_s + (side.ahead(now) + self.left) * side.item_s(now)

    def _size(self, side: _Side, now: float) -> int:
        if not side.throughput.is_known:
            return max(1, min(self.count // FIRST_GROUP_DIVISOR, MAX_FIRST_ITEMS))
        share = self.left * self._share_of(side, now)
        items = math.ceil(share / (GROUPS_AHEAD * max(side.throughput.servers, side.throughput.initial_groups)))
        items = max(min(items, self._largest), min(self._min_items(side, now), int(share)), 1)
        return items if side.throughput.is_measured else min(items, MAX_FIRST_ITEMS)

    def _min_items(self, side: _Side, now: float) -> int:
        """Minimum items of a group that justify its dispatch, and its round trip if no second group is in flight."""
        worth = min(math.ceil(MIN_GROUP_S / side.item_s(now)), 2 * self._largest)
        if side.throughput.max_groups > 1 or not side.throughput.per_item_s:
            return worth
        return max(worth, math.ceil(MIN_OVERHEADS * side.throughput.overhead_s / side.throughput.per_item_s))

    def _share_of(self, side: _Side, now: float) -> float:
        """The side's share of the combined throughput, 0 to 1."""
        other = self._other(side)
        if other is None or other.is_paused(now) or not other.throughput.is_known:
            return 1.0 if other is None or other.is_paused(now) else 0.5
        mine, theirs = 1 / side.item_s(now), 1 / other.item_s(now)
        return mine / (mine + theirs)

    def _other(self, side: _Side) -> _Side | None:
        return next((each for each in self._sides.values() if each is not side), None)

    def _take(self, side: _Side, items: int, now: float) -> Group | None:
        for index, (start, stop, history) in enumerate(self._returned):
            if side.name not in history.avoids:
                cut = min(start + items, stop)
                self._returned[index : index + 1] = [(cut, stop, history)] if cut < stop else []
                return self._begin(side, start, cut, now, history)
        if self._next == self.count:
            return None
        start, self._next = self._next, min(self._next + items, self.count)
        return self._begin(side, start, self._next, now)

    def _begin(self, side: _Side, start: int, stop: int, now: float, history: RetryHistory | None = None) -> Group:
        expected_s = side.finish_s(stop - start, now) if side.throughput.is_known else 0.0
        group = Group(start, stop, side.name, now, expected_s, len(side.running) + 1, history or RetryHistory())
        side.running.append(group)
        side.throughput.on_start(now)
        return group

    # ── late groups ─────────────────────────────────────────────────────────────────────────────

    def _duplicate_or_reclaim(self, side: _Side, now: float) -> Group | None:
        """Duplicate or reclaim the other side's slowest group, if this side is expected to be faster."""
        other = self._other(side)
        if other is None or not self.repeatable or self.left:
            return None
        alone = [
            each
            for each in other.running
            if each.duplicate is None and each.began < now and side.name not in each.history.avoids
        ]
        for late in sorted(alone, key=lambda group: -group.remaining_s(now)):
            is_stalled = late.is_stalled(now)
            if side.finish_s(late.items, now) > DUPLICATE_GAIN * late.remaining_s(now):
                continue
            if not is_stalled and not (side.throughput.is_known and late.expected_s):
                continue
            if is_stalled:
                self._reclaim(late, now)
                return self._take(side, self._size(side, now), now)
            if self.duplicates_left:
                self.duplicates_left -= 1
                group = self._begin(side, late.start, late.stop, now, late.history)
                group.duplicate, late.duplicate = late, group
                return group
        return None

    def _reclaim(self, late: Group, now: float) -> None:
        self._remove(late)
        self._pause(self._sides[late.side], now, None)
        self._returned.append((late.start, late.stop, replace(late.history, avoids=late.history.avoids | {late.side})))
        self.reclaimed.append(late)

    # ── outcomes ────────────────────────────────────────────────────────────────────────

    def on_answer(self, group: Group, now: float) -> None:
        """Record the completion of a group; its duplicate is forgotten."""
        side = self._sides[group.side]
        side.failures = 0
        side.throughput.on_complete(group.items, now - group.began, group.in_flight, now)
        self._remove(group)
        self.done += group.items
        if group.duplicate is not None:
            self._remove(group.duplicate)

    def on_failure(
        self, group: Group, now: float, *, is_refusal: bool = False, retry_after_s: float | None = None
    ) -> bool:
        """Record a failure; a refusal means that nothing ran. False if no attempt is left and the batch has failed."""
        self._remove(group)
        self._pause(self._sides[group.side], now, retry_after_s)
        history = group.history.after(group.side, frozenset(self._sides), is_refusal=is_refusal)
        if group.duplicate is not None:
            survivor, group.duplicate = group.duplicate, None
            survivor.duplicate, survivor.history = None, history or survivor.history
            return True
        if history is None:
            return False
        self._returned.append((group.start, group.stop, history))
        return True

    def _remove(self, group: Group) -> None:
        side = self._sides[group.side]
        if group in side.running:
            side.running.remove(group)
        if not side.running:
            side.throughput.on_idle()

    def _pause(self, side: _Side, now: float, retry_after_s: float | None) -> None:
        side.failures += 1
        pause_s = min(FIRST_PAUSE_S * 2 ** (side.failures - 1), MAX_PAUSE_S)
        side.resumes_at = now + max(pause_s, min(retry_after_s or 0.0, MAX_PAUSE_S))

    def next_check_s(self, now: float) -> float | None:
        """Seconds until `assign` may have work without a further answer; None if only an answer can change that."""
        waits = [side.resumes_at - now for side in self._sides.values() if side.is_paused(now)]
        ages = [now - group.began for side in self._sides.values() for group in side.running]
        if ages and any(side.has_capacity(now) for side in self._sides.values()):
            waits.append(max(MIN_CHECK_S, min(max(ages) / 8, MAX_CHECK_S)))
        return min(waits, default=None)
