"""One backend's slots and queue: its contents in order, and how busy it has been."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from heapq import heapify, heapreplace
from itertools import accumulate

from gateway.lanes.work import PERMIT_BYTES, QueueEntry, RunningWork, Work

URGENT_SLACK = 2.0  # a client's deadline binds once its slack is under this many service times
LOOKAHEAD = 16  # queued entries that are computed with, or looked at, individually
AVERAGE_OVER_S = 10.0  # arrivals and use are averaged over about this long
FRESH_S = 0.01  # averages younger than this are not updated


class PrefixSums:
    """Sums of the first n numbers of a queue: needed once per decision, a hundred times per pass.

    The second call at one instant computes all sums; further calls at that instant only look them up.
    """

    __slots__ = ("_summed_at", "_sums", "_sums_at", "values")

    def __init__(self) -> None:
        self.values: list[float] = []
        self._sums: list[float] = []
        self._summed_at = self._sums_at = math.nan

    def insert(self, at: int, value: float) -> None:
        self._summed_at = self._sums_at = math.nan
        self.values.insert(at, value)

    def remove(self, at: int) -> None:
        self._summed_at = self._sums_at = math.nan
        del self.values[at]

    def before(self, ahead: int, now: float) -> float:
        """Return the sum of the first `ahead` values."""
        if now == self._sums_at:
            return self._sums[ahead]
        if now != self._summed_at:
            self._summed_at = now
            return sum(self.values[:ahead])
        self._sums, self._sums_at = list(accumulate(self.values, initial=0.0)), now
        return self._sums[ahead]


class Lane:
    """The state of one lane. `permits`: how many large bodies may be uploading at once."""

    def __init__(
        self, name: str, *, site: str, slots: int, queue: int, remote: bool, usd: float = 0.0, watts: float = 0.0
    ) -> None:
        self.name, self.site, self.remote = name, site, remote
        self.slots, self.queue = slots, queue
        self.usd, self.watts = usd, watts
        self.permits = 1
        self.runs: dict[Work, RunningWork] = {}
        self.uploading = 0
        # The queue: lists in the order of the keys, so that C code finds a place and sums up the entries ahead of it.
        self.entries: list[QueueEntry] = []
        self.keys: list[float] = []
        self.services, self.sizes = PrefixSums(), PrefixSums()  # seconds, bytes
        self._deadline_count = self._small_count = 0
        self._arrivals_per_s = self._busy_ratio = 0.0
        self._averaged_at = -math.inf
        self._remaining: list[float] = []  # per running work, cached for the instant below; a pass needs it often
        self._remaining_at = self._unsent_at = math.nan
        self._unsent_s = 0.0

    @property
    def is_full(self) -> bool:
        """Whether the next arrival may be refused."""
        return len(self.entries) >= max(self.queue, 1)

    # ── the queue ─────────────────────────────────────────────────────────────────────────────────

    def insert(self, entry: QueueEntry) -> None:
        """Queue an entry, behind those with the same key."""
        at = bisect_right(self.keys, entry.key)
        self.keys.insert(at, entry.key)
        self.entries.insert(at, entry)
        self.services.insert(at, entry.service_s)
        self.sizes.insert(at, entry.nbytes)
        entry.is_waiting = True
        self._small_count += entry.nbytes <= PERMIT_BYTES
        self._deadline_count += entry.work.client_deadline

    def take(self, at: int) -> QueueEntry:
        """Remove the entry at this index from the queue."""
        entry = self.entries.pop(at)
        del self.keys[at]
        self.services.remove(at)
        self.sizes.remove(at)
        entry.is_waiting = False
        self._small_count -= entry.nbytes <= PERMIT_BYTES
        self._deadline_count -= entry.work.client_deadline
        return entry

    def index(self, entry: QueueEntry) -> int:
        """Return the index of `entry` in the queue. Raises IndexError if it is not queued."""
        at = bisect_left(self.keys, entry.key)
        while self.entries[at] is not entry:
            at += 1
        return at

    def next_index(self, now: float) -> int | None:
        """Return the index of the entry that may start now; None without a free slot, or the permit it needs."""
        if len(self.runs) >= self.slots or not self.entries:
            return None
        urgent = self._urgent(now) if self._deadline_count else None
        if urgent is not None:
            return urgent
        if not self.remote or self.uploading < self.permits:
            return 0
        if self._small_count:
            return next(at for at, entry in enumerate(self.entries) if entry.nbytes <= PERMIT_BYTES)
        return None

    def _urgent(self, now: float) -> int | None:
        """Return the index of the entry with the earliest binding deadline: it can still be met, but only just."""
        best, earliest = None, math.inf
        for at, entry in enumerate(self.entries[: 4 * LOOKAHEAD]):
            work = entry.work
            if work.client_deadline and work.deadline < earliest and self._may_upload(entry.nbytes):
                slack_s = work.deadline - now
                if entry.service_s / 2 <= slack_s < URGENT_SLACK * entry.service_s:
                    best, earliest = at, work.deadline
        return best

    def _may_upload(self, nbytes: int) -> bool:
        return not self.remote or nbytes <= PERMIT_BYTES or self.uploading < self.permits

    # ── the slots ────────────────────────────────────────────────────────────────────────────────

    def start(self, run: RunningWork, now: float) -> None:
        """Take a slot, and an upload permit if the body needs one."""
        self._average(now)
        self._remaining_at = self._unsent_at = math.nan
        self.runs[run.work] = run
        self.uploading += self.remote and run.is_uploading()

    def on_uploaded(self, run: RunningWork, now: float) -> None:
        """Return the permit, once. Bodies that socket buffers hide hold none, and their reports are ignored."""
        if run.is_uploading():
            self._average(now)
            self._remaining_at = self._unsent_at = math.nan
            run.sent_at = now
            self.uploading -= self.remote

    def finish(self, run: RunningWork, now: float) -> None:
        """Return the slot, and the permit if the upload still holds it."""
        self._average(now)
        self.on_uploaded(run, now)
        self._remaining_at = self._unsent_at = math.nan
        del self.runs[run.work]

    # ── predictions ───────────────────────────────────────────────────────────────────

    def slot_wait_s(self, ahead: int, now: float) -> float:
        """Seconds until a slot is free for work with `ahead` entries before it, by list scheduling."""
        spare = self.slots - len(self.runs)
        if ahead < spare:
            return 0.0
        if now != self._remaining_at:
            self._remaining, self._remaining_at = [run.remaining_s(now) for run in self.runs.values()], now
        if ahead > LOOKAHEAD:
            return (sum(self._remaining) + self.services.before(ahead, now)) / self.slots
        if ahead == 0:
            return min(self._remaining, default=0.0)
        remaining = self._remaining + [0.0] * spare
        heapify(remaining)
        for service_s in self.services.values[:ahead]:
            heapreplace(remaining, remaining[0] + service_s)
        return remaining[0]

    def unsent_s(self, bytes_per_s: float, now: float) -> float:
        """Seconds until all running uploads have ended."""
        if now != self._unsent_at:
            total_s = 0.0
            for run in self.runs.values():
                if run.sent_at is None and run.nbytes:
                    total_s += run.unsent_s(bytes_per_s, now)
            self._unsent_s, self._unsent_at = total_s, now
        return self._unsent_s

    # ── recent load ─────────────────────────────────────────────────────────────────────

    def on_arrival(self, now: float) -> None:
        """Count work that is queued here."""
        self._average(now)
        self._arrivals_per_s += 1.0 / AVERAGE_OVER_S

    def pressure(self, now: float) -> tuple[float, float]:
        """Return recent arrivals per second and the used share, 0 to 1, of the slots (of a remote lane: permits)."""
        self._average(now, changed=False)
        return self._arrivals_per_s, self._busy_ratio

    def _average(self, now: float, *, changed: bool = True) -> None:
        since_s = now - self._averaged_at
        if since_s < FRESH_S and not changed:
            return
        if since_s <= 0.0:
            return
        decay = math.exp(-since_s / AVERAGE_OVER_S)
        busy = min(self.uploading / self.permits if self.remote else len(self.runs) / self.slots, 1.0)
        self._arrivals_per_s *= decay
        self._busy_ratio = busy + (self._busy_ratio - busy) * decay
        self._averaged_at = now
