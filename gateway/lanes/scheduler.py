"""All lanes together: the life of work from its decision to the end of its slot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gateway.lanes.forecast import Forecast
from gateway.lanes.hedge import Hedger
from gateway.lanes.lane import Lane
from gateway.lanes.rebalance import Rebalancer
from gateway.lanes.work import PERMIT_BYTES, QueueEntry, RunningWork, Work
from gateway.measure.measurements import Measurements
from gateway.plugin import TaskRefused
from gateway.policy import Candidate, Decision, Policy, Query, decide

MAX_REMEMBERED = 1024
OVERDUE, MIN_OVERDUE_S = 4.0, 1.0
MIN_RETRY_S, MAX_RETRY_S = 1.0, 60.0


def _always(name: str) -> str | None:
    return None


class Scheduler:
    """All lanes. `usable(name)` says why a backend may not be used now (None: it may); set it at any time."""

    def __init__(self, board: Measurements, policy: Policy, clock: Callable[[], float]) -> None:
        self.board, self.policy = board, policy
        self.usable: Callable[[str], str | None] = _always
        self.moves = 0
        self._clock = clock
        self._lanes: dict[str, Lane] = {}
        self._retired: list[Lane] = []  # whose name another has, or nobody; what runs there ends there
        self._waiting_in: dict[Work, tuple[Lane, QueueEntry]] = {}
        self._last: dict[tuple[str, str], str] = {}
        self._forecast = self._new_forecast()
        self._rebinding = Rebalancer(self._forecast, self._lanes, policy)
        self._rescuing = Hedger(self._forecast, self._lanes, board)

    def obey(self, policy: Policy) -> None:
        """Weigh by this from now on."""
        self.policy = policy
        self._rebinding = Rebalancer(self._forecast, self._lanes, policy)

    def _new_forecast(self) -> Forecast:
        return Forecast(self.board, self._lanes, self._clock)

    def add(
        self, name: str, *, site: str, slots: int, queue: int, remote: bool, usd: float = 0.0, watts: float = 0.0
    ) -> None:
        """Open a lane; a second time: change its slots and line."""
        self.board.add(name, remote=remote)
        lane = self._lanes.get(name)
        if lane is None:
            self._lanes[name] = Lane(name, site=site, slots=slots, queue=queue, remote=remote, usd=usd, watts=watts)
            return
        lane.slots, lane.queue, lane.usd, lane.watts = slots, queue, usd, watts
        self._pump(lane)

    def remove(self, name: str) -> None:
        """Close a lane; what was waiting there is told that it was dropped. What runs there may still report."""
        if name in self._lanes:
            self._drop(name, self._lanes.pop(name).places)
            self._strike(name)

    def retire(self, name: str) -> Lane | None:
        """Take a lane out of the choice; its slots are given back as its work ends, until `forget`."""
        lane = self._lanes.pop(name, None)
        if lane is not None:
            self._retired.append(lane)
        return lane

    def hand_over(self, lane: Lane, *, same_work: bool) -> None:
        """Whoever waits in this retired lane lines up in the new one of its name; is dropped where there is none,
        or where that one does not do the same work."""
        to = self._lanes.get(lane.name) if same_work else None
        if to is None:
            self._drop(lane.name, lane.places)
            self._strike(lane.name)
            return
        for work in [place.work for place in lane.places]:
            self.withdraw(work)
            self._line_up(work, to, self._clock())
        self._pump(to)

    def forget(self, lane: Lane) -> None:
        """What still runs in this retired lane reports to nobody."""
        self._retired = [each for each in self._retired if each is not lane]

    def _strike(self, name: str) -> None:
        """Nothing there is may move to `name`: what was decided held for who had that name then."""
        running = (work for lane in [*self._lanes.values(), *self._retired] for work in lane.runs)
        for work in (*self._waiting_in, *running):
            work.allowed = tuple(each for each in work.allowed if each != name)

    def _drop(self, name: str, places: list[QueueEntry]) -> None:
        for work in [place.work for place in places]:
            del self._waiting_in[work]
            if work.dropped is not None:
                work.dropped(name)

    # ── deciding ─────────────────────────────────────────────────────────────────────────────────

    def choose(self, work: Work, query: Query, refused: Mapping[str, str | None]) -> Decision:
        """Decide for `work` among the backends in `refused`, which says why one is out, or None. Runs nothing."""
        last = self._last.get((work.kind, work.name))
        return decide(query, self.candidates(work, refused), self.policy, last)

    def candidates(self, work: Work, refused: Mapping[str, str | None]) -> list[Candidate]:
        """Each backend in `refused` as it stands for `work`."""
        now, forecast = self._clock(), self._forecast.candidate
        return [forecast(work, name, why, now) for name, why in refused.items()]

    # ── the life of work ─────────────────────────────────────────────────────────────────────────

    def submit(self, work: Work, backend: str) -> None:
        """Line up at `backend`; `work.start` is called now or later. Raises TaskRefused when the line is full."""
        now = self._clock()
        lane = self._lanes.get(backend)
        if lane is None:
            raise TaskRefused(f"{backend} is not open", code="unavailable")
        if work in self._waiting_in:
            raise ValueError(f"work {work.id} is waiting already")
        self._note(work, backend, now)
        self._line_up(work, lane, now)
        self._pump(lane)
        if len(lane.places) > lane.queue and work in self._waiting_in:
            self.withdraw(work)
            raise TaskRefused(
                f"{backend} is busy and {lane.queue} are waiting for it; try again later",
                code="overloaded",
                retry_after_s=self._drain_s(lane, now),
            )

    def _note(self, work: Work, backend: str, now: float) -> None:
        """Remember the choice: for hysteresis, for the doubt others get, for probes, for the rescue budget."""
        if work.arrived is None:
            work.arrived = now
            self._rescuing.earn()
            if len(self._last) >= MAX_REMEMBERED:
                self._last.clear()
            self._last[work.kind, work.name] = backend
        for name in work.allowed:
            self.board.on_demand(name)
            if name != backend:
                self.board.on_passed_over(name, work.kind, work.model(name))

    def _line_up(self, work: Work, lane: Lane, now: float) -> None:
        lane.note_arrival(now)
        expected = self._forecast.service(work, lane.name)
        place = QueueEntry(work, expected.mean_s * expected.hold, now)
        lane.insert(place)
        self._waiting_in[work] = (lane, place)

    def _pump(self, lane: Lane) -> None:
        """Start whatever may start."""
        now = self._clock()
        while (at := lane.next(now)) is not None:
            work = lane.take(at).work
            del self._waiting_in[work]
            expected = self._forecast.service(work, lane.name)
            upload_s = self._forecast.upload_s(lane, work.body_bytes, now)
            if lane.remote and work.body_bytes > PERMIT_BYTES:
                lane.permits = self._forecast.permits(lane, work.body_bytes)
            lane.begin(RunningWork(work, now, expected.mean_s, expected.p95_s, upload_s, expected.hold), now)
            work.start(lane.name)

    def _run(self, work: Work, backend: str) -> tuple[Lane, RunningWork] | None:
        lane = self._lanes.get(backend)
        run = lane.runs.get(work) if lane is not None else None
        return (lane, run) if lane is not None and run is not None else None

    def _end_retired(self, work: Work, backend: str) -> None:
        for lane in self._retired:
            if lane.name == backend and work in lane.runs:
                lane.end(lane.runs[work], self._clock())

    def sent(self, work: Work, backend: str) -> None:
        """The last byte of its body was acknowledged: the permit returns. Idempotent; small bodies need not tell."""
        if (found := self._run(work, backend)) is not None and found[1].is_uploading():
            found[0].sent(found[1], self._clock())
            self._pump(found[0])

    def answered(self, work: Work, backend: str) -> None:
        """Its answer is here (streams: the first content): the board learns how long it took. Idempotent."""
        if (found := self._run(work, backend)) is not None and not found[1].answered:
            found[1].answered, found[1].answered_at = True, self._clock()
            self.board.learn(backend, work.kind, work.model(backend), work.size(backend), self._served_s(*found))

    def gave_up(self, work: Work, backend: str) -> bool:
        """Its time was over before an answer came: it takes longer than that. A stuck upload says nothing.

        True where it has had far more time than such work takes there.
        """
        found = self._run(work, backend)
        if found is None or found[1].answered or (found[0].remote and found[1].is_uploading()):
            return False
        served_s = self._served_s(*found)
        found[1].answered = True
        self.board.on_timeout(backend, work.kind, work.model(backend), work.size(backend), served_s)
        return served_s > max(OVERDUE * found[1].p95_s, MIN_OVERDUE_S)

    def _served_s(self, lane: Lane, run: RunningWork) -> float:
        """Seconds since it began, at a remote backend since its last byte left."""
        taken_s = self._clock() - run.began
        return max(self._clock() - run.sent_by(), taken_s / 10) if lane.remote else taken_s

    def done(self, work: Work, backend: str) -> None:
        """Its slot is free; the next one starts. Idempotent."""
        if (found := self._run(work, backend)) is None:
            return self._end_retired(work, backend)
        lane, run = found
        now = self._clock()
        lane.end(run, now)
        if run.answered and run.answered_at > run.began:
            ratio = (now - run.began) / (run.answered_at - run.began)
            self.board.on_slot_freed(backend, work.kind, work.model(backend), ratio)
        self._pump(lane)
        if not lane.places and len(lane.runs) < lane.slots and self._waiting_in:
            self.rebind()

    def withdraw(self, work: Work) -> None:
        """Leave the line; nothing happens when it does not wait."""
        found = self._waiting_in.pop(work, None)
        if found is not None:
            found[0].take(found[0].index(found[1]))

    # ── after the decision ───────────────────────────────────────────────────────────────────────

    def tick(self) -> None:
        """Every quarter of a second and on events: revise what waits, rescue what is stalled."""
        self.rebind()
        if self.policy.rescue:
            self._rescuing.rescue(self.usable, self._clock())

    def rebind(self) -> None:
        """Move what waits in the wrong line."""
        if not self._waiting_in:
            return
        now = self._clock()
        for place, lane, to in self._rebinding.moves(self.usable, now):
            work = place.work
            self.withdraw(work)
            self.moves += 1
            if work.moved is not None:
                work.moved(lane.name, to.name)
            self._line_up(work, to, now)
            self._pump(to)
            self._pump(lane)

    # ── what stands where ────────────────────────────────────────────────────────────────────────

    def _drain_s(self, lane: Lane, now: float) -> float:
        """Until a quarter of the line has gone: a time at which asking again is worth it."""
        return min(max(lane.slot_wait_s(len(lane.places) // 4, now), MIN_RETRY_S), MAX_RETRY_S)

    def waiting(self) -> dict[str, int]:
        """How many wait for each backend."""
        return {name: len(lane.places) for name, lane in self._lanes.items()}

    def busy(self) -> dict[str, int]:
        """How many slots of each backend are taken."""
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
        "waiting": len(lane.places),
        "queue": lane.queue,
        "uploading": lane.uploading,
        "permits": lane.permits,
        "arrivals_per_s": round(arrivals_per_s, 3),
        "utilisation": round(utilisation, 3),
    }
