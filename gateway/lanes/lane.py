"""One backend's slots and line; what stands in it, in order, and how busy it has been."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from heapq import heapify, heapreplace
from itertools import accumulate

from gateway.lanes.work import PERMIT_BYTES, QueueEntry, RunningWork, Work

URGENT_SLACK = 2.0  # a client's deadline binds once its slack is under this many service times
LOOKED_AT = 16  # waiting places that are reckoned, or looked at, one by one
OVER_S = 10.0  # arrivals and use are averaged over about this long
AVERAGED_S = 0.01  # averages younger than this are as good as new


class PrefixSums:
    """Numbers in the order of a line, whose leading ones are summed up: once per decision, a hundred times per pass.

    The second sum asked for at one instant makes all of them, and further ones at that instant cost nothing.
    """

    __slots__ = ("_asked_at", "_sums", "_sums_at", "values")

    def __init__(self) -> None:
        self.values: list[float] = []
        self._sums: list[float] = []
        self._asked_at = self._sums_at = math.nan

    def insert(self, at: int, value: float) -> None:
        """Put `value` before the one at `at`."""
        self._asked_at = self._sums_at = math.nan
        self.values.insert(at, value)

    def remove(self, at: int) -> None:
        """Take the one at `at` out."""
        self._asked_at = self._sums_at = math.nan
        del self.values[at]

    def before(self, ahead: int, now: float) -> float:
        """The sum of the first `ahead`."""
        if now == self._sums_at:
            return self._sums[ahead]
        if now != self._asked_at:
            self._asked_at = now
            return sum(self.values[:ahead])
        self._sums, self._sums_at = list(accumulate(self.values, initial=0.0)), now
        return self._sums[ahead]


class Lane:
    """The state of one lane. `permits` is how many large bodies may be under way at once."""

    def __init__(
        self, name: str, *, site: str, slots: int, queue: int, remote: bool, usd: float = 0.0, watts: float = 0.0
    ) -> None:
        self.name, self.site, self.remote = name, site, remote
        self.slots, self.queue = slots, queue
        self.usd, self.watts = usd, watts
        self.permits = 1
        self.runs: dict[Work, RunningWork] = {}
        self.uploading = 0
        # The line: lists in the order of the keys, so that C code finds a place and sums up what is ahead of it.
        self.places: list[QueueEntry] = []
        self.keys: list[float] = []
        self.services, self.sizes = PrefixSums(), PrefixSums()  # seconds, bytes
        self._with_deadline = self._small = 0
        self._arrivals_per_s = self._busy = 0.0
        self._seen_at = -math.inf
        self._remaining: list[float] = []  # of what runs, reckoned at the instant beside it; a pass asks often
        self._remaining_at = self._unsent_at = math.nan
        self._unsent_s = 0.0

    @property
    def is_full(self) -> bool:
        """Whether whoever comes now may find no place."""
        return len(self.places) >= max(self.queue, 1)

    # ── the line ─────────────────────────────────────────────────────────────────────────────────

    def insert(self, place: QueueEntry) -> None:
        """Line up, behind those with the same key."""
        at = bisect_right(self.keys, place.key)
        self.keys.insert(at, place.key)
        self.places.insert(at, place)
        self.services.insert(at, place.service_s)
        self.sizes.insert(at, place.nbytes)
        place.is_waiting = True
        self._small += place.nbytes <= PERMIT_BYTES
        self._with_deadline += place.work.client_deadline

    def take(self, at: int) -> QueueEntry:
        """Leave the line."""
        place = self.places.pop(at)
        del self.keys[at]
        self.services.remove(at)
        self.sizes.remove(at)
        place.is_waiting = False
        self._small -= place.nbytes <= PERMIT_BYTES
        self._with_deadline -= place.work.client_deadline
        return place

    def index(self, place: QueueEntry) -> int:
        """Where in line `place` stands. Raises IndexError when it does not."""
        at = bisect_left(self.keys, place.key)
        while self.places[at] is not place:
            at += 1
        return at

    def next(self, now: float) -> int | None:
        """Which place may start now; None where there is no slot, or no permit for those who need one."""
        if len(self.runs) >= self.slots or not self.places:
            return None
        urgent = self._urgent(now) if self._with_deadline else None
        if urgent is not None:
            return urgent
        if not self.remote or self.uploading < self.permits:
            return 0
        if self._small:
            return next(at for at, place in enumerate(self.places) if place.nbytes <= PERMIT_BYTES)
        return None

    def _urgent(self, now: float) -> int | None:
        """The earliest client's deadline that binds: still to be met, and not for long."""
        best, earliest = None, math.inf
        for at, place in enumerate(self.places[: 4 * LOOKED_AT]):
            work = place.work
            if work.client_deadline and work.deadline < earliest and self._may_upload(place.nbytes):
                slack_s = work.deadline - now
                if place.service_s / 2 <= slack_s < URGENT_SLACK * place.service_s:
                    best, earliest = at, work.deadline
        return best

    def _may_upload(self, nbytes: int) -> bool:
        return not self.remote or nbytes <= PERMIT_BYTES or self.uploading < self.permits

    # ── the slots ────────────────────────────────────────────────────────────────────────────────

    def begin(self, run: RunningWork, now: float) -> None:
        """Take a slot, and a permit where one is needed."""
        self._average(now)
        self._remaining_at = self._unsent_at = math.nan
        self.runs[run.work] = run
        self.uploading += self.remote and run.is_uploading()

    def sent(self, run: RunningWork, now: float) -> None:
        """Give the permit back, once. Bodies that socket buffers hide have none, and are not believed."""
        if run.is_uploading():
            self._average(now)
            self._remaining_at = self._unsent_at = math.nan
            run.sent_at = now
            self.uploading -= self.remote

    def end(self, run: RunningWork, now: float) -> None:
        """Give the slot back, and the permit where it is still out."""
        self._average(now)
        self.sent(run, now)
        self._remaining_at = self._unsent_at = math.nan
        del self.runs[run.work]

    # ── what is to be expected ───────────────────────────────────────────────────────────────────

    def slot_wait_s(self, ahead: int, now: float) -> float:
        """Seconds until a slot is free for work with `ahead` places before it: list scheduling."""
        spare = self.slots - len(self.runs)
        if ahead < spare:
            return 0.0
        if now != self._remaining_at:
            self._remaining, self._remaining_at = [run.remaining_s(now) for run in self.runs.values()], now
        if ahead > LOOKED_AT:
            return (sum(self._remaining) + self.services.before(ahead, now)) / self.slots
        if ahead == 0:
            return min(self._remaining, default=0.0)
        remaining = self._remaining + [0.0] * spare
        heapify(remaining)
        for service_s in self.services.values[:ahead]:
            heapreplace(remaining, remaining[0] + service_s)
        return remaining[0]

    def unsent_s(self, bytes_per_s: float, now: float) -> float:
        """Seconds until everything that is being sent is sent."""
        if now != self._unsent_at:
            total_s = 0.0
            for run in self.runs.values():
                if run.sent_at is None and run.nbytes:
                    total_s += run.unsent_s(bytes_per_s, now)
            self._unsent_s, self._unsent_at = total_s, now
        return self._unsent_s

    # ── how busy it has been ─────────────────────────────────────────────────────────────────────

    def note_arrival(self, now: float) -> None:
        """Somebody lined up."""
        self._average(now)
        self._arrivals_per_s += 1.0 / OVER_S

    def pressure(self, now: float) -> tuple[float, float]:
        """Lately: how many line up per second; the share of its capacity (a remote one's permits) in use, 0 to 1."""
        self._average(now, changed=False)
        return self._arrivals_per_s, self._busy

    def _average(self, now: float, *, changed: bool = True) -> None:
        since_s = now - self._seen_at
        if since_s < AVERAGED_S and not changed:
            return
        if since_s <= 0.0:
            return
        kept = math.exp(-since_s / OVER_S)
        busy = min(self.uploading / self.permits if self.remote else len(self.runs) / self.slots, 1.0)
        self._arrivals_per_s *= kept
        self._busy = busy + (self._busy - busy) * kept
        self._seen_at = now
