"""How fast one side gets through a batch, learned from the groups it answers.

A group of g items takes overhead_s + g · per_item_s where it has the side to itself: a least-squares line through
what was seen, older groups counting less. The side as a whole finishes an item every `item_s`: with several groups
in flight that is less, and where nothing comes back it grows by itself, because the time since then counts.

What may be in flight follows BBR (Cardwell et al. 2016): one and a half times what the side finishes in the time a
group takes by itself. Where more in flight is done sooner, that grows with every answer, up to all its servers; where
it only waits there, it stays, and what is not in flight can still go elsewhere.
"""

from __future__ import annotations

FORGETTING = 0.8  # per group; about the last five count
LINE_FORGETTING = 0.9
MIN_S = 1e-6
GAIN = 1.5


class Throughput:
    """One side's speed. `per_item_s` None: nothing is known yet. most: never more groups in flight than that.

    at_first: groups in flight until something is known. servers: how many items it is believed to do at once.
    """

    def __init__(
        self,
        *,
        most: int,
        at_first: int,
        per_item_s: float | None = None,
        overhead_s: float = 0.0,
        servers: float = 1.0,
    ) -> None:
        self.most = max(1, most)
        self.at_first = min(max(1, at_first), self.most)
        self.overhead_s, self.per_item_s = overhead_s, per_item_s
        self._servers = servers
        self._time_s = self._items = 0.0  # busy, and done in it
        self._mark: float | None = None  # until when it is counted; None: idle
        self._line = [0.0] * 5  # sums of 1, g, s, g², gs

    @property
    def is_known(self) -> bool:
        """Whether there is any idea of how fast it is."""
        return self._items > 0.0 or self.per_item_s is not None

    @property
    def is_measured(self) -> bool:
        """Whether it has answered in this batch."""
        return self._items > 0.0

    @property
    def servers(self) -> float:
        """How many items it does at once, as far as that has shown."""
        if not self._items or not self.per_item_s:
            return self._servers
        return min(max(self.per_item_s * self._items / max(self._time_s, MIN_S), 1.0), float(self.most))

    def latency_s(self, items: int) -> float:
        """Seconds a group of so many items takes by itself; 0 where nothing is known."""
        return self.overhead_s + items * (self.per_item_s or 0.0)

    def item_s(self, now: float, in_flight: int = 0) -> float:
        """Seconds between finished items of the whole side. in_flight: items of its oldest group."""
        if not self._items:
            return max((self.per_item_s or 0.0) / self._servers, MIN_S)
        seconds, items = self._time_s, self._items
        if self._mark is not None and in_flight:
            waiting = (FORGETTING * seconds + now - self._mark) / (FORGETTING * items + in_flight)
            return max(seconds / items, waiting, MIN_S)
        return max(seconds / items, MIN_S)

    def has_room(self, groups: int, drain_s: float, items: int) -> bool:
        """Whether a group of so many items may follow those in flight, which are done in `drain_s`."""
        if groups < self.at_first:
            return True
        return groups < self.most and self.is_measured and drain_s < GAIN * self.latency_s(items)

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
        if at_once == 1 or self.per_item_s is None or seconds < self.latency_s(items):
            self._fit(items, seconds)

    def _fit(self, items: int, seconds: float) -> None:
        n, g, s, gg, gs = (LINE_FORGETTING * kept for kept in self._line)
        self._line = n, g, s, gg, gs = [n + 1, g + items, s + seconds, gg + items * items, gs + items * seconds]
        spread = gg / n - (g / n) ** 2
        if spread > (0.2 * g / n) ** 2:
            slope = (gs / n - g / n * s / n) / spread
            self.per_item_s = min(max(slope, MIN_S), s / g)
            self.overhead_s = max(s / n - self.per_item_s * g / n, 0.0)
        elif self.per_item_s is None:
            self.per_item_s = max(s / g, MIN_S)
        else:  # all of one size: what was believed before, made to fit
            factor = s / (n * self.overhead_s + g * self.per_item_s)
            self.per_item_s, self.overhead_s = max(factor * self.per_item_s, MIN_S), factor * self.overhead_s
