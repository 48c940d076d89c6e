"""How fast one side gets through a batch, learned from the groups it answers.

A group of g items takes overhead_s + g · per_item_s where it has the side to itself: a least-squares line through
what was seen, older groups counting less. The side as a whole finishes an item every `item_s`: with several groups
in flight that is less, and where nothing comes back it grows by itself, because the time since then counts.

How many groups to keep in flight is found as TCP Vegas finds its window (Brakmo and Peterson 1995): one more where
they do not slow each other down, one less where they do.
"""

from __future__ import annotations

import math

FORGETTING = 0.8  # per group; about the last five count
LINE_FORGETTING = 0.9
LEAST_S = 1e-6
GROWS_BELOW, SHRINKS_ABOVE = 0.3, 0.7  # slowdown per further group: 0 they are parallel, 1 they wait for each other
UNDER_WAY_MOST = 8
REST_GROUPS = 8  # after it shrank, the width is left alone for so many


class Pace:
    """One side's speed. `per_item_s` None: nothing is known yet. most: never more groups in flight than that."""

    def __init__(self, *, most: int, width: int, per_item_s: float | None = None, overhead_s: float = 0.0) -> None:
        self.most = max(1, most)
        self.width = min(max(1, width), self.most)
        self.overhead_s = overhead_s
        self.per_item_s = per_item_s
        self._time_s = self._items = 0.0  # busy, and done in it
        self._mark: float | None = None  # until when it is counted; None: idle
        self._line = [0.0] * 5  # sums of 1, g, s, g², gs
        self._rest = 0

    @property
    def is_known(self) -> bool:
        """Whether there is any idea of how fast it is."""
        return self._items > 0.0 or self.per_item_s is not None

    @property
    def is_measured(self) -> bool:
        """Whether it has answered in this batch."""
        return self._items > 0.0

    def room(self, items: int) -> int:
        """How many groups of so many items may be in flight: the width, and what is under way over the network."""
        under_way = math.ceil(self.overhead_s / (items * self.per_item_s)) if self.per_item_s else 0
        return min(self.width + min(under_way, UNDER_WAY_MOST), self.most)

    def latency_s(self, items: int) -> float:
        """Seconds a group of so many items takes by itself; 0 where nothing is known."""
        return self.overhead_s + items * (self.per_item_s or 0.0)

    def item_s(self, now: float, in_flight: int = 0) -> float:
        """Seconds between finished items of the whole side. in_flight: items of its oldest group."""
        if not self._items:
            return max((self.per_item_s or 0.0) / self.width, LEAST_S)
        seconds, items = self._time_s, self._items
        if self._mark is not None and in_flight:
            waiting = (FORGETTING * seconds + now - self._mark) / (FORGETTING * items + in_flight)
            return max(seconds / items, waiting, LEAST_S)
        return max(seconds / items, LEAST_S)

    def began(self, now: float) -> None:
        """A group was sent; busy from now on, if it was not."""
        if self._mark is None:
            self._mark = now

    def idle(self) -> None:
        """Nothing is in flight any more."""
        self._mark = None

    def learn(self, items: int, seconds: float, at_once: int, now: float) -> None:
        """A group was answered. at_once: how many were in flight when it was sent, itself included."""
        self._time_s = FORGETTING * self._time_s + (now - self._mark if self._mark is not None else seconds)
        self._items = FORGETTING * self._items + items
        self._mark = now
        self._adapt(items, seconds, at_once)
        if at_once == 1 or self.per_item_s is None or seconds < self.latency_s(items):
            self._fit(items, seconds)

    def _fit(self, items: int, seconds: float) -> None:
        n, g, s, gg, gs = (LINE_FORGETTING * kept for kept in self._line)
        self._line = n, g, s, gg, gs = [n + 1, g + items, s + seconds, gg + items * items, gs + items * seconds]
        spread = gg / n - (g / n) ** 2
        slope = (s - n * self.overhead_s) / g
        if spread > (0.2 * g / n) ** 2:
            slope = (gs / n - g / n * s / n) / spread
        self.per_item_s = min(max(slope, LEAST_S), s / g)
        self.overhead_s = max(s / n - self.per_item_s * g / n, 0.0)

    def _adapt(self, items: int, seconds: float, at_once: int) -> None:
        expected_s = self.latency_s(items)
        self._rest -= 1
        if at_once < self.width or not expected_s:
            return
        slowdown = (seconds / expected_s - 1.0) / max(at_once - 1, 1)
        if at_once > 1 and slowdown > SHRINKS_ABOVE:
            self.width = max(self.width - 1, 1)
            self._rest = REST_GROUPS
        elif slowdown < GROWS_BELOW and self._rest <= 0:
            self.width = min(self.width + 1, self.most)
