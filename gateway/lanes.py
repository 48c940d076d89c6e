"""The lanes: one per backend. They own every wait before work starts, and keep the choice open until then.

Theory of operation. A lane has slots (tasks its backend works on at once) and a bounded line. For a remote
backend, a body larger than a socket buffer also needs an upload permit, so that what is not yet on the wire
can still change its mind; smaller bodies pass by. The line is in order of

    key = S + 0.35 * arrived        that is: shortest first, S - 0.35 * waited, which never needs re-sorting

where S is the predicted service time. Work whose client gave a deadline goes first, earliest first, once its
slack is under 2 S: before that, order by length serves it better, and after it is lost, nobody gains.

Predictions are made from what stands in the lane: what runs has max(S - age, S/4) to go, what waits ahead is
list-scheduled onto the slots, bytes ahead are divided by the learned rate of the uplink.

`tick`, every quarter of a second and on events, looks at the first 16 waiting of each lane: work moves where
its cost is below 0.8 of here. Work that is sent and stalled gets a second attempt elsewhere, when that takes
less than 0.7 of what remains, out of a token bucket that fills by 0.02 per request. Work that is not
repeatable never runs twice, and nothing here moves work where its `allowed` does not name.

Synchronous; the clock is given, so the same lanes run live and in the benchmark's simulation.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heapreplace
from typing import Any

from gateway.decide.policy import Candidate, Decision, Policy, Query, cost_s, decide
from gateway.measure.board import Board
from gateway.plugin import TaskRefused

AGING = 0.35
URGENT_SLACK = 2.0  # a client's deadline binds once its slack is under this many service times
LOOKED_AT = 16  # waiting places a pass looks at
PERMIT_BYTES = 65_536  # smaller bodies vanish into socket buffers: nothing could be revoked
PERMITS = 1
MOVE_LEAST_S = 0.05
RESCUE_GAIN = 0.7
DUPLICATE_RATIO, DUPLICATE_BURST = 0.02, 3.0
ARRIVALS_OVER_S = 10.0
BUSY_PERIOD_MOST_S = 30.0
ANSWER_STALL_LEAST_S = 0.5


@dataclass(slots=True, eq=False, kw_only=True)
class Work:
    """One attempt's place in line; a second attempt at the same request is a Work of its own.

    models, sizes: per backend, its name for the model or task, and the size in that backend's measure.
    estimates: predicted seconds by backends that know better than the learned model.
    deadline: on the lanes' clock. allowed: backends it may be moved to while it waits.
    start(backend): it may begin there now; called once per grant. duplicate(backend): asks for a second
    attempt there; false when that cannot be. moved(before, after): it changed lanes while waiting.
    """

    id: str
    kind: str
    name: str = ""
    models: Mapping[str, str]
    sizes: Mapping[str, float] = field(default_factory=dict)
    estimates: Mapping[str, float] = field(default_factory=dict)
    body_bytes: int = 0
    deadline: float = math.inf
    client_deadline: bool = False
    repeatable: bool = True
    allowed: tuple[str, ...] = ()
    start: Callable[[str], None]
    duplicate: Callable[[str], bool] | None = None
    moved: Callable[[str, str], None] | None = None
    arrived: float | None = None


class _Place:
    """Work waiting in a lane."""

    __slots__ = ("key", "nbytes", "service_s", "work")

    def __init__(self, work: Work, key: float, service_s: float) -> None:
        self.work = work
        self.key = key
        self.service_s = service_s
        self.nbytes = work.body_bytes


class _Run:
    """Work a backend has been given."""

    __slots__ = ("answered", "began", "nbytes", "p95_s", "rescued", "sent_at", "service_s", "upload_s", "work")

    def __init__(self, work: Work, now: float, service_s: float, p95_s: float, upload_s: float) -> None:
        self.work = work
        self.began = now
        self.service_s = service_s
        self.p95_s = p95_s
        self.upload_s = upload_s  # expected, what was ahead of it included
        self.nbytes = work.body_bytes
        self.sent_at: float | None = None
        self.answered = False
        self.rescued = False

    def sent_by(self) -> float:
        """The instant its last byte left, as reported, or as expected where a socket buffer hides it."""
        return self.sent_at if self.sent_at is not None else self.began + self.upload_s

    def remaining_s(self, now: float) -> float:
        """Seconds its slot stays taken."""
        age_s = now - self.began - self.upload_s
        left_s = max(self.service_s - age_s, self.service_s / 4)
        return max(left_s, age_s / 2) if age_s > self.p95_s else left_s


class Lane:
    """One backend's slots and line."""

    def __init__(self, name: str, *, site: str, slots: int, queue: int, remote: bool, usd: float, watts: float):
        self.name, self.site, self.remote = name, site, remote
        self.slots, self.queue = slots, queue
        self.usd, self.watts = usd, watts
        self.runs: dict[Work, _Run] = {}
        self.places: list[_Place] = []  # in order of their keys
        self.keys: list[float] = []
        self.services: list[float] = []
        self.sizes: list[int] = []
        self.uploading = 0
        self.with_deadline = 0
        self._arrivals_per_s = 0.0
        self._busy = 0.0
        self._seen_at = -math.inf

    # ── the line ─────────────────────────────────────────────────────────────────────────────────

    def insert(self, place: _Place) -> None:
        at = bisect_left(self.keys, place.key)
        self.keys.insert(at, place.key)
        self.places.insert(at, place)
        self.services.insert(at, place.service_s)
        self.sizes.insert(at, place.nbytes)
        self.with_deadline += place.work.client_deadline

    def take(self, at: int) -> _Place:
        place = self.places.pop(at)
        del self.keys[at], self.services[at], self.sizes[at]
        self.with_deadline -= place.work.client_deadline
        return place

    def index(self, place: _Place) -> int:
        at = bisect_left(self.keys, place.key)
        while self.places[at] is not place:
            at += 1
        return at

    def next(self, now: float) -> int | None:
        """Which place may start now; None when there is no slot, or no permit for those who need one."""
        if len(self.runs) >= self.slots or not self.places:
            return None
        if self.with_deadline and (urgent := self._urgent(now)) is not None:
            return urgent
        for at in range(min(len(self.places), LOOKED_AT)):
            if self._may_upload(self.places[at].nbytes):
                return at
        return None

    def _urgent(self, now: float) -> int | None:
        best, best_deadline = None, math.inf
        for at, place in enumerate(self.places[: 4 * LOOKED_AT]):
            work = place.work
            if not work.client_deadline or work.deadline >= best_deadline or not self._may_upload(place.nbytes):
                continue
            slack_s = work.deadline - now
            if place.service_s / 2 <= slack_s < URGENT_SLACK * place.service_s:
                best, best_deadline = at, work.deadline
        return best

    def _may_upload(self, nbytes: int) -> bool:
        return not self.remote or nbytes <= PERMIT_BYTES or self.uploading < PERMITS

    # ── the slots ────────────────────────────────────────────────────────────────────────────────

    def begin(self, run: _Run) -> None:
        self.runs[run.work] = run
        if self.remote and run.nbytes > PERMIT_BYTES:
            self.uploading += 1

    def sent(self, run: _Run, now: float) -> None:
        if run.sent_at is None:
            run.sent_at = now
            if self.remote and run.nbytes > PERMIT_BYTES:
                self.uploading -= 1

    def end(self, run: _Run, now: float) -> None:
        self.sent(run, now)
        del self.runs[run.work]

    # ── what is to be expected ───────────────────────────────────────────────────────────────────

    def slot_wait_s(self, ahead: int, now: float) -> float:
        """Seconds until a slot is free for work with `ahead` places before it: list scheduling."""
        spare = self.slots - len(self.runs)
        if ahead < spare:
            return 0.0
        remaining = [run.remaining_s(now) for run in self.runs.values()]
        if ahead > LOOKED_AT:
            return (sum(remaining) + sum(self.services[:ahead])) / self.slots
        remaining += [0.0] * spare
        heapify(remaining)
        for service_s in self.services[:ahead]:
            heapreplace(remaining, remaining[0] + service_s)
        return remaining[0]

    def unsent_s(self, bytes_per_s: float, now: float) -> float:
        """Seconds until everything that is being sent is sent. A stall lasts as long again as it has lasted."""
        total_s = 0.0
        for run in self.runs.values():
            if run.sent_at is None and run.nbytes:
                own_s = run.nbytes / bytes_per_s
                age_s = now - run.began
                if run.nbytes > PERMIT_BYTES:
                    total_s += max(own_s - age_s, own_s / 4, age_s - run.upload_s)
                elif age_s < run.upload_s:
                    total_s += min(own_s, run.upload_s - age_s)
        return total_s

    def note_arrival(self, now: float) -> None:
        self._decay(now)
        self._arrivals_per_s += 1.0 / ARRIVALS_OVER_S

    def arrivals_per_s(self, now: float) -> float:
        self._decay(now)
        return self._arrivals_per_s

    def utilisation(self, now: float) -> float:
        """The share of its capacity in use, over about the last ten seconds."""
        self._decay(now)
        return min(self._busy, 1.0)

    def _decay(self, now: float) -> None:
        since_s = now - self._seen_at
        if since_s <= 0.0:
            return
        kept = math.exp(-since_s / ARRIVALS_OVER_S)
        busy = self.uploading / PERMITS if self.remote else len(self.runs) / self.slots
        self._arrivals_per_s *= kept
        self._busy = busy + (self._busy - busy) * kept
        self._seen_at = now


class Lanes:
    """All lanes. `usable(name)` says why a backend may not be used now (None: it may); set it at any time."""

    def __init__(self, board: Board, policy: Policy, clock: Callable[[], float]) -> None:
        self.board, self.policy = board, policy
        self.usable: Callable[[str], str | None] = lambda name: None
        self._clock = clock
        self._lanes: dict[str, Lane] = {}
        self._waiting_in: dict[Work, tuple[Lane, _Place]] = {}
        self._last: dict[tuple[str, str], str] = {}
        self._tokens = 1.0
        self.moves = self.rescues = 0

    def add(
        self,
        name: str,
        *,
        site: str,
        slots: int,
        queue: int,
        remote: bool,
        usd: float = 0.0,
        watts: float = 0.0,
    ) -> None:
        """Open a lane; a second time: change its slots and line."""
        self.board.add(name, remote=remote)
        if name in self._lanes:
            self._lanes[name].slots, self._lanes[name].queue = slots, queue
            self._pump(self._lanes[name])
            return
        self._lanes[name] = Lane(name, site=site, slots=slots, queue=queue, remote=remote, usd=usd, watts=watts)

    def remove(self, name: str) -> list[Work]:
        """Close a lane; returns what was waiting there. What runs there may still report."""
        lane = self._lanes.pop(name, None)
        if lane is None:
            return []
        left = [place.work for place in lane.places]
        for work in left:
            del self._waiting_in[work]
        return left

    # ── deciding ─────────────────────────────────────────────────────────────────────────────────

    def choose(self, work: Work, query: Query, refused: Mapping[str, str | None]) -> Decision:
        """Decide for `work` among the backends in `refused`, which says why one is out, or None."""
        last = self._last.get((work.kind, work.name))
        return decide(query, self.candidates(work, refused), self.policy, last)

    def candidates(self, work: Work, refused: Mapping[str, str | None]) -> list[Candidate]:
        """Each backend in `refused` as it stands for `work`."""
        now = self._clock()
        return [self._candidate(work, name, why, now) for name, why in refused.items()]

    def _candidate(self, work: Work, name: str, refused: str | None, now: float, key: float | None = None) -> Candidate:
        lane = self._lanes.get(name)
        if lane is None:
            return Candidate(name, "edge", refused or "it is not open")
        if refused is None and lane.remote and self.board.is_down(name):
            refused = "its link is down"
        if refused is not None:
            return Candidate(name, lane.site, refused)
        model = work.models.get(name, work.name)
        service_s, p95_s, samples, _ = self.board.predict(name, work.kind, model, work.sizes.get(name, 0.0))
        if name in work.estimates:
            service_s = work.estimates[name]
            p95_s, samples = max(p95_s, service_s), max(samples, 1)
        ahead = 0
        if lane.places:
            ahead = bisect_left(lane.keys, service_s + AGING * now if key is None else key)
        wait_s = lane.slot_wait_s(ahead, now)
        upload_s = others_s = 0.0
        arrivals_per_s = lane.arrivals_per_s(now)
        if lane.remote:
            rate = self.board.uplink_bytes_per_s(name)
            own_s = work.body_bytes / rate
            ahead_s = lane.unsent_s(rate, now) + (sum(lane.sizes[:ahead]) / rate if ahead else 0.0)
            upload_s = ahead_s + own_s
            others_s = arrivals_per_s * min(upload_s, BUSY_PERIOD_MOST_S) * own_s
        else:
            others_s = arrivals_per_s * min(wait_s + service_s, BUSY_PERIOD_MOST_S) * service_s / lane.slots
        return Candidate(
            name,
            lane.site,
            None,
            wait_s,
            upload_s,
            service_s,
            p95_s,
            samples,
            lane.usd,
            lane.watts * service_s,
            others_s,
            lane.utilisation(now),
            self.board.optimism(name, work.kind, model),
        )

    # ── the life of work ─────────────────────────────────────────────────────────────────────────

    def submit(self, work: Work, backend: str) -> None:
        """Line up at `backend`; `work.start` is called now or later. Raises TaskRefused when the line is full."""
        now = self._clock()
        lane = self._lanes.get(backend)
        if lane is None:
            raise TaskRefused(f"{backend} is not open", code="unavailable")
        if work.arrived is None:
            work.arrived = now
            self._tokens = min(self._tokens + DUPLICATE_RATIO, DUPLICATE_BURST)
        self._last[work.kind, work.name] = backend
        for name in work.allowed:
            if name != backend:
                self.board.passed_over(name, work.kind, work.models.get(name, work.name))
            self.board.note_traffic(name)
        lane.note_arrival(now)
        self._line_up(work, lane, now)
        self._pump(lane)
        if work in self._waiting_in and len(lane.places) > lane.queue:
            self.withdraw(work)
            raise TaskRefused(
                f"{backend} is busy and {lane.queue} are waiting for it",
                code="overloaded",
                retry_after_s=self._drain_s(lane, now),
            )

    def _line_up(self, work: Work, lane: Lane, now: float) -> None:
        model = work.models.get(lane.name, work.name)
        service_s = work.estimates.get(lane.name)
        if service_s is None:
            service_s = self.board.predict(lane.name, work.kind, model, work.sizes.get(lane.name, 0.0)).mean_s
        arrived = work.arrived if work.arrived is not None else now
        place = _Place(work, service_s + AGING * arrived, service_s)
        lane.insert(place)
        self._waiting_in[work] = (lane, place)

    def _pump(self, lane: Lane) -> None:
        now = self._clock()
        while (at := lane.next(now)) is not None:
            work = lane.take(at).work
            del self._waiting_in[work]
            lane.utilisation(now)
            lane.begin(self._new_run(work, lane, now))
            work.start(lane.name)

    def _new_run(self, work: Work, lane: Lane, now: float) -> _Run:
        model = work.models.get(lane.name, work.name)
        estimate = self.board.predict(lane.name, work.kind, model, work.sizes.get(lane.name, 0.0))
        upload_s = 0.0
        if lane.remote:
            rate = self.board.uplink_bytes_per_s(lane.name)
            upload_s = lane.unsent_s(rate, now) + work.body_bytes / rate
        return _Run(work, now, work.estimates.get(lane.name, estimate.mean_s), estimate.p95_s, upload_s)

    def sent(self, work: Work, backend: str) -> None:
        """The last byte of its body was acknowledged: the permit returns. Bodies under 64 KiB need not tell."""
        lane = self._lanes.get(backend)
        if lane is not None and (run := lane.runs.get(work)) is not None:
            now = self._clock()
            lane.utilisation(now)
            lane.sent(run, now)
            self._pump(lane)

    def answered(self, work: Work, backend: str) -> None:
        """Its answer is here (streams: the first content): the board learns how long it took. Idempotent."""
        lane = self._lanes.get(backend)
        run = lane.runs.get(work) if lane is not None else None
        if lane is None or run is None or run.answered:
            return
        run.answered = True
        seconds = self._served_s(lane, run)
        self.board.learn(backend, work.kind, work.models.get(backend, work.name), work.sizes.get(backend, 0.0), seconds)

    def gave_up(self, work: Work, backend: str) -> None:
        """Its time was over before an answer came: it takes longer than that."""
        lane = self._lanes.get(backend)
        run = lane.runs.get(work) if lane is not None else None
        if lane is None or run is None or run.answered or (lane.remote and run.sent_at is None and run.nbytes):
            return
        run.answered = True
        model = work.models.get(backend, work.name)
        self.board.timed_out(backend, work.kind, model, work.sizes.get(backend, 0.0), self._served_s(lane, run))

    def _served_s(self, lane: Lane, run: _Run) -> float:
        now = self._clock()
        if not lane.remote:
            return now - run.began
        return max(now - run.sent_by(), (now - run.began) / 10)

    def done(self, work: Work, backend: str) -> None:
        """Its slot is free; the next one starts. Idempotent."""
        lane = self._lanes.get(backend)
        if lane is None or (run := lane.runs.get(work)) is None:
            return
        now = self._clock()
        lane.utilisation(now)
        lane.end(run, now)
        self._pump(lane)
        if not lane.places and len(lane.runs) < lane.slots and self._waiting_in:
            self.rebind()

    def withdraw(self, work: Work) -> None:
        """Leave the line; nothing happens when it does not wait."""
        found = self._waiting_in.pop(work, None)
        if found is not None:
            lane, place = found
            lane.take(lane.index(place))

    # ── after the decision ───────────────────────────────────────────────────────────────────────

    def tick(self) -> None:
        """Move what waits in the wrong line; ask for second attempts of what is stalled."""
        self.rebind()
        if self.policy.rescue:
            self.rescue()

    def rebind(self) -> None:
        """One pass over the first 16 waiting of each lane."""
        for lane in list(self._lanes.values()):
            for place in lane.places[:LOOKED_AT]:
                work = place.work
                if len(work.allowed) > 1 and work in self._waiting_in:
                    self._move_if_better(work, lane, place)

    def _move_if_better(self, work: Work, lane: Lane, place: _Place) -> None:
        now = self._clock()
        query = Query(work.kind, work.name, work.deadline - now, work.client_deadline)
        here = self._candidate(work, lane.name, self.usable(lane.name), now, place.key)
        here_s = math.inf if here.refused else cost_s(here, query, self.policy)
        limit_s = self.policy.rebind * here_s - MOVE_LEAST_S if here_s < math.inf else math.inf
        best, best_s = None, limit_s
        for name in work.allowed:
            if name == lane.name or name not in self._lanes:
                continue
            there = self._candidate(work, name, self.usable(name), now)
            if there.refused is None and (there_s := cost_s(there, query, self.policy)) < best_s:
                best, best_s = self._lanes[name], there_s
        if best is not None and len(best.places) <= best.queue:
            self._move(work, lane, best, now)

    def _move(self, work: Work, lane: Lane, to: Lane, now: float) -> None:
        self.withdraw(work)
        self.moves += 1
        if work.moved is not None:
            work.moved(lane.name, to.name)
        to.note_arrival(now)
        self._line_up(work, to, now)
        self._pump(to)
        self._pump(lane)

    def rescue(self) -> None:
        """Second attempts for what is stalled at a remote backend, as far as the budget goes."""
        now = self._clock()
        for lane in list(self._lanes.values()):
            if not lane.remote:
                continue
            gone = self.board.is_down(lane.name)
            for run in list(lane.runs.values()):
                if not run.rescued and not run.answered and run.work.repeatable and run.work.duplicate is not None:
                    self._rescue_if_stalled(run, lane, gone, now)

    def _rescue_if_stalled(self, run: _Run, lane: Lane, gone: bool, now: float) -> None:
        remaining_s = math.inf if gone else self._stalled_s(run, lane, now)
        if remaining_s <= 0.0 or (self._tokens < 1.0 and not gone):
            return
        best, best_s = None, RESCUE_GAIN * remaining_s
        for name in run.work.allowed:
            if name != lane.name:
                there = self._candidate(run.work, name, self.usable(name), now)
                if there.refused is None and there.t_s < best_s:
                    best, best_s = name, there.t_s
        if best is not None and run.work.duplicate is not None and run.work.duplicate(best):
            run.rescued = True
            self.rescues += 1
            self._tokens -= 0.0 if gone else 1.0

    def _stalled_s(self, run: _Run, lane: Lane, now: float) -> float:
        """Seconds stalled work still takes; 0 when it is not stalled."""
        if run.sent_at is None and run.nbytes > PERMIT_BYTES:
            late_s = now - run.began - run.upload_s
            return late_s + run.service_s if late_s > max(ANSWER_STALL_LEAST_S, run.upload_s) else 0.0
        age_s = now - run.sent_by()
        return max(age_s, ANSWER_STALL_LEAST_S) if age_s > run.p95_s * 1.2 else 0.0

    # ── what stands where ────────────────────────────────────────────────────────────────────────

    def _drain_s(self, lane: Lane, now: float) -> float:
        return min(max(lane.slot_wait_s(len(lane.places) // 4, now), 1.0), 60.0)

    def waiting(self) -> dict[str, int]:
        """How many wait for each backend."""
        return {name: len(lane.places) for name, lane in self._lanes.items()}

    def busy(self) -> dict[str, int]:
        """How many slots of each backend are taken."""
        return {name: len(lane.runs) for name, lane in self._lanes.items()}

    def names(self) -> Iterable[str]:
        """Backends with a lane."""
        return self._lanes.keys()

    def status(self) -> dict[str, Any]:
        """Every lane, as JSON, for /status."""
        now = self._clock()
        return {
            name: {
                "site": lane.site,
                "slots": lane.slots,
                "busy": len(lane.runs),
                "waiting": len(lane.places),
                "queue": lane.queue,
                "uploading": lane.uploading,
                "arrivals_per_s": round(lane.arrivals_per_s(now), 3),
                "utilisation": round(lane.utilisation(now), 3),
            }
            for name, lane in self._lanes.items()
        }
