"""Who takes which items of a batch next. Pure: no I/O, no clock of its own; `scatter` carries it out.

Theory of operation. Each side pulls a group when it has room for one, so the faster side does more and nobody has
to know beforehand by how much. Groups shrink as the batch does (guided self-scheduling, Polychronopoulos and Kuck
1987), so that both sides come to their end together. Three things keep the slower side from being waited for:

- the guard: a side takes no group which it would finish later than the other side would finish all the rest;
- the twin: when nothing is left to take, a side with room does the group again that the other will take longest
  for, once per batch; the first answer counts;
- the reclaim: what has not come back after a fifth more than its time is taken away from a side, by one that has room
  and nothing better to do, and is done there instead.

A group that failed goes to the other side; a side that failed pauses, twice as long each time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gateway_hybrid.throughput import Throughput

ROUNDS = 4  # times a group may be refused everywhere
SHARES = 3.0  # a group is this part of what its side is likely to do yet, for each that is in flight
FIRST_PART, MAX_FIRST = 64, 16  # of a batch nobody knows the speed of
MIN_GROUP_S = 0.02  # shorter ones cost more to hand over than to do
WORTH_THE_WAY = 3.0  # overheads a group should take, where the next one is not on its way meanwhile
FIRST_PAUSE_S, MAX_PAUSE_S = 0.1, 2.0
STALLED, MIN_STALLED_S = 1.2, 0.1
TWIN_GAIN = 0.8
LOOK_S, MAX_LOOK_S = 0.02, 0.25


@dataclass(frozen=True, slots=True)
class RetryHistory:
    """What became of a group so far. avoids: sides that had their try in this round; failed_at: where it failed."""

    avoids: frozenset[str] = frozenset()
    failed_at: frozenset[str] = frozenset()
    rounds: int = 0

    def after(self, side: str, sides: frozenset[str], *, is_refusal: bool) -> RetryHistory | None:
        """What it is after `side` did not serve it; None: it is hopeless."""
        failed_at = self.failed_at if is_refusal else self.failed_at | {side}
        avoids, rounds = self.avoids | {side}, self.rounds
        if avoids >= sides:
            avoids, rounds = failed_at, rounds + 1
        return None if failed_at >= sides or rounds >= ROUNDS else RetryHistory(avoids, failed_at, rounds)


@dataclass(slots=True, eq=False)
class Group:
    """Items `start` to `stop` on their way at one side. twin: the same items on their way at the other."""

    start: int
    stop: int
    side: str
    began: float
    expected_s: float
    at_once: int
    fate: RetryHistory = field(default_factory=lambda: RetryHistory())
    twin: Group | None = None

    @property
    def items(self) -> int:
        """How many."""
        return self.stop - self.start

    def remaining_s(self, now: float) -> float:
        """Seconds it is likely to take yet. What is late stays late as long again (Lindy's law)."""
        age_s = now - self.began
        left_s = max(self.expected_s - age_s, self.expected_s / 4)
        return max(left_s, age_s / 2) if age_s > 2 * self.expected_s else left_s

    def is_stalled(self, now: float) -> bool:
        """Whether it should have been back long ago."""
        return now - self.began > max(STALLED * self.expected_s, MIN_STALLED_S)


@dataclass(slots=True)
class _Side:
    name: str
    pace: Throughput
    running: list[Group] = field(default_factory=list)
    failures: int = 0
    resumes_at: float = -math.inf

    def is_out(self, now: float) -> bool:
        return now < self.resumes_at

    def has_room(self, now: float) -> bool:
        if self.is_out(now):
            return False
        last = self.running[-1].items if self.running else 1
        return self.pace.has_room(len(self.running), self.ahead(now) * self.item_s(now), last)

    def item_s(self, now: float) -> float:
        return self.pace.item_s(now, self.running[0].items if self.running else 0)

    def ahead(self, now: float) -> float:
        """Items in flight that are not done yet, as far as time tells; those that are late count for more."""
        return sum(
            group.items * group.remaining_s(now) / group.expected_s if group.expected_s else group.items
            for group in self.running
        )

    def finish_s(self, items: int, now: float) -> float:
        """Seconds until it would have done so many more."""
        return max(self.pace.latency_s(items), (self.ahead(now) + items) * self.item_s(now))


class Assignment:
    """One batch: what is open, what is where, what is done. Times are seconds on the caller's clock."""

    def __init__(self, count: int, paces: Mapping[str, Throughput], *, groups: int, repeatable: bool = True) -> None:
        self.count, self.repeatable = count, repeatable
        self.twins_left = 1 if repeatable and len(paces) > 1 else 0
        self._sides = {name: _Side(name, pace) for name, pace in paces.items()}
        self._next = 0
        self._returned: list[tuple[int, int, RetryHistory]] = []
        self.reclaimed: list[Group] = []  # taken away from their side; whoever carries this out cancels and clears them
        self._largest = math.ceil(count / groups)
        self.done = 0

    @property
    def is_done(self) -> bool:
        """Whether every item is answered."""
        return self.done == self.count

    @property
    def left(self) -> int:
        """Items nobody works on."""
        return self.count - self._next + sum(stop - start for start, stop, _ in self._returned)

    # ── giving out ───────────────────────────────────────────────────────────────────────────────

    def assign(self, now: float) -> list[Group]:
        """The groups to start now."""
        out: list[Group] = []
        while (group := self._any(now)) is not None:
            out.append(group)
        return out

    def _any(self, now: float) -> Group | None:
        ready = [side for side in self._sides.values() if side.has_room(now)]
        ready.sort(key=lambda side: len(side.running))
        for side in ready:
            if (group := self._pull(side, now) or self._second(side, now)) is not None:
                return group
        if self._is_stuck(now):  # each leaves it to the other: the quicker one takes it
            return self._forced(ready, now)
        return None

    def _is_stuck(self, now: float) -> bool:
        return self.left > 0 and not any(side.running for side in self._sides.values())

    def _forced(self, ready: list[_Side], now: float) -> Group | None:
        for side in sorted(ready, key=lambda side: side.finish_s(1, now)):
            if self.left and (group := self._take(side, self._size(side, now), now)) is not None:
                return group
        return None

    def _pull(self, side: _Side, now: float) -> Group | None:
        if not self.left:
            return None
        items = self._size(side, now)
        other = self._other(side)
        is_guarded = other is not None and side.pace.is_known and other.pace.is_known and not other.is_out(now)
        if is_guarded and side.finish_s(items, now) > self._rest_s(other, now):
            return None
        return self._take(side, items, now)

    def _rest_s(self, side: _Side | None, now: float) -> float:
        """Seconds in which `side` would do all that is left."""
        assert side is not None
        overhead_s = 0.0 if side.running else side.pace.overhead_s
        return overhead_s + (side.ahead(now) + self.left) * side.item_s(now)

    def _size(self, side: _Side, now: float) -> int:
        if not side.pace.is_known:
            return max(1, min(self.count // FIRST_PART, MAX_FIRST))
        share = self.left * self._part(side, now)
        items = math.ceil(share / (SHARES * max(side.pace.servers, side.pace.at_first)))
        items = max(min(items, self._largest), min(self._least(side, now), int(share)), 1)
        return items if side.pace.is_measured else min(items, MAX_FIRST)

    def _least(self, side: _Side, now: float) -> int:
        """Items that are worth a call: for the gateway, and for the way, where no second group can be on it."""
        worth = min(math.ceil(MIN_GROUP_S / side.item_s(now)), 2 * self._largest)
        if side.pace.most > 1 or not side.pace.per_item_s:
            return worth
        return max(worth, math.ceil(WORTH_THE_WAY * side.pace.overhead_s / side.pace.per_item_s))

    def _part(self, side: _Side, now: float) -> float:
        """Its part of what both can do."""
        other = self._other(side)
        if other is None or other.is_out(now) or not other.pace.is_known:
            return 1.0 if other is None or other.is_out(now) else 0.5
        mine, theirs = 1 / side.item_s(now), 1 / other.item_s(now)
        return mine / (mine + theirs)

    def _other(self, side: _Side) -> _Side | None:
        return next((each for each in self._sides.values() if each is not side), None)

    def _take(self, side: _Side, items: int, now: float) -> Group | None:
        for index, (start, stop, fate) in enumerate(self._returned):
            if side.name not in fate.avoids:
                cut = min(start + items, stop)
                self._returned[index : index + 1] = [(cut, stop, fate)] if cut < stop else []
                return self._begin(side, start, cut, now, fate)
        if self._next == self.count:
            return None
        start, self._next = self._next, min(self._next + items, self.count)
        return self._begin(side, start, self._next, now)

    def _begin(self, side: _Side, start: int, stop: int, now: float, fate: RetryHistory | None = None) -> Group:
        expected_s = side.finish_s(stop - start, now) if side.pace.is_known else 0.0
        group = Group(start, stop, side.name, now, expected_s, len(side.running) + 1, fate or RetryHistory())
        side.running.append(group)
        side.pace.began(now)
        return group

    # ── what is late ─────────────────────────────────────────────────────────────────────────────

    def _second(self, side: _Side, now: float) -> Group | None:
        """The group the other side will take longest for, where this one is faster: as a twin, or in its place."""
        other = self._other(side)
        if other is None or not self.repeatable or self.left:
            return None
        alone = [
            each
            for each in other.running
            if each.twin is None and each.began < now and side.name not in each.fate.avoids
        ]
        for late in sorted(alone, key=lambda group: -group.remaining_s(now)):
            is_stalled = late.is_stalled(now)
            if side.finish_s(late.items, now) > TWIN_GAIN * late.remaining_s(now):
                continue
            if not is_stalled and not (side.pace.is_known and late.expected_s):
                continue
            if is_stalled:
                self._reclaim(late, now)
                return self._take(side, self._size(side, now), now)
            if self.twins_left:
                self.twins_left -= 1
                group = self._begin(side, late.start, late.stop, now, late.fate)
                group.twin, late.twin = late, group
                return group
        return None

    def _reclaim(self, late: Group, now: float) -> None:
        self._ended(late)
        self._pause(self._sides[late.side], now, None)
        self._returned.append((late.start, late.stop, replace(late.fate, avoids=late.fate.avoids | {late.side})))
        self.reclaimed.append(late)

    # ── what became of it ────────────────────────────────────────────────────────────────────────

    def answered(self, group: Group, now: float) -> None:
        """It is back. Its twin, if there is one, is nobody's business any more."""
        side = self._sides[group.side]
        side.failures = 0
        side.pace.learn(group.items, now - group.began, group.at_once, now)
        self._ended(group)
        self.done += group.items
        if group.twin is not None:
            self._ended(group.twin)

    def failed(self, group: Group, now: float, *, is_refusal: bool = False, retry_after_s: float | None = None) -> bool:
        """It is not coming back; a refusal ran nothing. False: it is hopeless, and so is the batch."""
        self._ended(group)
        self._pause(self._sides[group.side], now, retry_after_s)
        fate = group.fate.after(group.side, frozenset(self._sides), is_refusal=is_refusal)
        if group.twin is not None:
            survivor, group.twin = group.twin, None
            survivor.twin, survivor.fate = None, fate or survivor.fate
            return True
        if fate is None:
            return False
        self._returned.append((group.start, group.stop, fate))
        return True

    def _ended(self, group: Group) -> None:
        side = self._sides[group.side]
        if group in side.running:
            side.running.remove(group)
        if not side.running:
            side.pace.idle()

    def _pause(self, side: _Side, now: float, retry_after_s: float | None) -> None:
        side.failures += 1
        pause_s = min(FIRST_PAUSE_S * 2 ** (side.failures - 1), MAX_PAUSE_S)
        side.resumes_at = now + max(pause_s, min(retry_after_s or 0.0, MAX_PAUSE_S))

    def look_again_s(self, now: float) -> float | None:
        """Seconds until there may be something to do without anything having come back; None: nothing."""
        waits = [side.resumes_at - now for side in self._sides.values() if side.is_out(now)]
        ages = [now - group.began for side in self._sides.values() for group in side.running]
        if ages and any(side.has_room(now) for side in self._sides.values()):
            waits.append(max(LOOK_S, min(max(ages) / 8, MAX_LOOK_S)))
        return min(waits, default=None)
