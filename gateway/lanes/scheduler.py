"""All lanes together: queues work, gives it slots, and learns from how it ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gateway.lanes.forecast import Forecast
from gateway.lanes.hedge import Hedger
from gateway.lanes.lane import Lane
from gateway.lanes.rebalance import Rebalancer, WhyExcluded
from gateway.lanes.selector import Selector
from gateway.lanes.work import PERMIT_BYTES, QueueEntry, RunningWork, Work, WorkOwner
from gateway.measure.measurements import Measurements
from gateway.plugin import TaskRefused
from gateway.policy import Policy

OVERDUE, MIN_OVERDUE_S = 4.0, 1.0
MIN_RETRY_S, MAX_RETRY_S = 1.0, 60.0

ForecastFactory = Callable[[Measurements, Mapping[str, Lane], Callable[[], float]], Forecast]


class Scheduler:
    """All lanes, and the life of work from its submission to the end of its slot; `selector` chooses among them.

    why_excluded: returns why a backend may not receive work now, or None; read when work moves or is hedged.
    """

    def __init__(
        self,
        measurements: Measurements,
        policy: Policy,
        clock: Callable[[], float],
        why_excluded: WhyExcluded,
        make_forecast: ForecastFactory = Forecast,
    ) -> None:
        self.measurements = measurements
        self.moves = 0
        self._clock = clock
        self._lanes: dict[str, Lane] = {}
        self._retired: list[Lane] = []  # lanes without a name of their own; their running work ends there
        self._waiting_in: dict[Work, tuple[Lane, QueueEntry]] = {}
        self._forecast = make_forecast(measurements, self._lanes, clock)
        self.selector = Selector(self._forecast, policy, clock)
        self._rebalancer = Rebalancer(self._forecast, self._lanes, why_excluded)
        self._hedger = Hedger(self._forecast, self._lanes, measurements, why_excluded)

    @property
    def policy(self) -> Policy:
        """The operator's weights and switches."""
        return self.selector.policy

    def set_policy(self, policy: Policy) -> None:
        """Use this policy from now on."""
        self.selector.set_policy(policy)

    # ── lanes ────────────────────────────────────────────────────────────────────────────────────

    def add(
        self, name: str, *, site: str, slots: int, queue: int, remote: bool, usd: float = 0.0, watts: float = 0.0
    ) -> None:
        """Open a lane, or change the slots, queue length and costs of an open one."""
        self.measurements.add(name, remote=remote)
        lane = self._lanes.get(name)
        if lane is None:
            self._lanes[name] = Lane(name, site=site, slots=slots, queue=queue, remote=remote, usd=usd, watts=watts)
            return
        lane.slots, lane.queue, lane.usd, lane.watts = slots, queue, usd, watts
        self._start_ready(lane, self._clock())

    def remove(self, name: str) -> None:
        """Close a lane and drop its queue. Work that runs there may still report."""
        if name in self._lanes:
            self._drop(name, self._lanes.pop(name).entries)
            self._disallow(name)

    def retire(self, name: str) -> Lane | None:
        """Take a lane out of the choice; its slots are given back as its work ends, until `forget`."""
        lane = self._lanes.pop(name, None)
        if lane is not None:
            self._retired.append(lane)
        return lane

    def hand_over(self, lane: Lane, *, same_work: bool) -> None:
        """Move the queue of a retired lane to the new lane of its name.

        Without such a lane, or if its backend does not do the same work, the queue is dropped.
        """
        to = self._lanes.get(lane.name) if same_work else None
        if to is None:
            self._drop(lane.name, lane.entries)
            self._disallow(lane.name)
            return
        for entry in lane.entries[:]:
            self.withdraw(entry.work)
            self._enqueue(entry.work, entry.owner, to, self._clock())
        self._start_ready(to, self._clock())

    def forget(self, lane: Lane) -> None:
        """Ignore further reports of work that runs in this retired lane."""
        self._retired = [each for each in self._retired if each is not lane]

    def _disallow(self, name: str) -> None:
        """Let no present work move to `name`: its decision was about the backend that had this name before."""
        running = (work for lane in [*self._lanes.values(), *self._retired] for work in lane.runs)
        for work in (*self._waiting_in, *running):
            work.allowed = tuple(each for each in work.allowed if each != name)

    def _drop(self, name: str, entries: list[QueueEntry]) -> None:
        for entry in entries[:]:
            del self._waiting_in[entry.work]
            entry.owner.on_dropped(name)

    # ── work ─────────────────────────────────────────────────────────────────────────────────────

    def submit(self, work: Work, backend: str, owner: WorkOwner) -> None:
        """Queue at `backend`; `owner.on_granted` is called now or later. Raises TaskRefused if the queue is full."""
        now = self._clock()
        lane = self._lanes.get(backend)
        if lane is None:
            raise TaskRefused(f"{backend} is not open", code="unavailable")
        if work in self._waiting_in:
            raise ValueError(f"work {work.id} is queued already")
        self._record_choice(work, backend, now)
        self._enqueue(work, owner, lane, now)
        self._start_ready(lane, now)
        if len(lane.entries) > lane.queue and work in self._waiting_in:
            self.withdraw(work)
            raise TaskRefused(
                f"{backend} is busy and {lane.queue} are waiting for it; try again later",
                code="overloaded",
                retry_after_s=self._retry_after_s(lane, now),
            )

    def _record_choice(self, work: Work, backend: str, now: float) -> None:
        """Record the choice: for hysteresis, the optimism about other backends, probes and the hedge budget."""
        if work.arrived is None:
            work.arrived = now
            self._hedger.add_tokens()
            self.selector.remember(work, backend)
        for name in work.allowed:
            self.measurements.on_demand(name)
            if name != backend:
                self.measurements.on_passed_over(name, work.kind, work.model(name))

    def _enqueue(self, work: Work, owner: WorkOwner, lane: Lane, now: float) -> None:
        lane.on_arrival(now)
        entry = QueueEntry(work, owner, self._forecast.service(work, lane.name), now)
        lane.insert(entry)
        self._waiting_in[work] = (lane, entry)

    def _start_ready(self, lane: Lane, now: float) -> None:
        """Start all queued work that may start."""
        while (at := lane.next_index(now)) is not None:
            entry = lane.take(at)
            work = entry.work
            del self._waiting_in[work]
            is_new = entry.queued_at == now
            estimate = entry.estimate if is_new else self._forecast.service(work, lane.name)
            upload_s = self._forecast.upload_s(lane, work.body_bytes, now)
            if lane.remote and work.body_bytes > PERMIT_BYTES:
                lane.permits = self._forecast.permits(lane, work.body_bytes)
            lane.start(RunningWork(work, entry.owner, estimate, upload_s, now), now)
            entry.owner.on_granted(lane.name)

    def withdraw(self, work: Work) -> None:
        """Leave the queue. Does nothing if the work is not queued."""
        found = self._waiting_in.pop(work, None)
        if found is not None:
            lane, entry = found
            lane.take(lane.index(entry))

    def on_uploaded(self, work: Work, backend: str) -> None:
        """Return the upload permit: the last byte was acknowledged. Idempotent; not required for small bodies."""
        if (found := self._running(work, backend)) is None:
            return
        lane, run = found
        if run.is_uploading():
            now = self._clock()
            lane.on_uploaded(run, now)
            self._start_ready(lane, now)

    def on_answered(self, work: Work, backend: str) -> None:
        """Learn the service time: the answer (of a stream, its first content) has arrived. Idempotent."""
        if (found := self._running(work, backend)) is None:
            return
        lane, run = found
        if not run.is_answered:
            run.is_answered, run.answered_at = True, self._clock()
            served_s = self._served_s(lane, run)
            self.measurements.learn(backend, work.kind, work.model(backend), work.size(backend), served_s)

    def on_timeout(self, work: Work, backend: str) -> bool:
        """Learn that the service takes longer than the time it had. A stalled upload teaches nothing.

        Returns True if the work had far more time than such work takes at this backend.
        """
        if (found := self._running(work, backend)) is None:
            return False
        lane, run = found
        if run.is_answered or (lane.remote and run.is_uploading()):
            return False
        served_s = self._served_s(lane, run)
        run.is_answered = True
        self.measurements.on_timeout(backend, work.kind, work.model(backend), work.size(backend), served_s)
        return served_s > max(OVERDUE * run.p95_s, MIN_OVERDUE_S)

    def on_finished(self, work: Work, backend: str) -> None:
        """Free the slot and start the next work. Idempotent."""
        if (found := self._running(work, backend)) is None:
            return self._finish_retired(work, backend)
        lane, run = found
        now = self._clock()
        lane.finish(run, now)
        if run.is_answered and run.answered_at > run.began:
            ratio = (now - run.began) / (run.answered_at - run.began)
            self.measurements.on_slot_freed(backend, work.kind, work.model(backend), ratio)
        self._start_ready(lane, now)
        if not lane.entries and len(lane.runs) < lane.slots and self._waiting_in:
            self.rebalance()

    def _running(self, work: Work, backend: str) -> tuple[Lane, RunningWork] | None:
        lane = self._lanes.get(backend)
        run = lane.runs.get(work) if lane is not None else None
        return (lane, run) if lane is not None and run is not None else None

    def _finish_retired(self, work: Work, backend: str) -> None:
        for lane in self._retired:
            if lane.name == backend and work in lane.runs:
                lane.finish(lane.runs[work], self._clock())

    def _served_s(self, lane: Lane, run: RunningWork) -> float:
        """Seconds since it began; at a remote backend, since its last byte left."""
        taken_s = self._clock() - run.began
        return max(self._clock() - run.last_byte_at(), taken_s / 10) if lane.remote else taken_s

    # ── after the decision ───────────────────────────────────────────────────────────────────────

    def tick(self) -> None:
        """Revise queued work and hedge stalled work; call it every quarter of a second and on events."""
        self.rebalance()
        if self.policy.rescue:
            self._hedger.hedge_stalled(self._clock())

    def rebalance(self) -> None:
        """Move queued work to clearly better lanes."""
        if not self._waiting_in:
            return
        now = self._clock()
        for entry, lane, to in self._rebalancer.moves(self.policy, now):
            self.withdraw(entry.work)
            self.moves += 1
            entry.owner.on_moved(lane.name, to.name)
            self._enqueue(entry.work, entry.owner, to, now)
            self._start_ready(to, now)
            self._start_ready(lane, now)

    # ── status ───────────────────────────────────────────────────────────────────────────────────

    def _retry_after_s(self, lane: Lane, now: float) -> float:
        """Seconds until a quarter of the queue has gone, when a retry is worth it."""
        return min(max(lane.slot_wait_s(len(lane.entries) // 4, now), MIN_RETRY_S), MAX_RETRY_S)

    def waiting(self) -> dict[str, int]:
        """The length of each backend's queue."""
        return {name: len(lane.entries) for name, lane in self._lanes.items()}

    def busy(self) -> dict[str, int]:
        """The number of taken slots of each backend."""
        return {name: len(lane.runs) for name, lane in self._lanes.items()}

    def status(self) -> dict[str, Any]:
        """Every lane, as JSON, for /status."""
        now = self._clock()
        return {name: _status(lane, now) for name, lane in self._lanes.items()}


def _status(lane: Lane, now: float) -> dict[str, Any]:
    arrivals_per_s, utilisation = lane.pressure(now)
    return {
        "site": lane.site,
        "slots": lane.slots,
        "busy": len(lane.runs),
        "waiting": len(lane.entries),
        "queue": lane.queue,
        "uploading": lane.uploading,
        "permits": lane.permits,
        "arrivals_per_s": round(arrivals_per_s, 3),
        "utilisation": round(utilisation, 3),
    }
