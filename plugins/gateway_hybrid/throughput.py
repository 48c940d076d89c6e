"""The throughput of one side in a batch, learned from the groups it completes.

A group of g items takes overhead_s + g · per_item_s if no other group is in flight: a least-squares line through the
observed groups, with less weight on older ones. The side as a whole completes an item every `item_s`. With several
groups in flight this time is shorter. If no answer arrives it grows, because the time since the last answer counts.

The number of items in flight follows BBR (Cardwell et al. 2016): 1.5 times the items that the side completes in the
time of one group alone. If more items in flight raise the throughput, the limit grows with every answer, up to all
servers of the side. If they only wait, the limit stays, and the remaining items can still go to the other side.
"""

from __future__ import annotations

FORGETTING = 0.8  # weight of older groups, per group: about five groups count
LINE_FORGETTING = 0.9
MIN_S = 1e-6
IN_FLIGHT_GAIN = 1.5


class Throughput:
    """The speed of one side. `per_item_s` is None while it is unknown.

    max_groups: limit of groups in flight. initial_groups: the limit until the first answer of the batch.
    servers: prior for the number of items that the side computes in parallel.
    """

    def __init__(
        self,
        *,
        max_groups: int,
        initial_groups: int,
        per_item_s: float | None = None,
        overhead_s: float = 0.0,
        servers: float = 1.0,
    ) -> None:
        self.max_groups = max(1, max_groups)
        self.initial_groups = min(max(1, initial_groups), self.max_groups)
        self.overhead_s, self.per_item_s = overhead_s, per_item_s
        self._servers = servers
        self._time_s = self._items = 0.0  # busy seconds, and items completed in them
        self._mark: float | None = None  # end of the counted busy time; None while idle
        self._line = [0.0] * 5  # sums of 1, g, s, g², gs

    @property
    def is_known(self) -> bool:
        return self._items > 0.0 or self.per_item_s is not None

    @property
    def is_measured(self) -> bool:
        """Whether it has completed a group of this batch."""
        return self._items > 0.0

    @property
    def servers(self) -> float:
        """Items computed in parallel, by measurement; the prior before that."""
        if not self._items or not self.per_item_s:
            return self._servers
        return min(max(self.per_item_s * self._items / max(self._time_s, MIN_S), 1.0), float(self.max_groups))

    def latency_s(self, items: int) -> float:
        """Seconds for a group of `items` alone on the side; 0 if the speed is unknown."""
        return self.overhead_s + items * (self.per_item_s or 0.0)

    def item_s(self, now: float, in_flight: int = 0) -> float:
        """Seconds between completed items of the whole side. in_flight: items of its oldest group."""
        if not self._items:
            return max((self.per_item_s or 0.0) / self._servers, MIN_S)
        seconds, items = self._time_s, self._items
        if self._mark is not None and in_flight:
            waiting = (FORGETTING * seconds + now - self._mark) / (FORGETTING * items + in_flight)
            return max(seconds / items, waiting, MIN_S)
        return max(seconds / items, MIN_S)

    def has_capacity(self, groups: int, drain_s: float, items: int) -> bool:
        """Whether a group of `items` may be sent behind `groups` in flight, which complete in `drain_s`."""
        if groups < self.initial_groups:
            return True
        return groups < self.max_groups and self.is_measured and drain_s < IN_FLIGHT_GAIN * self.latency_s(items)

    def on_start(self, now: float) -> None:
        """A group was sent: the side is busy from now on."""
        if self._mark is None:
            self._mark = now

    def on_idle(self) -> None:
        """The last group in flight has ended."""
        self._mark = None

    def on_complete(self, items: int, seconds: float, in_flight: int, now: float) -> None:
        """A group was completed. in_flight: groups in flight when it was sent, including itself."""
        self._time_s = FORGETTING * self._time_s + (now - self._mark if self._mark is not None else seconds)
        self._items = FORGETTING * self._items + items
        self._mark = now
        if in_flight == 1 or self.per_item_s is None or seconds < self.latency_s(items):
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
        else:  # all groups have one size: scale the previous line to fit
            factor = s / (n * self.overhead_s + g * self.per_item_s)
            self.per_item_s, self.overhead_s = max(factor * self.per_item_s, MIN_S), factor * self.overhead_s
