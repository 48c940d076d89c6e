"""Policies that choose once per request: load balancers, and the oracle O1.

Every rival runs in the same world: a first attempt without an answer in 10 s is cancelled and moves to the other
site, where it stays. O1 knows service times, throttling and the future of the link, and picks the site that
finishes first. It is greedy, one request at a time, and not optimal over all requests.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections import deque

from .arrivals import Request
from .links import Link
from .record import Record
from .world import Cloud, Edge, Job, Simulator, Throttle, Timer

TIMEOUT_S = 10.0
SITES = ("edge", "cloud")


class Rival(ABC):
    """Chooses a site for each request and receives the outcome of each attempt."""

    name = "rival"
    edge_timeout = True

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(f"{self.name}/{seed}")
        self.pending = {"edge": 0, "cloud": 0}
        self.rtt_s = 0.05

    @abstractmethod
    def pick(self, request: Request, now: float, edge: Edge, cloud: Cloud) -> str:
        """Return the site for a request that arrives at `now`."""

    def finished(self, request: Request, site: str, seconds: float, now: float) -> None:  # noqa: B027  most do not listen
        """Receive the outcome of an attempt."""

    def timed_out(self, request: Request, site: str, now: float) -> None:  # noqa: B027
        """Receive the time-out of an attempt."""


class Always(Rival):
    """Always the same site."""

    def __init__(self, seed: int, site: str) -> None:
        self.name = f"always-{site}"
        super().__init__(seed)
        self.site = site

    def pick(self, request: Request, now: float, edge: Edge, cloud: Cloud) -> str:
        return self.site


class Random(Rival):
    """A random site."""

    name = "random"

    def pick(self, request: Request, now: float, edge: Edge, cloud: Cloud) -> str:
        return self.rng.choice(SITES)


class LeastRequest(Rival):
    """The site with fewer requests in flight."""

    name = "least-request"

    def pick(self, request: Request, now: float, edge: Edge, cloud: Cloud) -> str:
        if self.pending["edge"] == self.pending["cloud"]:
            return self.rng.choice(SITES)
        return min(SITES, key=lambda site: self.pending[site])


class PeakEwma(Rival):
    """finagle's PeakEwma, one per class: a peak resets, then it decays over 10 s.

    The cost is the average times (pending + 1).
    """

    name = "peak-ewma/class"
    TAU_S = 10.0

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.cost: dict[tuple[str, str], tuple[float, float]] = {}

    def pick(self, request: Request, now: float, edge: Edge, cloud: Cloud) -> str:
        return min(SITES, key=lambda site: (self._score(request.kind, site, now), self.rng.random()))

    def _score(self, kind: str, site: str, now: float) -> float:
        if (kind, site) not in self.cost:
            return 1e6 * self.pending[site]
        cost, at = self.cost[kind, site]
        return cost * math.exp((at - now) / self.TAU_S) * (self.pending[site] + 1)

    def finished(self, request: Request, site: str, seconds: float, now: float) -> None:
        cost, at = self.cost.get((request.kind, site), (0.0, now))
        keep = math.exp((at - now) / self.TAU_S)
        cost = seconds if seconds > cost else cost * keep + seconds * (1.0 - keep)
        self.cost[request.kind, site] = (cost, now)

    def timed_out(self, request: Request, site: str, now: float) -> None:
        self.finished(request, site, TIMEOUT_S, now)


class LowestLatency(Rival):
    """LiteLLM 1.109 latency-based-routing: mean of the last ten seconds-per-token.

    A time-out counts 1000 s.
    """

    name = "litellm-lowest-latency"

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.seen: dict[tuple[str, str], deque[float]] = {}

    def pick(self, request: Request, now: float, edge: Edge, cloud: Cloud) -> str:
        means = {site: self._mean(request.kind, site) for site in SITES}
        best = min(means.values())
        return self.rng.choice([site for site in SITES if means[site] <= best])

    def _mean(self, kind: str, site: str) -> float:
        seen = self.seen.get((kind, site))
        return sum(seen) / len(seen) if seen else 0.0

    def _append(self, request: Request, site: str, value: float) -> None:
        self.seen.setdefault((request.kind, site), deque(maxlen=10)).append(value)

    def finished(self, request: Request, site: str, seconds: float, now: float) -> None:
        self._append(request, site, seconds / request.tokens)

    def timed_out(self, request: Request, site: str, now: float) -> None:
        self._append(request, site, 1000.0)


class RttThreshold(Rival):
    """Cloud while its round trip is under 100 ms, else edge; probed every second."""

    name = "rtt-threshold"

    def pick(self, request: Request, now: float, edge: Edge, cloud: Cloud) -> str:
        return "cloud" if self.rtt_s < 0.1 else "edge"


class OneShotOracle(Rival):
    """O1: complete knowledge, one greedy choice per request."""

    name = "O1 one-shot oracle"
    edge_timeout = False

    def pick(self, request: Request, now: float, edge: Edge, cloud: Cloud) -> str:
        at_edge, at_cloud = edge.finish_of(request), cloud.finish_of(request)
        if at_cloud - now > TIMEOUT_S:
            at_cloud = at_edge + TIMEOUT_S
        return "edge" if at_edge <= at_cloud else "cloud"


class _Attempt:
    """One request under a rival policy."""

    def __init__(self, run: _Run, request: Request) -> None:
        self.run, self.request = run, request
        self.site = run.rival.pick(request, run.sim.now, run.edge, run.cloud)
        self.second = False
        self.timer: Timer | None = None
        self._begin()

    def _begin(self) -> None:
        rival, sim = self.run.rival, self.run.sim
        rival.pending[self.site] += 1
        self.began = sim.now
        place = self.run.edge if self.site == "edge" else self.run.cloud
        self.job: Job = place.run(self.request, self._done)
        if not self.second and (self.site == "cloud" or rival.edge_timeout):
            self.timer = sim.at(sim.now + TIMEOUT_S, self._time_out)

    def _done(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        now = self.run.sim.now
        self.run.rival.pending[self.site] -= 1
        self.run.rival.finished(self.request, self.site, now - self.began, now)
        self.run.record.answered(self.request, self.site, now)

    def _time_out(self) -> None:
        (self.run.edge if self.site == "edge" else self.run.cloud).cancel(self.job)
        self.run.rival.pending[self.site] -= 1
        self.run.rival.timed_out(self.request, self.site, self.run.sim.now)
        self.site = "cloud" if self.site == "edge" else "edge"
        self.second = True
        self._begin()


class _Run:
    def __init__(self, rival: Rival, requests: list[Request], link: Link, throttle: Throttle) -> None:
        self.rival = rival
        self.sim = Simulator()
        self.edge, self.cloud = Edge(self.sim, throttle), Cloud(self.sim, link)
        self.record = Record(rival.name)
        for request in requests:
            self.sim.at(request.at, lambda request=request: _Attempt(self, request))  # type: ignore[misc]
        if isinstance(rival, RttThreshold):
            self._probe()
        self.sim.run(lambda: len(self.record.latencies) == len(requests))

    def _probe(self) -> None:
        def answered(rtt_s: float) -> None:
            timer.cancel()
            self.rival.rtt_s = rtt_s

        def missed() -> None:
            self.rival.rtt_s = 1.0

        timer = self.sim.at(self.sim.now + 1.0, missed)
        self.cloud.probe(answered)
        self.sim.at(self.sim.now + 1.0, self._probe)


def run_rival(rival: Rival, requests: list[Request], link: Link, throttle: Throttle) -> Record:
    """Run one rival policy."""
    return _Run(rival, requests, link, throttle).record
