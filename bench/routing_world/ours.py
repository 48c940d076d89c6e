"""The gateway's own measurements, policy and lanes in the simulated world; this module replaces dispatch.

No part of the policy is copied: `Measurements`, `Scheduler` and `decide` run here as they run live, on a virtual clock,
and learn only from observations that a live gateway could make. O3 is the same lanes with exact values in place of
every prediction: the result of moves, shortest-first order and hedges with perfect (greedy) knowledge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from gateway.lanes import Scheduler, Work, forecast, work
from gateway.lanes.forecast import Forecast
from gateway.lanes.lane import Lane
from gateway.measure import service_time
from gateway.measure.measurements import Estimate, Measurements
from gateway.plugin import LinkSample
from gateway.policy import Policy, Query

from .arrivals import Request
from .links import Link
from .record import Record, Stopwatch
from .world import EDGE_SLOTS, Cloud, Edge, Job, Simulator, Throttle, Timer

TICK_S = 0.25
PARTS = ("rebind", "rescue", "price", "order", "drift")
CLOUD_TIMEOUT_S = 10.0
KERNEL_HIDES_BYTES = 65_536
PINNED = {"edge": "edge", "cloud": "cloud"}


class Attempt:
    """One attempt at a request: a Work in the lanes, then a Job in the world. Implements `gateway.lanes.WorkOwner`."""

    def __init__(self, run: Gateway, request: Request, allowed: tuple[str, ...], original: Attempt | None) -> None:
        self.run, self.request = run, request
        self.original = original
        self.where: str | None = None
        self.job: Job | None = None
        self.timer: Timer | None = None
        self.work = run.new_work(self, allowed)

    def on_moved(self, before: str, after: str) -> None: ...

    def on_dropped(self, backend: str) -> None: ...

    def on_stalled(self, backend: str) -> bool:
        return self.original is None and self.run.hedge(self, backend)

    def on_granted(self, backend: str) -> None:
        self.where = backend
        run = self.run
        if backend == "edge":
            self.job = run.edge.run(self.request, self._done)
            return
        self.job = run.cloud.run(self.request, self._done, self._sent)
        self.timer = run.sim.at(run.sim.now + CLOUD_TIMEOUT_S, self._time_out)

    def _sent(self) -> None:
        if self.request.body_bytes > KERNEL_HIDES_BYTES and self.job is not None:
            run = self.run
            run.board.observe(
                "cloud", LinkSample(upload_bytes=self.request.body_bytes, upload_s=run.sim.now - self.job.began)
            )
            run.lanes.on_uploaded(self.work, "cloud")

    def _done(self) -> None:
        assert self.where is not None
        run = self.run
        if self.where == "cloud":
            run.board.observe("cloud", LinkSample(rtt_s=run.cloud.link.rtt_s(run.sim.now)))
        run.lanes.on_answered(self.work, self.where)
        run.finished(self)

    def _time_out(self) -> None:
        run = self.run
        self.stop(gave_up=True)
        run.timed_out(self)

    def stop(self, *, gave_up: bool = False) -> None:
        """Leave the queue, the network or the slot."""
        if self.timer is not None:
            self.timer.cancel()
        self.run.lanes.withdraw(self.work)
        if self.where is not None and self.job is not None:
            if self.job.state != "done":
                (self.run.edge if self.where == "edge" else self.run.cloud).cancel(self.job)
            if gave_up:
                self.run.lanes.on_timeout(self.work, self.where)
            where, self.where = self.where, None
            self.run.lanes.on_finished(self.work, where)


class Gateway:
    """One run: the gateway's modules, and the simulated world around them."""

    name = "edge-gateway"

    def __init__(self, requests: list[Request], link: Link, throttle: Throttle, policy: Policy | None = None) -> None:
        self.sim = Simulator()
        self.edge, self.cloud = Edge(self.sim, throttle), Cloud(self.sim, link)
        self.policy = policy or Policy()
        self.board = Measurements(self.sim.clock, on_link_change=lambda name, change: self._link_changed())
        self.lanes = self._new_lanes()
        self.lanes.add("edge", site="edge", slots=EDGE_SLOTS, queue=1_000_000, remote=False)
        self.lanes.add("cloud", site="cloud", slots=64, queue=1_000_000, remote=True)
        self.record = Record(self.name)
        self.attempts: dict[int, list[Attempt]] = {}
        self._wanted = len(requests)
        for request in requests:
            self.sim.at(request.at, lambda request=request: self._arrive(request))  # type: ignore[misc]
        for at, event in link.carrier:
            self.sim.at(at, lambda event=event: self._carrier(event))  # type: ignore[misc]
        self.sim.at(TICK_S, self._tick)
        self.sim.at(0.0, self._watch_link)

    def _new_lanes(self) -> Scheduler:
        return Scheduler(self.board, self.policy, self.sim.clock, self.board.why_down)

    def run(self) -> Record:
        self.sim.run(lambda: len(self.record.latencies) == self._wanted)
        self.record.moves = self.lanes.moves
        return self.record

    # ── requests ─────────────────────────────────────────────────────────────────────────

    def new_work(self, attempt: Attempt, allowed: tuple[str, ...]) -> Work:
        request = attempt.request
        return Work(
            id=str(request.id),
            kind=request.kind,
            name=request.kind,
            models=PINNED,
            sizes={"edge": request.size, "cloud": request.size},
            body_bytes=request.body_bytes,
            allowed=allowed,
        )

    def _arrive(self, request: Request) -> None:
        attempt = Attempt(self, request, ("edge", "cloud"), None)
        self.attempts[request.id] = [attempt]
        with Stopwatch(self.record.decisions_us):
            decision = self.lanes.selector.choose(
                attempt.work, Query(request.kind, request.kind), {"edge": None, "cloud": self.board.why_down("cloud")}
            )
        self.lanes.submit(attempt.work, decision.order[0], attempt)

    def hedge(self, attempt: Attempt, backend: str) -> bool:
        second = Attempt(self, attempt.request, (backend,), attempt)
        self.attempts[attempt.request.id].append(second)
        self.record.duplicates += 1
        self.lanes.submit(second.work, backend, second)
        return True

    def timed_out(self, attempt: Attempt) -> None:
        others = self.attempts[attempt.request.id]
        if len(others) > 1:  # its second attempt is under way already
            others.remove(attempt)
            return
        attempt.work.allowed = ("edge",)
        self.lanes.submit(attempt.work, "edge", attempt)

    def finished(self, winner: Attempt) -> None:
        assert winner.where is not None
        site = winner.where
        self.record.answered(winner.request, site, self.sim.now)
        for attempt in self.attempts.pop(winner.request.id):
            attempt.stop()

    # ── timers and links ────────────────────────────────────────────────────────────────────────────────

    def _tick(self) -> None:
        self.lanes.tick()
        self.sim.at(self.sim.now + TICK_S, self._tick)

    def _link_changed(self) -> None:
        self.sim.at(self.sim.now, self.lanes.tick)

    def _carrier(self, event: str) -> None:
        if event == "lost":
            self.board.on_carrier_lost("cloud")
        else:
            self.board.on_carrier_back("cloud")

    def _watch_link(self) -> None:
        due_s = self.board.probe_due_s("cloud")
        if due_s > 1e-3:
            self.sim.at(self.sim.now + min(due_s, 0.25), self._watch_link)
            return
        self.board.on_probe_sent("cloud")
        timeout_s = self.board.probe_timeout_s("cloud")

        sent_at = self.sim.now

        def answered(rtt_s: float) -> None:
            miss.cancel()
            self.board.observe("cloud", LinkSample(rtt_s=rtt_s))

        miss = self.sim.at(
            self.sim.now + timeout_s, lambda: self.board.on_probe_timeout("cloud", sent_at, timeout_s) and None
        )
        self.cloud.probe(answered)
        self.sim.at(self.sim.now + min(max(self.board.probe_due_s("cloud"), 0.01), 0.25), self._watch_link)


class LateOracle(Gateway):
    """O3: the same lanes with exact knowledge: the time of each request at either site, and the link's future."""

    name = "O3 late-binding oracle"

    def __init__(self, requests: list[Request], link: Link, throttle: Throttle) -> None:
        self._requests = {str(request.id): request for request in requests}
        self._link, self._throttle = link, throttle
        super().__init__(requests, link, throttle)

    def _new_lanes(self) -> Scheduler:
        def exact(board: Measurements, lanes: Mapping[str, Lane], clock: Callable[[], float]) -> Forecast:
            return _ExactForecast(board, lanes, clock, self._requests, self.cloud, self._throttle)

        return Scheduler(self.board, self.policy, self.sim.clock, self.board.why_down, exact)


class _ExactForecast(Forecast):
    """Exact predictions, except for the effect of later requests."""

    def __init__(
        self,
        board: Measurements,
        lanes: Mapping[str, Lane],
        clock: Callable[[], float],
        requests: dict[str, Request],
        cloud: Cloud,
        throttle: Throttle,
    ) -> None:
        super().__init__(board, lanes, clock)
        self.requests, self.cloud, self.throttle = requests, cloud, throttle

    def service(self, work: Work, name: str) -> Estimate:
        request, now = self.requests[work.id], self._clock()
        if name == "edge":
            seconds = self.throttle.finish(now, request.edge_s) - now
        else:
            seconds = request.cloud_s + self.cloud.link.rtt_s(now)
        return Estimate(seconds, seconds, 1000)

    def _upload(self, lane: Lane, nbytes: int, ahead: int, now: float) -> tuple[float, float]:
        before = self.cloud.unsent_bytes() + lane.sizes.before(ahead, now)
        start = self.cloud.link.finish(now, before)
        end = self.cloud.link.finish(now, before + nbytes)
        return end - now, end - start


def leave_out(part: str) -> Policy:
    """Switch off one part of the gateway for the rest of this process; return the policy to run with."""
    if part == "order":  # with so much aging, only the arrival counts
        work.AGING = forecast.AGING = 1e6
    elif part == "drift":
        service_time.Drift.learn = lambda self, log_ratio, variance, now: None  # type: ignore[method-assign]
    by_policy = {"rebind": Policy(rebind=0.0), "rescue": Policy(rescue=False), "price": Policy(price=0.0)}
    return by_policy.get(part, Policy())
